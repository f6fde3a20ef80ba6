"""ONNX Runtime's providers: one that does not start is an error, never a run on the CPU under its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.core.errors import InputError


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_a_provider_that_does_not_start_is_an_error(
    provider: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime says that it has it, and then goes on without: as where a library of CUDA is missing."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if provider in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime really has it")
    there = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, *there])
    name = "cuda" if provider.startswith("CUDA") else "tensorrt"
    runner = OnnxRuntimeRunner(tiny_bundle / "model.onnx", device="cuda", provider=name)
    with pytest.raises(InputError, match=f"{provider} does not start") as error, runner:
        pass
    assert "device='cpu'" in str(error.value.hint)
