"""What an export compares before it writes anything: the preprocessing with the image processor, the graph with
PyTorch, on photographs, shapes and noise of several sizes, in batches of 1, 2 and 7."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from vitdeploy.compiler.frontend.first_divergence import first_difference
from vitdeploy.compiler.frontend.parity import Check, compare, compare_levels
from vitdeploy.compiler.frontend.tracing import Reference, run_pytorch
from vitdeploy.compiler.passes.save import save, save_without_weights
from vitdeploy.compiler.preprocessing.reference import follows_pillow, reference
from vitdeploy.compiler.samples import check_batches, drawn_image
from vitdeploy.core import progress
from vitdeploy.core.specs import ANSWERS, PreprocessSpec
from vitdeploy.models.tasks import EMBEDDING, Task, cosines

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.models.checkpoints import Checkpoint

__all__ = ["LEAST_COSINE", "TOLERANCE", "check_outputs", "check_preprocessing", "first_difference_of"]

TOLERANCE = 1e-4
LEAST_COSINE = 0.99999
_NAMES = {
    **dict.fromkeys(ANSWERS, "FP32 graph against PyTorch"),
    "scores": "scores against PyTorch",
    "features": "features against PyTorch",
    "attention": "attention against PyTorch",
}


def check_preprocessing(
    processor: Any,
    preprocessing: ir.Model,
    spec: PreprocessSpec,
    input_size: tuple[int, int] | None,
    more: list[np.ndarray],
    scratch: Path,
) -> tuple[list[np.ndarray], np.ndarray, Check]:
    """Run the preprocessing graph on the check images, and on `more`, (height, width, 3) each: how far it is from the
    processor.

    Returns the pixel values (batch, 3, height, width) of the check images, one array a batch, and those of `more`,
    which the model is checked with.
    """
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner

    batches = check_batches(input_size)
    alone = [] if input_size else [drawn_image(*size, np.random.default_rng(1)) for size in ((17, 45), (240, 320))]
    path = scratch / "preprocessing.onnx"
    save(preprocessing, path)
    ours, theirs, pixels = [], [], []
    with OnnxRuntimeRunner(path) as runner:
        for batch in (*batches, *(image[np.newaxis] for image in (*more, *alone))):
            made = next(iter(runner.infer({"image": batch}).values()))
            pixels.append(made)
            for image, values in zip(batch, made, strict=True):
                ours.append(values)
                theirs.append(_processed(processor, spec, image))
    if not all(follows_pillow(spec, (image.shape[0], image.shape[1])) for batch in batches for image in batch):
        progress.note(
            f"Note: the graph resizes tall images as Pillow 13 does; Pillow {PIL.__version__} is installed here."
        )
    level = np.full(3, spec.rescale if spec.rescale is not None else 1.0)
    if spec.std is not None:
        level = level / np.asarray(spec.std)
    check = compare_levels("preprocessing against the image processor", ours, theirs, np.abs(level))
    count = len(batches)
    return pixels[:count], np.concatenate(pixels[count : count + len(more)]), check


def _processed(processor: Any, spec: PreprocessSpec, image: np.ndarray) -> np.ndarray:
    """What the processor makes of an image; where an older Pillow does it otherwise than 13, what 13 does."""
    if not follows_pillow(spec, (image.shape[0], image.shape[1])):
        return reference(spec, image)
    made = processor(image, return_tensors="np", input_data_format="channels_last")
    return np.asarray(made["pixel_values"][0])


def check_outputs(
    graph: ir.Model, pixels: list[np.ndarray], reference: Reference, more: Reference, task: Task, scratch: Path
) -> list[Check]:
    """Run the graph on pixel values and compare each output with PyTorch's; of an embedding the direction as well.

    Args:
        pixels: what PyTorch's outputs in `reference` are of, then what those in `more` are of.
    """
    values = run_graph(graph, pixels, scratch)
    checks = []
    for name, own in reference.values.items():
        wanted = [*own, *more.values.get(name, [])]
        ours, theirs = _flat(values[name][: len(wanted)]), _flat(wanted)
        is_answer = name == task.kind.output
        checks.append(compare(_NAMES[name], ours, theirs, TOLERANCE, of=task.kind.range if is_answer else "its range"))
        if is_answer and task.kind is EMBEDDING:
            least = float(cosines(ours, theirs).min())
            checks.append(Check("direction against PyTorch", 1 - least, 1 - LEAST_COSINE, "of 1 - cosine", len(ours)))
    return checks


def _flat(arrays: list[np.ndarray]) -> np.ndarray:
    """Batches (batch, ...) as one array (images, n)."""
    return np.concatenate([array.reshape(len(array), -1) for array in arrays])


def first_difference_of(checkpoint: Checkpoint, graph: ir.Model, pixels: np.ndarray, scratch: Path) -> str | None:
    """The node at fault where a check failed, in words."""
    return first_difference(
        checkpoint.module,
        graph,
        pixels,
        scratch,
        TOLERANCE,
        lambda: run_pytorch(checkpoint, [pixels], (checkpoint.task.kind.output,)),
    )


def run_graph(graph: ir.Model, pixels: list[np.ndarray], scratch: Path) -> dict[str, list[np.ndarray]]:
    """Every output of the graph, one array a batch. The weights are used where they lie, not written."""
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner

    path = scratch / "graph.onnx"
    weights = save_without_weights(graph, path)
    with OnnxRuntimeRunner(path, weights=weights) as runner:
        runs = [runner.infer({"pixel_values": batch}) for batch in pixels]
    return {name: [run[name] for run in runs] for name in runs[0]}
