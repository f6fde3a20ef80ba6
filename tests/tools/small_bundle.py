"""A bundle that is made in milliseconds: a linear classifier of the mean colour, in the forms a bundle has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.tools.tiny import LABELS
from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.core.specs import EmbeddingSpec, PreprocessSpec, TensorSpec

GRAPHS = {
    "model.onnx": ("fp32", "any", 0.0),
    "model.fp16.onnx": ("fp16", "any", 0.01),
    "model.int8.onnx": ("int8", "tensorrt", 0.05),
    "model.int8-cpu.onnx": ("int8", "cpu", 0.05),
}


def write_small_bundle(
    path: Path, *, labels: tuple[str, ...] = LABELS, engine: bool = True, embedding: bool = False
) -> Path:
    """Write it; the forms differ by noise on their weights. The engine is a file that no runtime can load. Of an
    embedding the logits are the vector, one number a label."""
    output = "embedding" if embedding else "logits"
    manifest = Manifest(
        model={"name": "mean-colour", "source": "/home/ada/models/mean-colour"},
        labels=() if embedding else labels,
        preprocess=PreprocessSpec(None, None, None, None, None),
        inputs=(TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
        outputs=(TensorSpec(output, "float32", ("batch", len(labels))),),
        task="embedding" if embedding else "single_label",
        embedding=EmbeddingSpec("mean colour", False, len(labels)) if embedding else None,
    )
    with Bundle.create(path, manifest) as editor:
        for name, (precision, target, noise) in GRAPHS.items():
            editor.path_for(name).write_bytes(_graph(len(labels), noise, output))
            editor.add(name, kind="onnx", precision=precision, target=target)
        if engine:
            name = "engines/tensorrt-rtx-int8.engine"
            editor.path_for(name).write_bytes(b"no engine")
            built_with = {"compute_capabilities": ["8.0", "8.6"]}
            editor.add(name, kind="engine", precision="int8", target="tensorrt-rtx", built_with=built_with)
    return path


def _graph(classes: int, noise: float, output: str) -> bytes:
    import onnx
    from onnx import helper, numpy_helper

    draw = np.random.default_rng(0)
    weights = draw.normal(size=(3, classes)).astype(np.float32) / 50
    weights *= 1 + noise * np.random.default_rng(1).normal(size=weights.shape).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())
