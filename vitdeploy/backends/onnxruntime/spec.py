"""ONNX Runtime and, by name alone, its providers that are engines of their own."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.backends.registry import BackendSpec, Need, Offer, RunnerSpec, register
from vitdeploy.core.machine import release, version
from vitdeploy.core.precisions import engine_order, load_order

if TYPE_CHECKING:
    from vitdeploy.backends.base import Runner

_SQUARE = ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88))
_ANSWERS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


def _open(spec: RunnerSpec) -> Runner:
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner

    provider = spec.backend.partition("-")[2] or None
    return OnnxRuntimeRunner(spec.path, threads=spec.threads, device=spec.device, provider=provider, hashes=spec.hashes)


def _other_tensorrt() -> tuple[str, str] | None:
    """Its TensorRT provider is linked to one major version of TensorRT, which its file names."""
    spec, installed = util.find_spec("onnxruntime"), version("tensorrt")
    if spec is None or spec.origin is None or installed is None:  # a system's own TensorRT says no version
        return None
    for provider in Path(spec.origin).parent.glob("capi/*onnxruntime_providers_tensorrt.*"):
        needed = re.search(rb"nvinfer(?:\.so\.|_)(\d+)", provider.read_bytes())
        if needed is not None and int(needed[1]) != release(installed)[0]:
            major = int(needed[1])
            return (
                f"ONNX Runtime {version('onnxruntime-gpu')} needs TensorRT {major}, and {installed} is installed",
                f"pip install 'tensorrt-cu13>={major},<{major + 1}' (for CUDA 12 tensorrt-cu12) in an environment of"
                " its own, or use the engines of TensorRT itself",
            )
    return None


register(
    BackendSpec(
        name="onnxruntime",
        title="ONNX Runtime",
        takes="onnx",
        offers=(
            Offer("cpu", studied=("tensorrt",)),
            Offer("cuda", ("any",), precisions=lambda: load_order("cuda"), package="onnxruntime-gpu"),
        ),
        needs=(Need("onnxruntime", "onnxruntime"),),
        extra="cpu",
        open=_open,
        listed=10,
        order=lambda: 30,
        tf32=True,
        answers=_ANSWERS,
        mark=_SQUARE,
    )
)
register(
    BackendSpec(
        name="onnxruntime-tensorrt",
        title="ONNX Runtime's TensorRT",
        takes="onnx",
        offers=(Offer("cuda", ("tensorrt", "any"), precisions=engine_order),),
        needs=(Need("onnxruntime", "onnxruntime-gpu"),),
        extra="gpu",
        open=_open,
        listed=11,
        order=None,
        obstacle=_other_tensorrt,
        tf32=True,
        answers=(*_ANSWERS, "tensorrt"),
        mark=_SQUARE,
    )
)
register(
    BackendSpec(
        name="onnxruntime-openvino",
        title="ONNX Runtime's OpenVINO",
        takes="onnx",
        offers=(Offer("cpu"),),
        needs=(Need("onnxruntime", "onnxruntime-openvino"),),
        extra="cpu",
        open=_open,
        listed=12,
        order=None,
        answers=_ANSWERS,
        mark=_SQUARE,
    )
)
