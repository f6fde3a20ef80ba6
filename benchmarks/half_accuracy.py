"""FP16 and BF16 against FP32 on labelled images, as a device rounds: top-1, paired, and mean |logit difference|.

    python benchmarks/half_accuracy.py CHECKPOINT DATASET [--split test] [--forms fp16 bf16] [--count 8000] [--json F]

The checkpoint is exported and its half-precision forms are made in a temporary folder, FP16 with 32 images of the
training split to look for values that it can't hold. ONNX Runtime's CPU provider would drop roundings, so each form is
run with an explicit rounding behind every operation (`vitdeploy.compiler.half_simulation`). All forms see the same
batches, one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.graph.save import save
from vitdeploy.compiler.half_simulation import simulate
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.datasets import load_dataset
from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

HALVES = ("fp16", "bf16")


def prepare(checkpoint: str, dataset: str, folder: Path, forms: list[str]) -> tuple[dict[str, Path], dict[str, Any]]:
    """The graphs to run, and what the bundle says of its half-precision forms."""
    import onnx_ir as ir

    export(checkpoint, folder / "bundle")
    bundle = build(folder / "bundle", forms, target="onnx", recipe=Recipe(dataset=dataset)).bundle
    paths, said = {"fp32": bundle.path / "model.onnx"}, {}
    for form in forms:
        artifact = bundle.find(kind="onnx", precision=form)
        assert artifact is not None
        paths[form] = folder / f"{form}.onnx"
        save(simulate(ir.load(bundle.path / artifact.path)), paths[form])
        said[form] = {name: artifact.built_with[name] for name in ("check", "mean_logit_difference", "kept_fp32")}
    return paths, said


def measure(paths: dict[str, Path], images: Any, batch: int, threads: int) -> dict[str, np.ndarray]:
    """Logits of every form on all images, which share one size."""
    runners = {form: OnnxRuntimeRunner(path, threads) for form, path in paths.items()}
    logits: dict[str, list[np.ndarray]] = {form: [] for form in paths}
    started = time.perf_counter()
    try:
        for runner in runners.values():
            runner.__enter__()
        for start in range(0, len(images), batch):
            pixels = np.stack([images.image(index) for index in range(start, min(start + batch, len(images)))])
            for form, runner in runners.items():
                logits[form].append(runner.infer({"image": pixels})["logits"])
            if start % (20 * batch) == 0:
                print(f"{start} images, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        for runner in runners.values():
            runner.__exit__(None, None, None)
    return {form: np.concatenate(parts) for form, parts in logits.items()}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--forms", nargs="+", choices=HALVES, default=list(HALVES))
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    images = load_dataset(arguments.dataset, arguments.split, limit=arguments.count)
    labels = np.asarray(images.label_ids)
    with tempfile.TemporaryDirectory() as folder:
        paths, said = prepare(arguments.checkpoint, arguments.dataset, Path(folder), arguments.forms)
        found = compare(measure(paths, images, arguments.batch, arguments.threads), labels)
    for form, entry in found.items():
        line = f"{form}: top-1 {entry['top1']:.3f}"
        if form != "fp32":
            low, high = entry["interval_points"]
            line += (
                f", drop {entry['drop_points']:+.3f} points (95 % {low:+.3f} to {high:+.3f}), won {entry['won']}, lost"
                f" {entry['lost']}, mean |logit difference| {entry['mean_logit_difference']:.2g}, largest"
                f" {entry['largest_logit_difference']:.2g} of a range of {entry['logit_range']:.1f};"
                f" {len(said[form]['kept_fp32'])} nodes in FP32"
            )
        print(line)
    if arguments.json:
        data = {"dataset": images.describe(), "count": len(images), "forms": found, "said": said}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
