"""The parts of TensorRT that the runner uses, on the simulated GPU of `simulated_cuda`, for machines that have none.

Contexts find no memory where there is none, scratch memory is written to, and a CUDA graph is bad once its context was
touched. TensorRT-RTX has its runtime configuration, and compiles once for each shape. Engines are JSON; the model is
the mean colour times a matrix. That the real modules have all these names, tests/backends/tensorrt checks against them.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.tools.simulated_cuda import ALIGNMENT, SimulatedCuda, Status
from vitdeploy.backends.tensorrt.runner import TensorRTRunner
from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.core import machine
from vitdeploy.core.specs import PreprocessSpec, TensorSpec


class DataType(Enum):
    FLOAT = 0
    UINT8 = 1


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class LayerInformationFormat(Enum):
    JSON = 1


class ILogger:
    ERROR = 1
    INTERNAL_ERROR = 0

    def log(self, severity: int, message: str) -> None: ...


class IOutputAllocator:
    pass


class SimulatedTensorRT(ModuleType):
    """tensorrt: engines of one input `image` and one output `logits`."""

    DataType, TensorIOMode, ILogger, IOutputAllocator = DataType, TensorIOMode, ILogger, IOutputAllocator
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    LayerInformationFormat = LayerInformationFormat

    def __init__(self, cuda: SimulatedCuda, version: str = "11.4.1.6") -> None:
        super().__init__(f"tensorrt of {id(self)}")  # a name of its own: one logger per module
        self.__version__ = version
        self.cuda = cuda
        self.fail_next: str | None = None
        self.contexts = 0
        self.most_contexts: int | None = None  # more than so many find no memory

        self.compiled = 0  # kernels, one for each shape that was new

    def fails(self, logger: Any) -> bool:
        """Whether this call is the one that shall fail; then its reason is logged."""
        reason, self.fail_next = self.fail_next, None
        if reason is not None:
            logger.log(ILogger.ERROR, reason)
        return reason is not None

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    def Refitter(self, engine: Engine, logger: Any) -> Refitter:
        return Refitter(engine, logger)

    def OnnxParserRefitter(self, refitter: Refitter, logger: Any) -> ParserRefitter:
        return ParserRefitter(refitter)


class SimulatedTensorRTRtx(SimulatedTensorRT):
    """tensorrt_rtx."""

    CudaGraphStrategy = CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(self, cuda: SimulatedCuda, version: str = "1.7.1.116") -> None:
        super().__init__(cuda, version)


class RuntimeCache:
    """The shapes that kernels were compiled for, and the machine that they are of."""

    def __init__(self, trt: SimulatedTensorRT) -> None:
        self.machine = [trt.__version__, trt.cuda.on()]
        self.shapes: list[list[int]] = []

    def deserialize(self, blob: bytes) -> bool:
        try:
            found = json.loads(blob)
        except ValueError:
            return False
        if found["machine"] == self.machine:
            self.shapes = found["shapes"]
        return bool(found["machine"] == self.machine)

    def serialize(self) -> bytes:
        return json.dumps({"machine": self.machine, "shapes": self.shapes}).encode()


class RuntimeConfig:
    def __init__(self, trt: SimulatedTensorRT) -> None:
        self.trt = trt
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.trt)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Refitter:
    """Takes the weights of an engine: any file whose first bytes are the engine's `weights`."""

    def __init__(self, engine: Engine, logger: Any) -> None:
        self.engine, self.logger = engine, logger
        self.found = False

    def refit_cuda_engine(self) -> bool:
        self.engine.has_weights = self.found
        return self.found

    def get_missing_weights(self) -> list[str]:
        return [] if self.found else ["layers.0.weight", "layers.1.weight"]


class ParserRefitter:
    def __init__(self, refitter: Refitter) -> None:
        self.refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        assert isinstance(path, str)
        with open(path, "rb") as file:
            self.refitter.found = file.read().startswith(self.refitter.engine.plan["weights"].encode())
        if not self.refitter.found:
            self.refitter.logger.log(ILogger.ERROR, "weights are of another model")
        return self.refitter.found


class Runtime:
    def __init__(self, trt: SimulatedTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        if self.trt.fails(self.logger):
            return None
        try:
            return Engine(self, json.loads(data))
        except ValueError:
            self.logger.log(ILogger.ERROR, "Magic tag does not match\n")
            return None


class Inspector:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        return json.dumps({"Layers": self.engine.plan.get("layers", []), "Bindings": ["image", "logits"]})


class Engine:
    num_io_tensors = 2
    num_aux_streams = 0

    def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
        self.runtime, self.plan = runtime, plan
        self.has_weights = "weights" not in plan
        self.session: Any = None

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self._scratch_bytes(tuple(self.plan["profiles"][profile]["max"]))

    def _answer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What `model` says, or ONNX Runtime of the graph that the plan names as `onnx`."""
        if "onnx" not in self.plan:
            return model(pixels, self.plan["classes"])
        if self.session is None:
            from onnxruntime import InferenceSession

            self.session = InferenceSession(self.plan["onnx"])
        return np.asarray(self.session.run(["logits"], {"image": pixels})[0], np.float32)

    def _scratch_bytes(self, shape: tuple[int, ...]) -> int:
        """None of an engine with `no_scratch`, or for less than `scratch_from` images."""
        none = self.plan.get("no_scratch") or shape[0] < self.plan.get("scratch_from", 0)
        return 0 if none else scratch_bytes(shape)

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if name == "image" else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, -1, -1, 3] if name == "image" else [-1, self.plan["classes"]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert name == "image"
        return [self.plan["profiles"][profile][key] for key in ("min", "opt", "max")]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.runtime.trt)

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy | RuntimeConfig) -> Context | None:
        config = strategy if isinstance(strategy, RuntimeConfig) else None
        assert (strategy if config is None else config.strategy) is ExecutionContextAllocationStrategy.USER_MANAGED
        assert (config is not None) == isinstance(self.runtime.trt, SimulatedTensorRTRtx)
        if not self.has_weights:
            return None
        if self.runtime.trt.contexts == self.runtime.trt.most_contexts:
            self.runtime.logger.log(ILogger.ERROR, "CUDA error 2: out of memory")
            return None
        self.runtime.trt.contexts += 1
        return Context(self, config)


class Context:
    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self.engine, self.config = engine, config
        self.profile: int | None = None
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.allocator: Any = None
        self.changes = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.engine.runtime.trt.cuda.streams
        self.changes += 1
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        self.changes += 1
        limits = self.engine.plan["profiles"][self.profile]
        self.shape = shape
        return all(low <= size <= high for low, size, high in zip(limits["min"], shape, limits["max"], strict=True))

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shape is not None
        return self.engine._scratch_bytes(self.shape)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size > 0, "no memory is no memory to set"
        self.changes += 1
        self.scratch = address, size

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        return (-1 if self.engine.plan.get("data_dependent") else self.shape[0], self.engine.plan["classes"])

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, f"TensorRT asks that {ALIGNMENT} divides an address"
        self.changes += 1
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: IOutputAllocator) -> bool:
        assert name == "logits" and isinstance(allocator, IOutputAllocator) and self.allocator is None
        self.allocator = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.engine.runtime.trt
        cuda = trt.cuda
        assert stream in cuda.streams
        assert cuda.device_of[stream] == cuda.on(), "the thread's device is not the stream's"
        if trt.fails(self.engine.runtime.logger):
            return False
        shape, classes, changes = self.shape, self.engine.plan["classes"], self.changes
        assert shape is not None
        if self.allocator is not None:
            address = self.allocator.reallocate_output_async("logits", 0, shape[0] * classes * 4, 256, stream)
            assert isinstance(address, int), "a pointer is a number"
            if address == 0:
                return False
            self.addresses["logits"] = address
            self.allocator.notify_shape("logits", (shape[0], classes))
        cuda.reads(self.addresses["image"])
        needed, (scratch, size) = self.update_device_memory_size_for_shapes(), self.scratch
        profiles = range(self.engine.num_optimization_profiles)
        if size == 0 and any(map(self.engine.get_device_memory_size_for_profile_v2, profiles)):
            self.engine.runtime.logger.log(ILogger.ERROR, "Parameter check failed, condition: noDeviceMemory")
            return False
        assert size >= needed and (size == 0 or scratch in cuda.device), "scratch memory is too small, or was freed"
        if self.engine.plan.get("synchronises") and cuda.cudaStreamSynchronize(stream)[0] is not Status.cudaSuccess:
            self.engine.runtime.logger.log(ILogger.ERROR, "operation not permitted when stream is capturing")
            return False
        if self.config is not None:
            assert self.config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER" and self.config.cache
            if [*shape] not in self.config.cache.shapes:
                self.config.cache.shapes.append([*shape])
                trt.compiled += 1

        def work() -> None:
            assert self.changes == changes, "a context was changed between its capture and the launch"
            if needed:
                ctypes.memset(ctypes.addressof(cuda.device[scratch]), stream % 251, needed)
            source, target = cuda.device[self.addresses["image"]], cuda.device[self.addresses["logits"]]
            pixels = np.frombuffer(source, np.uint8, count=int(np.prod(shape))).reshape(shape)
            answer = np.frombuffer(target, np.float32, count=shape[0] * classes)
            answer[:] = self.engine._answer(pixels).ravel()
            if needed:
                own = set(bytes(cuda.device[scratch])[:needed]) == {stream % 251}
                assert own, "two streams used one scratch memory"

        cuda.start(stream, work)
        return True


def scratch_bytes(shape: tuple[int, ...]) -> int:
    """Scratch memory that a run on images of a shape needs."""
    return int(np.prod(shape)) // 8 + 16


def model(pixels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.float32]:
    """What a simulated engine computes: (batch, height, width, 3) -> (batch, classes)."""
    weights = np.random.default_rng(0).normal(size=(3, classes))
    return (pixels.mean(axis=(1, 2)) @ weights / 50).astype(np.float32)


def plan(
    classes: int = 4,
    largest: tuple[int, int, int] = (8, 64, 64),
    *,
    more: tuple[tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]], ...] = (),
    **special: Any,
) -> bytes:
    """An engine's file; `more` are further profiles as (min, opt, max) of (batch, height, width)."""
    profiles = [((1, 1, 1), (1, 32, 32), largest), *more]
    sizes = [
        {key: [*size, 3] for key, size in zip(("min", "opt", "max"), profile, strict=True)} for profile in profiles
    ]
    return json.dumps({"classes": classes, "profiles": sizes, **special}).encode()


ENGINE = "engines/tensorrt-fp16.engine"

GPU = machine.Gpu("NVIDIA Simulated", "8.6", 1 << 24, "580.1", "13.0", False)

BUILT = {"tensorrt": {"flavour": "tensorrt", "version": "11.4.1.6"}, "compute_capability": "8.6", "flags": {}}


def write_engine_bundle(path: Path, content: bytes | None = None, graph: bytes | None = None, **built: Any) -> Path:
    """A bundle with one simulated engine, and a file in the place of the graph it was built from; the engine's path."""
    manifest = Manifest(
        model={"name": "mean-colour"},
        labels=("a", "b", "c", "d"),
        preprocess=PreprocessSpec(None, None, None, None, None),
        inputs=(TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 4)),),
    )
    with Bundle.create(path, manifest) as editor:
        source = None
        if graph is not None:
            editor.path_for("model.fp16.onnx").write_bytes(graph)
            source = editor.add("model.fp16.onnx", kind="onnx", precision="fp16").sha256
        editor.path_for(ENGINE).write_bytes(plan() if content is None else content)
        editor.add(
            ENGINE, kind="engine", precision="fp16", target="tensorrt", built_from=source, built_with={**BUILT, **built}
        )
    return path / ENGINE


class Here:
    """A machine with both flavours of TensorRT on one simulated GPU."""

    def __init__(self) -> None:
        self.cuda = SimulatedCuda()
        self.trt = SimulatedTensorRT(self.cuda)
        self.rtx = SimulatedTensorRTRtx(self.cuda)

    def require(self, module: str, extra: str) -> Any:
        return {"tensorrt": self.trt, "tensorrt_rtx": self.rtx, "cuda.bindings.runtime": self.cuda}[module]

    def released(self) -> bool:
        return not (
            self.cuda.device
            or self.cuda.host
            or self.cuda.streams
            or self.cuda.events
            or self.cuda.graphs
            or self.cuda.captured
        )


RTX = {"tensorrt": {"flavour": "tensorrt-rtx", "version": "1.7.1"}, "compute_capabilities": ["8.6"]}


def rtx_runner(path: Path, **options: Any) -> TensorRTRunner:
    return TensorRTRunner(path, "tensorrt-rtx", **options)


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def logits(runner: TensorRTRunner, pixels: np.ndarray) -> np.ndarray:
    return runner.infer({"image": pixels})["logits"]
