"""FP16 and BF16 against FP32 on labelled images, as a device rounds: top-1, paired, and mean |logit difference|.

    python benchmarks/half_accuracy.py CHECKPOINT DATASET --work FOLDER [--split test] [--forms fp16 bf16]
        [--count 8000] [--at-most N] [--json F] [--markdown F]

The checkpoint is exported and its half-precision forms are made in FOLDER, FP16 with 32 images of the training split to
look for values that it can't hold. ONNX Runtime's CPU provider would drop roundings, so each form is run with an
explicit rounding behind every operation (`vitdeploy.compiler.float16.simulation`). All forms see the same batches.

It takes an hour of one core for 8,000 images. Graphs and logits stay in FOLDER, and a further call goes on where the
last one ended: `--at-most N` ends it after N forward passes of one image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.float16.simulation import simulate
from vitdeploy.compiler.passes.save import save
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.data import load_dataset

HALVES = ("fp16", "bf16")


def prepare(checkpoint: str, dataset: str, folder: Path, forms: list[str]) -> dict[str, Path]:
    """The graphs to run, made unless they are there, with what the bundle says of its half-precision forms."""
    import onnx_ir as ir

    if not (folder / "bundle").exists():
        export(checkpoint, folder / "bundle")
    bundle = build(folder / "bundle", forms, target="onnx", recipe=Recipe(dataset=dataset)).bundle
    paths, said = {"fp32": bundle.path / "model.onnx"}, {}
    for form in forms:
        artifact = bundle.find(kind="onnx", precision=form)
        assert artifact is not None
        paths[form] = folder / f"{form}.onnx"
        if not paths[form].exists():
            save(simulate(ir.load(bundle.path / artifact.path)), paths[form])
        said[form] = {name: artifact.built_with[name] for name in ("check", "mean_logit_difference", "kept_fp32")}
    (folder / "said.json").write_text(json.dumps(said))
    return paths


def measure(paths: dict[str, Path], images: Any, folder: Path, batch: int, threads: int, at_most: int) -> bool:
    """Run what is missing, up to `at_most` passes, and keep logits (images, classes) by form; whether all are there."""
    kept = {form: folder / f"{form}.npy" for form in paths}
    parts = {form: [np.load(file)] if file.exists() else [] for form, file in kept.items()}
    done = {form: sum(map(len, arrays)) for form, arrays in parts.items()}
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        runners = {form: stack.enter_context(OnnxRuntimeRunner(path, threads)) for form, path in paths.items()}
        while min(done.values()) < len(images) and at_most > 0:
            form = min(done, key=lambda name: done[name])
            start, end = done[form], min(done[form] + batch, len(images))
            pixels = np.stack([images.image(index) for index in range(start, end)])
            parts[form].append(runners[form].infer({"image": pixels})["logits"])
            done[form], at_most = end, at_most - (end - start)
    for form, file in kept.items():
        np.save(file, np.concatenate(parts[form]))
    print(f"{done}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return min(done.values()) == len(images)


def compare(logits: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """Per form: top-1, images won and lost against FP32, the 95 % interval of the difference, logits' differences."""
    exact = logits["fp32"]
    right = exact.argmax(axis=1) == labels
    found: dict[str, Any] = {"fp32": {"top1": 100 * float(right.mean())}}
    for form in [name for name in logits if name != "fp32"]:
        values = logits[form]
        ours = values.argmax(axis=1) == labels
        won, lost = int((ours & ~right).sum()), int((right & ~ours).sum())
        count, difference = len(labels), (won - lost) / len(labels)
        half_width = 1.96 * math.sqrt(max((won + lost) / count - difference**2, 0) / count)
        found[form] = {
            "top1": 100 * float(ours.mean()),
            "drop_points": -100 * difference,
            "interval_points": [100 * (-difference - half_width), 100 * (-difference + half_width)],
            "won": won,
            "lost": lost,
            "agreement": 100 * float((values.argmax(axis=1) == exact.argmax(axis=1)).mean()),
            "mean_logit_difference": float(np.abs(values - exact).mean()),
            "largest_logit_difference": float(np.abs(values - exact).max()),
            "logit_range": float(np.ptp(exact)),
        }
    return found


def lines(data: dict[str, Any]) -> list[str]:
    """The numbers as a table."""
    found = data["forms"]
    rows = [
        "| form | top-1 | change, points [95 %] | won, lost | same class as FP32 | mean abs. logit difference | largest"
        " | nodes in FP32 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| FP32 | {found['fp32']['top1']:.3f} % | baseline | | | | | |",
    ]
    for form, entry in found.items():
        if form != "fp32":
            low, high = entry["interval_points"]
            rows.append(
                f"| {form.upper()} | {entry['top1']:.3f} % | {-entry['drop_points']:+.3f} [{-high:+.3f}, {-low:+.3f}]"
                f" | {entry['won']}, {entry['lost']} | {entry['agreement']:.2f} %"
                f" | {entry['mean_logit_difference']:.2g} | {entry['largest_logit_difference']:.2g}"
                f" | {len(data['said'][form]['kept_fp32'])} |"
            )
    rows += ["", f"The logits of all images span {entry['logit_range']:.1f}."]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dataset")
    parser.add_argument("--work", type=Path, required=True, help="where graphs and logits stay between calls")
    parser.add_argument("--split", default="test")
    parser.add_argument("--forms", nargs="+", choices=HALVES, default=list(HALVES))
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-most", type=int, default=sys.maxsize, help="passes of one image in this call")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--markdown", type=Path, help="and as a table here")
    arguments = parser.parse_args()
    folder: Path = arguments.work
    folder.mkdir(parents=True, exist_ok=True)
    images = load_dataset(arguments.dataset, arguments.split, limit=arguments.count)
    paths = prepare(arguments.checkpoint, arguments.dataset, folder, arguments.forms)
    if not measure(paths, images, folder, arguments.batch, arguments.threads, arguments.at_most):
        sys.exit("not all images yet: call it again")
    logits = {form: np.load(folder / f"{form}.npy") for form in paths}
    data = {
        "dataset": images.describe(),
        "count": len(images),
        "forms": compare(logits, np.asarray(images.label_ids)),
        "said": json.loads((folder / "said.json").read_text()),
    }
    print("\n".join(lines(data)))
    if arguments.json:
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines(data)) + "\n")


if __name__ == "__main__":
    main()
