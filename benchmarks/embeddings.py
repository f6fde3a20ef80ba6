"""What FP16, INT8 and FP8 keep of an image tower's embedding, beside FP32, judged in ONNX Runtime on a CPU.

    python benchmarks/embeddings.py MODEL --dataset cifar10 --work FOLDER [--image-size 112] [--count 2000]
        [--minutes 60] [--threads 1] [--json F]

MODEL is a checkpoint. Its embedding is exported and its forms are built as users build theirs, INT8 and FP8 calibrated
on 256 images of the training split. The forms for TensorRT (FP16, INT8, FP8 with the rest in FP16) are computed with an
explicit rounding behind each operation that a device does in half precision; `int8-cpu` is the form for CPUs. Every
form embeds the same images of the test split, in an order that is drawn once; each image is a query and all others are
the gallery. FOLDER keeps the bundle and each form's vectors, so that a run can be stopped and go on: images go through
all forms a part at a time, and what is reported is of the parts that every form has done.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import vitdeploy
from vitdeploy.compiler.float16.check import rounded
from vitdeploy.core.machine import versions
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.evaluation.accuracy import Answers, Infers, classify
from vitdeploy.evaluation.batches import answer_name, image_batches, open_session
from vitdeploy.evaluation.vectors import summarise_vectors

STEP = 100  # images of a part
FORMS = {  # name: its file, and whether it computes in half precision
    "fp32": ("model.onnx", False),
    "fp16": ("model.fp16.onnx", True),
    "int8": ("model.int8.onnx", True),
    "int8-cpu": ("model.int8-cpu.onnx", False),
    "fp8": ("model.fp8.onnx", True),
}


def bundle_of(model: str, dataset: str, size: int | None, folder: Path) -> vitdeploy.Bundle:
    """The bundle with every form, made where it is not there."""
    path = folder / "bundle"
    if not path.exists():
        image_size = None if size is None else (size, size)
        vitdeploy.export(model, path, task="embedding", image_size=image_size)
    vitdeploy.build(path, ["fp16", "int8", "fp8"], target="onnx", recipe=vitdeploy.Recipe(dataset=dataset))
    return vitdeploy.Bundle.open(path)


class Exact:
    """A graph in a session whose products of bytes saturate on no processor."""

    def __init__(self, file: Path, threads: int | None) -> None:
        self._session = open_session(file, threads=threads or 0)

    def infer(self, feeds: Mapping[str, Any], /) -> dict[str, Any]:
        name = answer_name(self._session)
        return {name: self._session.run([name], dict(feeds))[0]}


def opened(file: Path, half: bool, threads: int | None) -> AbstractContextManager[Infers]:
    return rounded(file, threads) if half else nullcontext(Exact(file, threads))


def vectors(name: str, bundle: vitdeploy.Bundle, images: ImageDataset, path: Path, threads: int | None) -> np.ndarray:
    """The vectors of a form, (images, dimensions): read from the file, or made and kept there."""
    if not path.exists():
        width, (file, half) = bundle.manifest.width, FORMS[name]
        made = np.empty((len(images), width), np.float32)
        with opened(bundle.path / file, half, threads) as runner:
            for indices, pixels in image_batches(images):
                made[indices] = classify(runner, pixels, width)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, made)
        partial.replace(path)
    found: np.ndarray = np.load(path)
    return found


def rows(vectors: dict[str, np.ndarray], classes: np.ndarray, neighbours: int) -> dict[str, Any]:
    """What each form keeps of FP32's vectors of the same images."""
    seen = np.ones(len(classes), np.bool_)
    answers = {name: Answers(found, seen) for name, found in vectors.items()}
    found = {}
    for name, form in answers.items():
        kept = summarise_vectors(form, classes, neighbours, None if name == "fp32" else answers["fp32"])
        assert kept is not None
        found[name] = asdict(kept)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no part after so many")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle = bundle_of(arguments.model, arguments.dataset, arguments.image_size, arguments.work)
    images = vitdeploy.load_dataset(arguments.dataset, "test")
    images = images.subset(np.random.default_rng(0).permutation(len(images))[: arguments.count])
    done: dict[str, list[np.ndarray]] = {name: [] for name in FORMS}
    for start in range(0, len(images), STEP):
        part = images.subset(range(start, min(start + STEP, len(images))))
        for name in FORMS:
            (graph,) = (artifact.sha256 for artifact in bundle.manifest.artifacts if artifact.path == FORMS[name][0])
            path = arguments.work / f"{name}-{graph[:8]}-{part.fingerprint[:8]}.npy"
            done[name].append(vectors(name, bundle, part, path, arguments.threads))
        print(f"{start + len(part)} of {len(images)} images", flush=True)
        if time.monotonic() > end:
            break
    found = {name: np.concatenate(parts) for name, parts in done.items()}
    seen = images.subset(range(len(found["fp32"])))
    report: dict[str, Any] = {
        "model": bundle.manifest.model,
        "embedding": bundle.manifest.embedding and bundle.manifest.embedding.to_json(),
        "images": seen.describe(),
        "versions": versions(),
        "rows": rows(found, seen.label_ids, arguments.neighbours),
    }
    for name, row in report["rows"].items():
        print(line(name, row))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    numbers = (row[key] for key in ("cosine", "cosine_p1", "neighbour", "recall", "queries", "index"))
    shown = ["" if n is None else f"{n['value']:.4f} [{n['ci95'][0]:.4f}, {n['ci95'][1]:.4f}]" for n in numbers]
    knn = row["knn"]
    change = ""
    if knn["delta"] is not None:
        low, high = knn["delta_ci95"]
        change = f"{100 * knn['delta']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return " | ".join([f"| {name}", *shown, f"{100 * knn['top1']:.2f} %", f"{change} |"])


if __name__ == "__main__":
    main()
