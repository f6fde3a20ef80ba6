"""OpenVINO: Intel and other x86 and Arm CPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from vitdeploy.errors import BundleError, require
from vitdeploy.runtime.base import Array, BaseRunner
from vitdeploy.specs import TensorSpec

__all__ = ["OpenVinoRunner"]


class OpenVinoRunner(BaseRunner):
    """Runs an ONNX file.

    Args:
        path: the file.
        threads: CPU threads for one call; None: OpenVINO's choice.
        compute: what float parts are computed in, "f32" or "bf16". OpenVINO on its own takes bf16 where the CPU has it,
            so that FP32 would not be FP32; here it has to be asked for.
        hint: "latency" or "throughput".
    """

    backend = "openvino"

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, compute: str = "f32", hint: str = "latency"
    ) -> None:
        super().__init__()
        self._path = os.fspath(path)
        self._threads = threads
        self._compute = compute
        self._hint = hint
        self._local = threading.local()
        self._model: Any = None

    def _open(self, stack: ExitStack) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        openvino = require("openvino", extra="cpu")
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": self._hint.upper(),
            "INFERENCE_PRECISION_HINT": self._compute,
        }
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        try:
            self._model = openvino.Core().compile_model(self._path, "CPU", config)
        except RuntimeError as error:
            line = next((part for part in reversed(str(error).strip().splitlines()) if part.strip()), "unknown error")
            raise BundleError(
                f"OpenVINO can't load {os.path.basename(self._path)}: {line.strip()}",
                hint="export it again, or upgrade: pip install --upgrade openvino",
            ) from error
        stack.callback(self._release)
        return _specs(self._model.inputs), _specs(self._model.outputs)

    def _release(self) -> None:
        self._local = threading.local()
        self._model = None

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        request = getattr(self._local, "request", None)  # one a thread: a request runs one call at a time
        if request is None:
            request = self._local.request = self._model.create_infer_request()
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        results = request.infer(arrays, share_inputs=True, share_outputs=False)
        return {spec.name: results[index] for index, spec in enumerate(self._outputs)}


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            port.any_name,
            np.dtype(port.element_type.to_dtype()).name,
            tuple(f"dim{i}" if dim.is_dynamic else dim.get_length() for i, dim in enumerate(port.partial_shape)),
        )
        for port in ports
    )
