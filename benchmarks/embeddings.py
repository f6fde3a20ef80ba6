"""What FP16, INT8 and FP8 keep of an image tower's embedding, beside FP32, judged in ONNX Runtime on a CPU.

    python benchmarks/embeddings.py MODEL --dataset cifar10 --work FOLDER [--image-size 112] [--count 2000] [--json F]

MODEL is a checkpoint. Its embedding is exported and its forms are built as users build theirs, INT8 and FP8 calibrated
on 256 images of the training split. The forms for TensorRT (FP16, INT8, FP8 with the rest in FP16) are computed with an
explicit rounding behind each operation that a device does in half precision; `int8-cpu` is the form for CPUs. Every
form embeds the same images of the test split; each image is a query and all others are the gallery. FOLDER keeps the
bundle and each form's vectors, so that a run can be stopped and go on.
"""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import vitdeploy
from vitdeploy.backends.base import Runner
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.compiler.float16.check import rounded
from vitdeploy.core.machine import versions
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.evaluation.accuracy import Answers, classify
from vitdeploy.evaluation.batches import image_batches
from vitdeploy.evaluation.vectors import summarise_vectors

STEP = 500  # images between two savings
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


def opened(file: Path, half: bool) -> AbstractContextManager[Runner]:
    return rounded(file) if half else OnnxRuntimeRunner(file)


def vectors(name: str, bundle: vitdeploy.Bundle, images: ImageDataset, folder: Path) -> np.ndarray:
    """The vectors of a form, (images, dimensions): of what is not in the folder yet it is run."""
    assert bundle.manifest.embedding is not None
    width, (file, half) = bundle.manifest.width, FORMS[name]
    parts = []
    for start in range(0, len(images), STEP):
        path = folder / f"{name}-{images.fingerprint[:8]}-{start}.npy"
        if not path.exists():
            part = images.subset(range(start, min(start + STEP, len(images))))
            made = np.empty((len(part), width), np.float32)
            with opened(bundle.path / file, half) as runner:
                for indices, pixels in image_batches(part):
                    made[indices] = classify(runner, pixels, width)
            np.save(path, made)
            print(f"{name}: {start + len(part)} images", flush=True)
        parts.append(np.load(path))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle = bundle_of(arguments.model, arguments.dataset, arguments.image_size, arguments.work)
    images = vitdeploy.load_dataset(arguments.dataset, "test", limit=arguments.count)
    seen = np.ones(len(images), np.bool_)
    exact = Answers(vectors("fp32", bundle, images, arguments.work), seen)
    report: dict[str, Any] = {
        "model": bundle.manifest.model,
        "embedding": bundle.manifest.embedding and bundle.manifest.embedding.to_json(),
        "images": images.describe(),
        "versions": versions(),
        "rows": {},
    }
    for name in FORMS:
        form = exact if name == "fp32" else Answers(vectors(name, bundle, images, arguments.work), seen)
        kept = summarise_vectors(form, images.label_ids, arguments.neighbours, None if form is exact else exact)
        assert kept is not None
        report["rows"][name] = asdict(kept)
        print(line(name, report["rows"][name]), flush=True)
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
