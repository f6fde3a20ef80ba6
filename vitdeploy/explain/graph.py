"""Look inside a bundle: its own graph with the softmaxes of attention as further outputs, run by ONNX Runtime.

ONNX Runtime gives no value that is not an output, so the graph gets more of them in memory; that takes the package
onnx. PyTorch is not needed, and the file in the bundle is not touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import InputError, ModelError, require
from vitdeploy.evaluation.batches import open_session
from vitdeploy.explain.inside import Inside, check_attention, readout_of, undo_normalisation
from vitdeploy.models.tasks import CLASSIFICATION, TASKS
from vitdeploy.runtime.predictions import Namer

__all__ = ["look_inside_bundle"]

_PIXELS = "pixel_values"
_NOT_FOUND = "export the checkpoint again with this version, or explain the checkpoint itself"


def look_inside_bundle(bundle: Bundle, pixels: np.ndarray, precision: str = "fp32") -> Inside:
    """Run a form of the bundle on one image, uint8 (height, width, 3), and keep what attention did.

    Raises:
        InputError: the bundle has no such form, or is no classifier.
        ModelError: the model has no attention over one grid of patches.
        DependencyError: onnx or ONNX Runtime is not installed.
    """
    TASKS[bundle.manifest.task].require(CLASSIFICATION, str(bundle.path), "explain")
    # Not the form for CPUs: its last layer computes only the rows that the classifier reads.
    artifact = bundle.find(kind="onnx", precision=precision, target="tensorrt") or bundle.find(
        kind="onnx", precision=precision
    )
    if artifact is None:
        there = sorted({a.precision or "" for a in bundle.select(kind="onnx")})
        raise InputError(
            f"{bundle.path} has no {precision} graph",
            hint=f"it has {', '.join(there)}; vitdeploy build-engine adds more",
        )
    onnx = require("onnx", extra="build")
    model = onnx.load(str(bundle.file(artifact)))
    patches = _patch_embedding(model.graph, bundle.path)
    softmaxes = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    values = _run(onnx, model, [_PIXELS, patches, *softmaxes], pixels)
    grid = (int(values[patches].shape[2]), int(values[patches].shape[3]))
    attentions = [values[name].astype(np.float32) for name in softmaxes if values[name].ndim > 2]
    name = str(bundle.manifest.model.get("name", bundle.path.name))
    check_attention(attentions, grid, name)
    tokens = attentions[0].shape[-1]
    positions = _positions(onnx, model.graph, tokens, grid)
    return Inside(
        source=name,
        form=f"{precision} graph",
        pixels=undo_normalisation(values[_PIXELS][0], bundle.manifest.preprocess),
        attentions=tuple(array[0] for array in attentions),
        grid=grid,
        readout=readout_of(str(bundle.manifest.model.get("architecture", "")), tokens - grid[0] * grid[1]),
        positions=positions,
        no_positions=None
        if positions is not None
        else "the graph adds no embedding of absolute positions to its patches",
        prediction=Namer(bundle.manifest.labels, name, TASKS[bundle.manifest.task]).prediction(values["logits"][0], 1),
    )


def _patch_embedding(graph: Any, path: Path) -> str:
    """The output of the convolution that makes patches: the one whose kernel is its stride."""
    for node in graph.node:
        attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
        if node.op_type == "Conv" and attributes.get("kernel_shape") == attributes.get("strides"):
            return str(node.output[0])
    raise ModelError(f"{path}: the graph cuts its image into no patches", hint=_NOT_FOUND)


def _run(onnx: Any, model: Any, names: list[str], pixels: np.ndarray) -> dict[str, np.ndarray]:
    there = {output.name for output in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in there:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    outputs = ["logits", *dict.fromkeys(names)]
    try:
        session = open_session(model.SerializeToString())
        arrays = session.run(outputs, {"image": pixels[np.newaxis]})
    except Exception as error:  # its errors have no base class of their own
        raise ModelError(
            f"ONNX Runtime can't run the graph with its inner values as outputs: {error}", hint=_NOT_FOUND
        ) from error
    return dict(zip(outputs, arrays, strict=True))


def _positions(onnx: Any, graph: Any, tokens: int, grid: tuple[int, int]) -> np.ndarray | None:
    """The constant (1, tokens, hidden) that is added first: its last rows belong to the patches."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    patches = grid[0] * grid[1]
    for node in graph.node:
        if node.op_type == "Softmax":
            return None  # attention has begun
        for name in node.input if node.op_type == "Add" else ():
            dims = list(stored[name].dims) if name in stored else []
            if len(dims) == 3 and dims[0] == 1 and patches <= dims[1] <= tokens:
                table: np.ndarray = onnx.numpy_helper.to_array(stored[name])[0, -patches:]
                return table.astype(np.float32)
    return None
