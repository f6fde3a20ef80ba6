"""Graphs as other programs write them: PyTorch's two exporters, ONNX Runtime's quantiser and its optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vitdeploy.bundle import Bundle
from vitdeploy.compiler.lint.report import GraphReport
from vitdeploy.compiler.lint.run import lint

LAYERS = 3


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The tiny ViT by one of PyTorch's exporters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("exported")

    def export(name: str, *, attention: str, half: bool = False, **options: Any) -> Path:
        path = folder / f"{name}.onnx"
        if path.exists():
            return Path(path)
        model = transformers.ViTForImageClassification.from_pretrained(tiny_checkpoint, attn_implementation=attention)
        pixels = torch.zeros(1, 3, 32, 32)
        if half:
            model, pixels = model.half(), pixels.half()
        names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model.eval(), (pixels,), path, **names, **options, verbose=False)
        return path

    return export


def legacy(exported: Callable[..., Path], opset: int = 13, **options: Any) -> Path:
    free = {"dynamic_axes": {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}}
    name = f"legacy-{opset}-{'-'.join(options)}"
    return exported(name, attention="eager", dynamo=False, opset_version=opset, **free, **options)


def dynamo(exported: Callable[..., Path], **options: Any) -> Path:
    return exported(f"dynamo-{'-'.join(options)}", attention="sdpa", dynamo=True, external_data=False, **options)


def look(path: Path) -> GraphReport:
    (graph,) = lint(path).graphs
    return graph


def found(graph: GraphReport) -> dict[str, int]:
    """How many places each rule found."""
    return {finding.rule.id: len(finding.places) for finding in graph.findings}


def macs() -> int:
    tokens, hidden, mlp, heads, patches = 17, 48, 96, 4, 16
    linear = LAYERS * tokens * (4 * hidden * hidden + 2 * hidden * mlp)
    attention = LAYERS * 2 * heads * tokens * tokens * (hidden // heads)
    return linear + attention + patches * (3 * 8 * 8) * hidden + hidden * 10


def test_the_older_exporter_with_an_old_opset(exported: Callable[..., Path]) -> None:
    graph = look(legacy(exported))
    assert found(graph)["decomposed-layernorm"] == 2 * LAYERS + 1
    assert {"fp32-only", "no-preprocessing", "unfused-attention"} <= set(found(graph))
    assert graph.opset == 13 and graph.producer.startswith("pytorch") and graph.precision == "FP32"
    assert graph.macs == macs(), "the batch is free, and taken as one image"
    assert graph.unknown_products == 0
    layers = [place.layer for each in graph.findings if each.rule.id == "decomposed-layernorm" for place in each.places]
    assert any("layernorm_before" in layer for layer in layers), layers


def test_sizes_that_are_left_open_are_counted_as_such(exported: Callable[..., Path]) -> None:
    """As Optimum exports: every axis of the pixels is free. The tokens follow from the position embeddings."""
    free = {"dynamic_axes": {"pixel_values": {0: "batch", 1: "channels", 2: "height", 3: "width"}}}
    graph = look(exported("open", attention="sdpa", dynamo=False, opset_version=14, **free))
    assert (graph.products, graph.unknown_products) == (LAYERS * 8 + 2, 1), "the patch embedding's size is not known"
    assert graph.macs == macs() - 16 * (3 * 8 * 8) * 48
    assert {"no-preprocessing", "decomposed-layernorm"} <= set(found(graph))


def test_the_older_exporter_with_opset_17(exported: Callable[..., Path]) -> None:
    assert "decomposed-layernorm" not in found(look(legacy(exported, 17)))


def test_the_newer_exporter(exported: Callable[..., Path]) -> None:
    graph = look(dynamo(exported))
    assert {"fp32-only", "no-preprocessing"} <= set(found(graph))
    assert not {"decomposed-layernorm", "unknown-operator", "unknown-type", "control-flow"} & set(found(graph))
    assert graph.macs == macs() and graph.share == 0


def test_a_half_model_of_the_newer_exporter(exported: Callable[..., Path]) -> None:
    graph = look(dynamo(exported, half=True))
    assert graph.precision.startswith("FP16") and "fp32-only" not in found(graph)


class Reader:
    """One image for ONNX Runtime's calibration."""

    def __init__(self) -> None:
        self.left = [{"pixel_values": np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def quantized(source: Path, path: Path, **options: Any) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_static(str(source), str(path), Reader(), quant_format=quantization.QuantFormat.QDQ, **options)
    return path


def test_the_default_of_onnx_runtimes_quantiser(exported: Callable[..., Path], tmp_path: Path) -> None:
    """uint8, int32 biases, and every residual addition."""
    graph = look(quantized(legacy(exported, 17), tmp_path / "default.onnx"))
    rules = found(graph)
    assert {"asymmetric-qdq", "quantized-bias", "qdq-without-product", "fp32-remainder"} <= set(rules)
    assert rules["quantized-residual"] == 2 * LAYERS
    assert graph.share is not None and graph.share > 0.9 and graph.precision == "INT8 and FP32"


def test_the_same_quantiser_told_what_tensorrt_wants(exported: Callable[..., Path], tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    graph = look(
        quantized(
            legacy(exported, 17),
            tmp_path / "told.onnx",
            op_types_to_quantize=["MatMul"],
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            extra_options={**options, "MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
    )
    wrong = {finding.rule.id for finding in graph.findings if finding.rule.severity == "error"}
    assert not wrong
    assert "fp32-remainder" in found(graph) and "quantized-residual" not in found(graph)


def test_dynamic_quantisation(exported: Callable[..., Path], tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_dynamic(str(legacy(exported, 17)), str(tmp_path / "dynamic.onnx"))
    assert "integer-operators" in found(look(tmp_path / "dynamic.onnx"))


def test_what_onnx_runtimes_optimiser_fuses(exported: Callable[..., Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(legacy(exported)), options, providers=["CPUExecutionProvider"])
    assert any(node.domain == "com.microsoft" for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert "unknown-operator" in found(look(tmp_path / "optimised.onnx"))


def test_a_bundle_of_ours_is_sound(tiny_bundle: Path) -> None:
    report = lint(tiny_bundle)
    assert [graph.file for graph in report.graphs] == [a.path for a in Bundle.open(tiny_bundle).select(kind="onnx")]
    rules = {graph.file: set(found(graph)) for graph in report.graphs}
    assert rules["model.onnx"] == {"fp32-only"}
    assert not rules["model.fp16.onnx"]
    assert rules["model.int8.onnx"] == {"products-left-out"}
    assert report.worst == "info"
