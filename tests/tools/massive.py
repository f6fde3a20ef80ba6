"""A model whose residual stream is as large as one likes, and a LayerNormalization that suffers from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir


def louder(checkpoint: Path, factor: float, folder: Path) -> Path:
    """The checkpoint with all that is written to its residual stream times `factor`: LayerNorm cancels it."""
    import torch
    from transformers import AutoModelForImageClassification

    module = AutoModelForImageClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embeddings" in name or ".o_proj." in name or ".fc2." in name:
                parameter.mul_(factor)
    module.save_pretrained(folder)
    shutil.copy(checkpoint / "preprocessor_config.json", folder)
    return folder


def decompose_layer_norm(path: Path, written: Path) -> ir.Model:
    """The graph with each LayerNormalization in single steps, as exporters below opset 17 write it."""
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.load(path)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        x, scale, bias = node.input
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(epsilon), f"{node.name}.eps"))
        y, axes = node.output[0], f"{node.name}.axes"
        proto.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), axes))
        steps = [
            ("ReduceMean", [x, axes], "mean"),
            ("Sub", [x, f"{y}.mean"], "centred"),
            ("Mul", [f"{y}.centred", f"{y}.centred"], "square"),
            ("ReduceMean", [f"{y}.square", axes], "variance"),
            ("Add", [f"{y}.variance", f"{node.name}.eps"], "safe"),
            ("Sqrt", [f"{y}.safe"], "deviation"),
            ("Div", [f"{y}.centred", f"{y}.deviation"], "normal"),
            ("Mul", [f"{y}.normal", scale], "scaled"),
            ("Add", [f"{y}.scaled", bias], None),
        ]
        for op_type, inputs, name in steps:
            out = y if name is None else f"{y}.{name}"
            nodes.append(helper.make_node(op_type, inputs, [out], name=f"{node.name}/{name or 'shifted'}"))
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(nodes)
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.save(proto, written)
    return ir.load(written)
