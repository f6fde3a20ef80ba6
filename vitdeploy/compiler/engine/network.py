"""ONNX file -> TensorRT network, and what that network asks for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vitdeploy.compiler.engine.watch import explain_parser_errors
from vitdeploy.core.errors import ModelError

__all__ = ["Survey", "network_flags", "parse", "survey"]

_PASSES_ON = ("SHUFFLE", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE")  # layers that change a tensor's form, not its type


@dataclass(frozen=True)
class Survey:
    """What a network asks for.

    `layers` counts all layers, the Q/DQ among them, and layers by the type that they give. `products` counts the
    matrix products and convolutions; `int8_products` names those on two INT8 or FP8 factors, as the ONNX graph does.
    """

    layers: dict[str, int]
    products: int
    int8_products: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The lowest precision that the graph asks for."""
        for name, precision in (
            ("quantize_fp8", "fp8"),
            ("quantize", "int8"),
            ("dequantize", "int8"),
            ("float16", "fp16"),
            ("bfloat16", "bf16"),
        ):
            if self.layers.get(name):
                return precision
        return "fp32"


def network_flags(trt: ModuleType) -> int:
    """STRONGLY_TYPED where the flag exists: TensorRT 10 needs it, later ones know nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parse(trt: ModuleType, network: Any, logger: Any, path: Path) -> Any:
    """Read a graph into `network`; the parser that is returned owns its weights and has to outlive the build.

    Raises:
        ModelError: the file is damaged, or has something in it that TensorRT does not know.
    """
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        reason, hint = explain_parser_errors(parser)
        raise ModelError(f"TensorRT can't read {path.name}: {reason}", hint=hint)
    if network.num_outputs == 0 or network.num_layers == 0:  # it takes any bytes that are no ONNX for an empty graph
        raise ModelError(f"{path.name} is no ONNX graph, or is damaged", hint="copy or export it again")
    return parser


def survey(trt: ModuleType, network: Any) -> Survey:
    """Count and name what a network asks for."""
    kinds = {trt.LayerType.QUANTIZE: "quantize", trt.LayerType.DEQUANTIZE: "dequantize"}
    fp8 = getattr(trt.DataType, "FP8", None)
    types = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
    counts: Counter[str] = Counter({"all": network.num_layers})
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        if layer.type == trt.LayerType.CONSTANT or layer.num_outputs == 0:  # an assertion has no output
            continue
        name = kinds.get(layer.type) or types.get(layer.get_output(0).dtype)
        if name is not None:
            counts[name] += 1
        if fp8 is not None and layer.type == trt.LayerType.QUANTIZE and layer.get_output(0).dtype == fp8:
            counts["quantize_fp8"] += 1
    products = [layer for layer in layers if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)]
    on_int8 = _Int8Factors(trt, layers)
    return Survey(dict(counts), len(products), tuple(layer.name for layer in products if on_int8.feeds(layer)))


class _Int8Factors:
    """Which tensors come out of a DequantizeLinear, through nothing that computes."""

    def __init__(self, trt: ModuleType, layers: list[Any]) -> None:
        self._dequantize = trt.LayerType.DEQUANTIZE
        self._passes_on = {
            kind for kind in (getattr(trt.LayerType, name, None) for name in _PASSES_ON) if kind is not None
        }
        self._producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def feeds(self, layer: Any) -> bool:
        """Whether both factors of a product are dequantised INT8."""
        factors = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
        return len(factors) == 2 and all(self._quantised(tensor) for tensor in factors)

    def _quantised(self, tensor: Any) -> bool:
        while tensor is not None:
            layer = self._producers.get(tensor.name)
            if layer is None:
                return False
            if layer.type == self._dequantize:
                return True
            if layer.type not in self._passes_on:
                return False
            tensor = layer.get_input(0)
        return False
