"""What FP8 (E4M3 Q/DQ, the rest FP16) costs in accuracy, judged in ONNX Runtime on a CPU beside FP32 and INT8.

    python benchmarks/fp8_accuracy.py MODEL.onnx --dataset cifar10 --logits FOLDER [--count 8000] [--json OUT.json]

MODEL.onnx is a bundle's FP32 graph. Every variant is calibrated on the same 256 images of the training split and judged
on the same images of the test split; `outliers` are variants of the same function with outlier channels behind each
LayerNormalization (see `peers.with_outliers`). The graphs have the Q/DQ that TensorRT gets, and their
remainder in FP32; what DequantizeLinear makes of the weights, the same for every image, is written in its place. One
thread runs them. FOLDER keeps each variant's logits and calibration, so that a run can be stopped and go on. All
variants see the same images, one part of them after the other, and the report is of those that all have seen.

With --lead L only images are run, behind the first 250, of which FP32's best class leads by less than L; of the others
the best class is taken to be FP32's. The report says by how much any lead changed in what was run: L has to be far
above it. The squared error of the logits is that of the first 250.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from peers import with_outliers

from vitdeploy.compiler.passes.values import constant, new_initializer
from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8
from vitdeploy.compiler.quantization.calibration import Calibration, calibrate
from vitdeploy.compiler.quantization.image_selection import choose_images
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import FP8, INT8_SIGNED
from vitdeploy.core.machine import versions
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.data.load import load_dataset
from vitdeploy.data.sampling import stratified_sample
from vitdeploy.evaluation.batches import answers_of, open_session
from vitdeploy.evaluation.statistics import paired_difference

STEP, WHOLE, OUTLIERS = 250, 250, 8
PLAIN = {"method": "minmax", "smoothing": False, "bias_correction": False, "adaptive_rounding": False}
VARIANTS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "fp8": (E4M3, {}, False),
    "fp8, attention too": (E4M3, {"attention": True}, False),
    "fp8, largest values alone": (E4M3, PLAIN, False),
    "fp8, no bias correction": (E4M3, {"bias_correction": False}, False),
    "fp8, no smoothing": (E4M3, {"smoothing": False}, False),
    "fp8, weights to the nearest": (E4M3, {"adaptive_rounding": False}, False),
    "int8": (INT8, {}, False),
    "fp8, outliers": (E4M3, {}, True),
    "fp8, outliers, largest values alone": (E4M3, PLAIN, True),
    "fp8, outliers, attention too": (E4M3, {"attention": True}, True),
}


def margins(exact: np.ndarray) -> np.ndarray:
    """By how much the best class leads, an image."""
    ordered = np.sort(exact, axis=1)
    lead: np.ndarray = ordered[:, -1] - ordered[:, -2]
    return lead


def judge(values: np.ndarray, exact: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    base, run = exact.argmax(1), ~np.isnan(values[:, 0])
    best = np.where(run, np.where(run[:, np.newaxis], values, 0).argmax(1), base)
    rows = np.flatnonzero(run)
    changes = (values[rows] - exact[rows]) - (values[rows, base[rows]] - exact[rows, base[rows]])[:, np.newaxis]
    right, base_right = best == truth, base == truth
    lost, won = int((base_right & ~right).sum()), int((right & ~base_right).sum())
    delta, interval = paired_difference(lost, won, len(truth))
    return {
        "top1": float(100 * right.mean()),
        "drop": -100 * delta,
        "drop_ci95": [-100 * end for end in reversed(interval)],
        "agreement": float(100 * (best == base).mean()),
        "run": len(rows),
        "largest_change_of_a_lead": float(np.abs(changes).max()),
        "logit_mse": float(np.square(values[:WHOLE] - exact[:WHOLE], dtype=np.float64).mean()),
    }


def with_weights_as_numbers(model: ir.Model) -> ir.Model:
    """The same function, less the DequantizeLinear of weights."""
    for node in list(model.graph):
        stored, scales = (constant(value) for value in node.inputs[:2]) if len(node.inputs) > 1 else (None, None)
        if node.op_type != "DequantizeLinear" or stored is None or scales is None:
            continue
        shape = [1] * stored.ndim
        shape[node.attributes["axis"].as_int()] = -1
        exact = stored.astype(np.float32) * scales.reshape(shape)
        value = new_initializer(model.graph, f"{node.name}.exact", exact)
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, value)
        model.graph.remove(node)
    return model


class Answers:
    """The logits of the graphs, kept in a folder part by part; a graph is made when one of its parts is not there."""

    def __init__(self, images: ImageDataset, folder: Path) -> None:
        self._images, self._folder = images, folder
        self._sessions: dict[str, Any] = {}

    def of(self, name: str, graph: Callable[[], Any], start: int, wanted: np.ndarray | None = None) -> np.ndarray:
        """Those of the images from `start` on, `STEP` of them; NaN where an image is not `wanted` (None: all are)."""
        path = self._folder / f"{name.replace(' ', '-').replace(',', '')}-{start}.npy"
        count = min(STEP, len(self._images) - start)
        places = np.arange(count) if wanted is None else np.flatnonzero(wanted)
        kept: np.ndarray = np.load(path) if path.exists() else np.full((count, 0), np.nan, np.float32)
        if not kept.size or np.isnan(kept[places]).any():
            if name not in self._sessions:
                self._sessions[name] = open_session(graph(), threads=1)
            found = answers_of(self._sessions[name], self._images.subset(start + places))
            kept = np.full((count, found.shape[1]), np.nan, np.float32)
            kept[places] = found
            np.save(path, kept)
        return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--logits", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names, with semicolons")
    parser.add_argument("--lead", type=float, default=np.inf, help="run variants where FP32's best class leads by less")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.logits.mkdir(parents=True, exist_ok=True)
    images = stratified_sample(load_dataset(arguments.dataset, "test"), 8000)
    images = images.subset(np.random.default_rng(0).permutation(len(images))[: arguments.count])
    truth = np.asarray(images.label_ids)
    recipe = Recipe(dataset=arguments.dataset)
    chosen = choose_images(recipe, arguments.model).calibration
    hard = with_outliers(arguments.model, arguments.logits / "outliers.onnx", OUTLIERS)

    def quantized(name: str) -> ir.Model:
        numbers, changes, outliers = VARIANTS[name]
        graph = hard if outliers else arguments.model
        pictures = (chosen.image(index) for index in range(len(chosen)))
        kept = arguments.logits / f"{name.replace(' ', '-').replace(',', '')}.json"
        if not kept.exists():
            made = calibrate(graph, "", pictures, len(chosen), replace(recipe, **changes), {}, numbers=numbers)
            kept.write_text(made.dumps(), encoding="utf-8")
        found = Calibration.load(kept, "")
        model = ir.load(graph)
        quantize(model, found, scheme=FP8 if numbers is E4M3 else INT8_SIGNED)
        return with_weights_as_numbers(model)

    names = arguments.variants.split(";")
    graphs = {"fp32": lambda: arguments.model, **{name: partial(quantized, name) for name in names}}
    answers = Answers(images, arguments.logits)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in graphs}
    for start in range(0, len(images), STEP):
        seen["fp32"].append(answers.of("fp32", graphs["fp32"], start))
        wanted = None if start < WHOLE else margins(seen["fp32"][-1]) < arguments.lead
        for name in names:
            seen[name].append(answers.of(name, graphs[name], start, wanted))
        exact = np.concatenate(seen["fp32"])
        done = images.subset(range(len(exact)))
        rows = {name: judge(np.concatenate(seen[name]), exact, truth[: len(exact)]) for name in names}
        report = {
            "images": done.describe(),
            "calibration": chosen.describe(),
            "outlier_channels": OUTLIERS,
            "lead": arguments.lead if np.isfinite(arguments.lead) else None,
            "all_run_of": min(WHOLE, len(exact)),
            "versions": versions(),
            "fp32_top1": float(100 * (exact.argmax(1) == truth[: len(exact)]).mean()),
            "rows": rows,
        }
        print(len(exact), {name: (row["agreement"], row["drop"]) for name, row in rows.items()}, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
