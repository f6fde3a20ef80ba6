"""What an export compares before it writes anything: the preprocessing with the image processor, the graph with
PyTorch, on photographs, shapes and noise of several sizes, in batches of 1, 2 and 7."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.blame import first_difference
from vitdeploy.compiler.graph.save import save, save_without_weights
from vitdeploy.compiler.parity import Check, compare, compare_levels
from vitdeploy.compiler.samples import check_batches, drawn_image
from vitdeploy.compiler.tracing import Reference, run_pytorch
from vitdeploy.specs import PreprocessSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.checkpoints import Checkpoint

__all__ = ["TOLERANCE", "check_outputs", "check_preprocessing", "first_difference_of"]

TOLERANCE = 1e-4
_NAMES = {
    "logits": "FP32 graph against PyTorch",
    "scores": "scores against PyTorch",
    "features": "features against PyTorch",
    "attention": "attention against PyTorch",
}


def check_preprocessing(
    processor: Any, front: ir.Model, spec: PreprocessSpec, input_size: tuple[int, int] | None, scratch: Path
) -> tuple[list[np.ndarray], Check]:
    """Run the preprocessing graph on the check images: its pixel values, and how far they are from the processor's.

    Returns the pixel values (batch, 3, height, width), one array a batch, which the model is checked with.
    """
    from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

    batches = check_batches(input_size)
    alone = [] if input_size else [drawn_image(*size, np.random.default_rng(1)) for size in ((17, 45), (240, 320))]
    path = scratch / "preprocessing.onnx"
    save(front, path)
    ours, theirs, pixels = [], [], []
    with OnnxRuntimeRunner(path) as runner:
        for batch in (*batches, *(image[np.newaxis] for image in alone)):
            made = next(iter(runner.infer({"image": batch}).values()))
            pixels.append(made)
            for image, values in zip(batch, made, strict=True):
                ours.append(values)
                theirs.append(_processed(processor, image))
    level = np.full(3, spec.rescale if spec.rescale is not None else 1.0)
    if spec.std is not None:
        level = level / np.asarray(spec.std)
    check = compare_levels("preprocessing against the image processor", ours, theirs, np.abs(level))
    return pixels[: len(batches)], check


def _processed(processor: Any, image: np.ndarray) -> np.ndarray:
    made = processor(image, return_tensors="np", input_data_format="channels_last")
    return np.asarray(made["pixel_values"][0])


def check_outputs(graph: ir.Model, pixels: list[np.ndarray], reference: Reference, scratch: Path) -> list[Check]:
    """Run the graph on pixel values and compare each output with PyTorch's."""
    values = run_graph(graph, pixels, scratch)
    return [
        compare(
            _NAMES[name],
            np.concatenate([array.reshape(len(array), -1) for array in values[name]]),
            np.concatenate([array.reshape(len(array), -1) for array in arrays]),
            TOLERANCE,
            of="the logits' range" if name == "logits" else "its range",
        )
        for name, arrays in reference.values.items()
    ]


def first_difference_of(checkpoint: Checkpoint, graph: ir.Model, pixels: np.ndarray, scratch: Path) -> str | None:
    """The node at fault where a check failed, in words."""
    return first_difference(
        checkpoint.module, graph, pixels, scratch, TOLERANCE, lambda: run_pytorch(checkpoint, [pixels], ("logits",))
    )


def run_graph(graph: ir.Model, pixels: list[np.ndarray], scratch: Path) -> dict[str, list[np.ndarray]]:
    """Every output of the graph, one array a batch. The weights are used where they lie, not written."""
    from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

    path = scratch / "graph.onnx"
    weights = save_without_weights(graph, path)
    with OnnxRuntimeRunner(path, weights=weights) as runner:
        runs = [runner.infer({"pixel_values": batch}) for batch in pixels]
    return {name: [run[name] for run in runs] for name in runs[0]}
