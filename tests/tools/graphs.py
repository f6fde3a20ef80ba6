"""Graphs from ONNX's text form: parsed, run, looked at."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime


def parse(text: str, **arrays: np.ndarray) -> ir.Model:
    """The model of an ONNX text in which `{W}` stands for the numbers of the array w."""
    for name, array in arrays.items():
        numbers = ", ".join(f"{value:.9g}" for value in array.ravel())
        text = text.replace(f"{{{name.upper()}}}", f"{{{numbers}}}")
    return ir.from_onnx_text(text)


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def drop_unused(model: ir.Model) -> None:
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
