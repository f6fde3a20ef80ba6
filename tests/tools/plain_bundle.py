"""A bundle whose only graph is a few bytes: enough for what is not about graphs."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec, TensorSpec

MANIFEST = Manifest(
    model={"name": "tiny", "parameters": 3},
    labels=("cat", "dog"),
    preprocess=PreprocessSpec(
        ResizeSpec("bicubic", height=8, width=8), None, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    ),
    inputs=(TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
    outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
)


def make(path: Path, content: bytes = b"one") -> Bundle:
    with Bundle.create(path, MANIFEST) as editor:
        editor.path_for("model.onnx").write_bytes(content)
        editor.add("model.onnx", kind="onnx", precision="fp32")
    return Bundle.open(path)


def replace_model(bundle: Bundle, content: bytes) -> None:
    with bundle.edit() as editor:
        editor.path_for("model.onnx").write_bytes(content)
        editor.add("model.onnx", kind="onnx", precision="fp32")


def model_of(path: Path) -> bytes:
    bundle = Bundle.open(path)
    bundle.verify()
    artifact = bundle.find(kind="onnx")
    assert artifact is not None
    return bundle.file(artifact).read_bytes()
