"""Run an ONNX graph with ONNX Runtime, on the CPU or through its CUDA provider."""

from __future__ import annotations

import contextlib
import io
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitdeploy.errors import InputError, ModelError, RunnerClosedError, require
from vitdeploy.runtime.base import RunnerBase
from vitdeploy.specs import TensorSpec

__all__ = ["OnnxRuntimeRunner"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3
_DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}


class OnnxRuntimeRunner(RunnerBase):
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: CPU threads of one call; None: ONNX Runtime's choice, the physical cores.
        device: "cpu", or "cuda" or "cuda:N" for the CUDA provider of the package onnxruntime-gpu.

    Example:
        with OnnxRuntimeRunner("bundles/vit/model.onnx") as runner:
            logits = runner.infer({"image": pixels})["logits"]
    """

    backend = "onnxruntime"

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, *, device: str = "cpu") -> None:
        super().__init__()
        self._path = Path(path)
        self._threads = threads
        self._device = device
        self._session: Any = None
        self._names: list[str] = []

    def _open(self, stack: ExitStack) -> None:
        onnxruntime = require("onnxruntime", extra="gpu" if self._device != "cpu" else "cpu")
        if not self._path.is_file():
            raise ModelError(f"there is no ONNX file at {self._path}", hint="check the path")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.inter_op_num_threads = 1
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        providers = self._providers(onnxruntime)
        try:
            session = onnxruntime.InferenceSession(self._path, options, providers=providers)
        except Exception as error:  # its errors have no base class of their own
            raise ModelError(
                f"ONNX Runtime {onnxruntime.__version__} can't load {self._path}: {_first_line(error)}",
                hint="the file may be damaged or need a newer onnxruntime; export it again, or upgrade",
            ) from error
        if self._device != "cpu" and _CUDA not in session.get_providers():
            raise InputError(
                "ONNX Runtime's CUDA provider does not start on this machine",
                hint="check that nvidia-smi works and that CUDA and cuDNN fit onnxruntime-gpu; or use device='cpu'",
            )
        stack.callback(self._release)
        self._session = session
        self._inputs = tuple(_spec(node) for node in session.get_inputs())
        self._outputs = tuple(_spec(node) for node in session.get_outputs())
        self._names = [spec.name for spec in self._outputs]

    def _providers(self, onnxruntime: Any) -> list[Any]:
        if self._device == "cpu":
            return [_CPU]
        if _CUDA not in onnxruntime.get_available_providers():
            raise InputError(
                "the installed onnxruntime has no CUDA provider",
                hint="pip uninstall onnxruntime && pip install 'vitdeploy[gpu]' (never both packages at once)",
            )
        _preload_cuda(onnxruntime)
        index = self._device.partition(":")[2] or "0"
        return [(_CUDA, {"device_id": index}), _CPU]

    def _release(self) -> None:
        self._session = None

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        session = self._session
        if session is None:  # closed by another thread since it was checked
            raise RunnerClosedError("this OnnxRuntimeRunner is closed", hint="load the bundle again")
        try:
            values = session.run(self._names, feeds)
        except Exception as error:  # its errors have no base class of their own
            if "allocate" in str(error).lower() or "out of memory" in str(error).lower():
                raise InputError(
                    f"not enough memory for an input of shape {_shapes(feeds)}", hint="use a smaller batch or image"
                ) from error
            raise ModelError(
                f"ONNX Runtime failed on an input of shape {_shapes(feeds)}: {_first_line(error)}",
                hint="try another backend; if it works there, report this one",
            ) from error
        return dict(zip(self._names, values, strict=True))


def _preload_cuda(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from where pip puts them; ONNX Runtime before 1.21 looks on the system's paths alone."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses, which may be on those paths
            preload()


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(dim if isinstance(dim, (int, str)) else "unknown" for dim in node.shape)
    return TensorSpec(node.name, _DTYPES.get(kind, kind), shape)


def _shapes(feeds: dict[str, npt.NDArray[Any]]) -> str:
    return ", ".join(str(array.shape) for array in feeds.values())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
