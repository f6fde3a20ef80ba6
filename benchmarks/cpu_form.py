"""The INT8 form for CPUs taken apart, for benchmarks that compute it in another way, and their clock beside PyTorch."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from peers import CLOCKS, Call, Form, interleaved, open_form

from vitdeploy.bench.statistics import speedup
from vitdeploy.compiler.graph.compose import PIXEL_VALUES
from vitdeploy.compiler.graph.cut import cut
from vitdeploy.compiler.graph.values import constant

PYTORCH, OURS = "PyTorch eager", "ours, ONNX Runtime"
_LINEARS = 6  # of a layer


@dataclass(frozen=True)
class Product:
    """(x - zero) scale W weight_scale + bias, x uint8; weight int8 (inputs, outputs), the vectors (outputs,)."""

    scale: float
    zero: int
    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Norm:
    weight: np.ndarray
    bias: np.ndarray
    epsilon: float


@dataclass(frozen=True)
class Layer:
    before: Norm
    after: Norm
    query: Product
    key: Product
    value: Product
    output: Product
    fc1: Product
    fc2: Product


@dataclass(frozen=True)
class PlainVit:
    """The constants of a ViT whose class token is classified.

    `kernel` is (width, 3, side, side), `positions` (1, tokens, width) with the class token's first, `classifier`
    (classes, width).
    """

    kernel: np.ndarray
    kernel_bias: np.ndarray
    positions: np.ndarray
    layers: tuple[Layer, ...]
    norm: Norm
    classifier: np.ndarray
    classifier_bias: np.ndarray


def cpu_form(bundle: Path, threads: int) -> tuple[PlainVit, Call]:
    """The INT8 form for CPUs from pixel values on, and ONNX Runtime's call of it."""
    core = cut(ir.load(bundle / "model.int8-cpu.onnx"), PIXEL_VALUES, "logits")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core.onnx"
        ir.save(core, path)
        return read(core), open_form(Form(OURS, path, "onnxruntime", ""), threads)


def read(core: ir.Model) -> PlainVit:
    by_kind: dict[str, list[ir.Node]] = {}
    for node in core.graph:
        by_kind.setdefault(node.op_type, []).append(node)
    products = [_product(node) for node in by_kind["MatMulIntegerToFloat"]]
    *norms, last = (_norm(node) for node in by_kind["LayerNormalization"])
    layers = tuple(
        Layer(*norms[2 * place : 2 * place + 2], *products[_LINEARS * place : _LINEARS * (place + 1)])
        for place in range(len(products) // _LINEARS)
    )
    added = (constant(value) for node in by_kind["Add"] for value in node.inputs)
    positions = next(values for values in added if values is not None)
    return PlainVit(*_with_bias(by_kind["Conv"][0]), positions, layers, last, *_with_bias(by_kind["Gemm"][0]))


def side_by_side(*products: Product) -> Product:
    """Products of one input as one."""
    weight, scale, bias = (
        np.concatenate([getattr(product, name) for product in products], axis=-1)
        for name in ("weight", "weight_scale", "bias")
    )
    return Product(products[0].scale, products[0].zero, weight, scale, bias)


def against_eager(calls: dict[str, Call], edge: int, rounds: int) -> dict[str, Any]:
    """Times of all calls, their ratios to PyTorch eager, and how far the last one's logits are from ours."""
    images = np.random.default_rng(0).standard_normal((4, 1, 3, edge, edge)).astype(np.float32)
    last = list(calls)[-1]
    expected, found = (np.concatenate([np.asarray(calls[name](image)) for image in images]) for name in (OURS, last))
    spread = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f"logits differ from those of {OURS} by up to {spread:.1%} of the largest")
    times = interleaved(calls, images[0], rounds, CLOCKS["wall"])
    ratios = {name: speedup(times[PYTORCH], times[name]) for name in calls if name != PYTORCH}
    for name, values in times.items():
        print(f"{name:40}{np.median(values):8.1f} ms", end="")
        print("  {:.2f} [{:.2f}, {:.2f}]".format(ratios[name][0], *ratios[name][1]) if name in ratios else "")
    return {"rounds": rounds, "logits_spread": spread, "times_pytorch_eager": ratios, "samples_ms": times}


def _product(node: ir.Node) -> Product:
    scale, zero, weight, weight_scale, bias = (constant(node.inputs[place]) for place in (2, 4, 1, 3, 6))
    return Product(float(scale), int(zero), weight, weight_scale, bias)


def _norm(node: ir.Node) -> Norm:
    weight, bias = (constant(value) for value in node.inputs[1:3])
    return Norm(weight, bias, node.attributes["epsilon"].as_float())


def _with_bias(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Weights (outputs, ...) of a Conv or Gemm, and their biases, zeros where it has none."""
    weight, *bias = (constant(value) for value in node.inputs[1:])
    return weight, bias[0] if bias else np.zeros(len(weight), np.float32)
