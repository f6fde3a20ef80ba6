"""ONNX Runtime: any CPU, and NVIDIA GPUs where onnxruntime-gpu is installed and asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from vitdeploy.errors import BundleError, DependencyError, require
from vitdeploy.runtime.base import Array, BaseRunner, dynamic_shape
from vitdeploy.specs import TensorSpec

__all__ = ["OnnxRuntimeRunner"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeRunner(BaseRunner):
    """Runs an ONNX file.

    Args:
        path: the file.
        threads: CPU threads for one call; None: ONNX Runtime's choice, one a core.
        device: "cpu" or "cuda".
    """

    backend = "onnxruntime"

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__()
        self._path = os.fspath(path)
        self._threads = threads
        self._device = device
        self._session: Any = None
        self._names: list[str] = []

    def _open(self, stack: ExitStack) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        onnxruntime = require("onnxruntime", extra="cpu")
        provider = _PROVIDERS[self._device]
        if provider not in onnxruntime.get_available_providers():
            raise DependencyError(
                f"this onnxruntime has no {provider}", hint="pip uninstall onnxruntime, then pip install 'vitdeploy[gpu]'"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; warnings are about fallbacks that change no result
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            self._session = onnxruntime.InferenceSession(
                self._path, options, providers=list(dict.fromkeys([provider, _PROVIDERS["cpu"]]))
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BundleError(
                f"ONNX Runtime can't load {os.path.basename(self._path)}: {line}",
                hint="export it again, or upgrade: pip install --upgrade onnxruntime",
            ) from error
        stack.callback(self._release)
        self._names = [value.name for value in self._session.get_outputs()]
        return _specs(self._session.get_inputs()), _specs(self._session.get_outputs())

    def _release(self) -> None:
        self._session = None

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        return dict(zip(self._names, self._session.run(self._names, arrays), strict=True))


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(v.name, _DTYPES.get(v.type, v.type), dynamic_shape(v.shape)) for v in values)
