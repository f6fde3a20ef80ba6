"""TensorRT's account of an engine, read; the samples follow NVIDIA's documentation of its fields in 10 and 11."""

from __future__ import annotations

import json

import pytest

from tests.tools.engine_layers import LAYERS, layer
from vitdeploy.backends.tensorrt.layers import EngineLayers, read_layers
from vitdeploy.core.errors import EngineError

TEN = {"Layers": LAYERS, "Bindings": ["image", "logits"]}
ELEVEN = {
    "Layers": LAYERS,
    "I/O Tensors": [
        {
            "Name": name,
            "IOMode": mode,
            "DataType": kind,
            "Dimensions": [-1, 10],
            "Location": "Device",
            "IsShapeInferenceIO": False,
            "ProfileInfo": [{"MinShape": [1], "OptShape": [1], "MaxShape": [8], "Format": "Row major (kLINEAR)"}],
        }
        for name, mode, kind in (("image", "Input", "UInt8"), ("logits", "Output", "Float"))
    ],
}


@pytest.fixture(params=[TEN, ELEVEN], ids=["TensorRT 10", "TensorRT 11"])
def account(request: pytest.FixtureRequest) -> EngineLayers:
    return read_layers(json.dumps(request.param))


def test_both_spellings_say_the_same(account: EngineLayers) -> None:
    assert account.tensors == ("image", "logits")
    assert account.detailed
    assert [layer.precision for layer in account.layers] == [
        *("other", "fp32", "int8", "fp16", "fp16", "bf16", "int8", "other"),
    ]


def test_precisions_and_fusions_are_counted(account: EngineLayers) -> None:
    assert account.by_precision == {"int8": 2, "fp16": 2, "reformat": 1, "fp32": 1, "bf16": 1, "other": 1}
    assert [layer.nodes for layer in account.fused] == [
        ("node_Cast_0", "node_Mul_1"),
        ("q", "k", "v"),
        ("scores", "softmax", "context"),
        ("fc1", "gelu"),
        ("add", "quantize"),
    ]
    data = account.to_json()
    assert json.loads(json.dumps(data)) == data and data["fused"] == 5 and len(data["layers"]) == 8


def test_the_share_that_really_runs_in_int8(account: EngineLayers) -> None:
    share = account.int8_share(["q", "k", "v", "fc1", "fc2", "gone"])
    assert (share.asked, share.running) == (6, 4)
    assert share.elsewhere == (("fc1", "fc1_myl0_3", "fp16"),)
    assert share.unknown == ("gone",)
    assert account.int8_share([]).to_json() == {"asked": 0, "running": 0, "elsewhere": [], "unknown": []}


def test_an_engine_that_tells_names_only() -> None:
    account = read_layers(json.dumps({"Layers": ["fc1 + gelu", "/head/MatMul_myl0_7"], "Bindings": ["x"]}))
    assert not account.detailed
    assert [layer.nodes for layer in account.layers] == [("fc1", "gelu"), ("/head/MatMul",)]
    assert account.int8_share(["fc1"]).elsewhere == (("fc1", "fc1 + gelu", "not said"),)


def test_newer_spellings_of_a_tensors_type_and_control_characters() -> None:
    entry = layer("x", "gemm", "Int8", "Half", [], key="Datatype")
    text = json.dumps({"Layers": [entry], "I/O Tensors": []}).replace(
        '"Metadata": ""', '"Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"'
    )
    (read,) = read_layers(text).layers
    assert (read.precision, read.nodes) == ("int8", ("a", "b"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers": [], "I/O Tensors": [{}]}']
)
def test_what_is_no_account(text: str) -> None:
    with pytest.raises(EngineError, match="can't be read") as caught:
        read_layers(text)
    assert caught.value.hint
