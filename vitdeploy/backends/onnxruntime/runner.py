"""Run an ONNX graph with ONNX Runtime, on the CPU or through its CUDA, TensorRT or OpenVINO provider."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.base import RunnerBase
from vitdeploy.backends.dlpack import CUDA, DeviceArray
from vitdeploy.bundle.graphs import GraphFile, exact_bytes, load_graph, session_of
from vitdeploy.core.errors import InputError, ModelError, OutOfMemoryError, VitdeployError, require
from vitdeploy.core.machine import quota_threads
from vitdeploy.core.specs import TensorSpec
from vitdeploy.core.text import first_line

__all__ = ["OnnxRuntimeRunner"]

_CPU = "CPUExecutionProvider"
_PROVIDERS = {  # name: (ONNX Runtime's name, the package that brings it)
    "cpu": (_CPU, "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}
_NOTHING_BUT_FATAL = 4  # of its log on standard error: errors are raised
_NO_MEMORY = ("allocate", "bad_alloc", "out of memory")
_DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}


class OnnxRuntimeRunner(RunnerBase):
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: CPU threads of one call; None: ONNX Runtime's choice, the physical cores.
        device: "cpu", or "cuda" or "cuda:N" for a GPU.
        provider: "cpu", "cuda", "tensorrt" or "openvino"; None: the one of the device, "cpu" or "cuda". What a provider
            does not take of the graph runs on "cuda" or "cpu".
        weights: arrays to take, not copied, in the place of the file that the graph names for these weights. They are
            not packed for faster products either, which is for graphs that run a few times.
        graph: the serialised graph, where it is not the file's; `path` is what errors call it.
        spinning: whether threads wait for the next call with their cores kept busy for a while, which makes that call
            faster and what else runs on these cores slower.
        hashes: of the file and of those with its weights, as a bundle's manifest has them; None: it is trusted.

    Example:
        with OnnxRuntimeRunner("bundles/vit/model.onnx") as runner:
            logits = runner.infer({"image": pixels})["logits"]
    """

    backend = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        *,
        device: str = "cpu",
        provider: str | None = None,
        weights: Mapping[str, npt.NDArray[Any]] | None = None,
        graph: bytes | None = None,
        spinning: bool = True,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        provider = provider or device.partition(":")[0]
        if provider not in _PROVIDERS:
            raise InputError(f"there is no provider {provider!r}", hint=f"one of {', '.join(_PROVIDERS)}")
        self._provider = provider
        self._path = Path(path)
        self._threads = threads
        self._device = device
        self._weights = dict(weights or {})
        self._graph = graph
        self._hashes = hashes
        self._spinning = spinning
        self._session: Any = None
        self._names: list[str] = []

    def _open(self, stack: ExitStack) -> None:
        onnxruntime = require("onnxruntime", extra="gpu" if self._device != "cpu" else "cpu")
        _end_forks()
        if self._graph is None and not self._path.is_file():
            raise ModelError(f"there is no ONNX file at {self._path}", hint="check the path")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _NOTHING_BUT_FATAL
        options.inter_op_num_threads = 1
        exact_bytes(options)
        threads = self._threads or quota_threads()
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = self._providers(onnxruntime)
        if self._weights:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
            options.add_external_initializers(list(self._weights), values)
            options.add_session_config_entry("session.disable_prepacking", "1")  # it would copy every one of them
        if not self._spinning:
            options.add_session_config_entry("session.force_spinning_stop", "1")

        def started(file: GraphFile) -> Any:
            weights = file.weights
            if weights and not hasattr(options, "add_external_initializers_from_files_in_memory"):  # to 1.23 at least
                if self._hashes is not None:  # it would read the files again, after they were hashed
                    raise ModelError(
                        f"ONNX Runtime {onnxruntime.__version__} takes no weights from files beside {self._path}",
                        hint="pip install --upgrade onnxruntime; where that brings none, --backend openvino",
                    )
                file, weights = GraphFile(str(self._path), {}), {}
            if weights:
                sizes = list(map(len, weights.values()))
                options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
            try:
                return session_of(onnxruntime, file.source, options, providers)
            except Exception as error:  # its errors have no base class of their own
                said = first_line(error).replace(str(file.source), str(self._path))
                raise ModelError(
                    f"ONNX Runtime {onnxruntime.__version__} can't load {self._path}: {said}",
                    hint="the file may be damaged or need a newer onnxruntime; export it again, or upgrade",
                ) from error

        if self._weights or self._graph is not None:  # weights that are given have no file to be read
            session = started(GraphFile(self._graph or str(self._path), {}))
        else:
            session = load_graph(self._path, self._hashes, started)
        if _PROVIDERS[self._provider][0] not in session.get_providers():
            raise InputError(
                f"ONNX Runtime's {_PROVIDERS[self._provider][0]} does not start on this machine",
                hint="for a GPU, check that nvidia-smi works and that CUDA, cuDNN and TensorRT fit onnxruntime-gpu;"
                " or use device='cpu'",
            )
        stack.callback(self._release)
        self._session = session
        self._inputs = tuple(_spec(node) for node in session.get_inputs())
        self._outputs = tuple(_spec(node) for node in session.get_outputs())
        self._names = [spec.name for spec in self._outputs]

    def _providers(self, onnxruntime: Any) -> list[Any]:
        """What may run the graph, first choice first, each with its options."""
        if self._provider == "cpu":
            return [_CPU]
        name, package = _PROVIDERS[self._provider]
        if name not in onnxruntime.get_available_providers():
            raise InputError(
                f"the installed onnxruntime has no {name}",
                hint=f"pip uninstall onnxruntime && pip install {package} (never two of these packages at once)",
            )
        if self._provider == "openvino":
            # Left alone, OpenVINO computes in bfloat16 where it can, and what is called FP32 would not be.
            options = {"device_type": "CPU", "precision": "ACCURACY"}
            if self._threads is not None:
                options["num_of_threads"] = str(self._threads)
            return [(name, options), _CPU]
        _preload_cuda(onnxruntime)
        gpu = {"device_id": self._device.partition(":")[2] or "0"}
        # TensorRT's own switches for FP16 and INT8 stay off: the graph says what is computed in what.
        cuda = (_PROVIDERS["cuda"][0], {**gpu, "use_tf32": "1"})
        return [*([(name, gpu)] if self._provider == "tensorrt" else []), cuda, _CPU]

    def _release(self) -> None:
        self._session = None

    def infer_checked(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """`infer` for feeds that fit."""
        session = self._session
        if session is None:  # closed by another thread since it was checked
            raise self._closed()
        names = self._names
        try:
            values = session.run(names, feeds)
        except Exception as error:  # its errors have no base class of their own
            raise _failure(error, feeds) from error
        return {names[0]: values[0]} if len(names) == 1 else dict(zip(names, values, strict=True))

    @property
    def device_memory(self) -> tuple[int, int] | None:
        """The GPU's memory for the CUDA provider. TensorRT's runs there too, but waits for no stream on which an input
        may still be written, so its inputs come from the machine's memory."""
        return (CUDA, int(self._device.partition(":")[2] or 0)) if self._provider == "cuda" else None

    def infer_on_device(self, feeds: Mapping[str, DeviceArray]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once on uint8 inputs that lie where it runs; see `infer`."""
        self._check_open()

        session = self._session
        if session is None:
            raise self._closed()
        try:
            binding = session.io_binding()
            for name, array in feeds.items():
                where = "cuda" if array.device[0] == CUDA else "cpu"
                binding.bind_input(name, where, array.device[1], np.uint8, array.shape, array.address)
            for name in self._names:
                binding.bind_output(name)
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            values = binding.copy_outputs_to_cpu()
        except Exception as error:
            raise _failure(error, feeds) from error
        return dict(zip(self._names, values, strict=True))


def _failure(error: Exception, feeds: Mapping[str, npt.NDArray[Any] | DeviceArray]) -> VitdeployError:
    """What went wrong in a run, as an error of our own."""
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY):
        return OutOfMemoryError(
            f"not enough memory for an input of shape {_shapes(feeds)}", hint="use a smaller batch or image"
        )
    return ModelError(
        f"ONNX Runtime failed on an input of shape {_shapes(feeds)}: {first_line(error)}",
        hint="try another backend; if it works there, report this one",
    )


def _preload_cuda(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from where pip puts them; ONNX Runtime before 1.21 looks on the system's paths alone."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses, which may be on those paths
            preload()


@functools.cache
def _end_forks() -> None:
    """Let a process that forks from this one end when Python is done in it.

    A destructor of ONNX Runtime would wait there for threads that are not its own, for ever; so the process ends with
    its status before C comes to those. Where the C library has no `on_exit` (musl, macOS) it stays as it is.
    """
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "on_exit") and hasattr(os, "register_at_fork"):
        leave = ctypes.cast(libc._exit, ctypes.c_void_p)
        os.register_at_fork(after_in_child=lambda: libc.on_exit(leave, None))


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(dim if isinstance(dim, (int, str)) else "unknown" for dim in node.shape)
    return TensorSpec(node.name, _DTYPES.get(kind, kind), shape)


def _shapes(feeds: Mapping[str, npt.NDArray[Any] | DeviceArray]) -> str:
    return ", ".join(str(array.shape) for array in feeds.values())
