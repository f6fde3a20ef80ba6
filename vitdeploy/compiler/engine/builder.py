"""ONNX -> TensorRT engine, by one code path for TensorRT 10.3 and later, 11.x and TensorRT-RTX.

Networks are always strongly typed: the graph says which tensor is FP32, FP16, BF16 or INT8 (explicit Q/DQ), and no
builder flag changes that. What the runtimes do differently is looked up when it is needed, or refused by `options`:

    what                                   TensorRT 10.3+           TensorRT 11.x        TensorRT-RTX 1.x
    STRONGLY_TYPED network flag            needed                   ignored              ignored
    weak typing, calibrators, FP16 flag    there, never used        gone                 gone
    compute_capability of the engine       the GPU here             the GPU here         set_compute_capability
    needs a GPU to build                   yes                      yes                  no
    hardware_compatibility_level           yes (not on Jetson)      yes                  warns, no effect
    VERSION_COMPATIBLE                     yes                      yes                  no lean runtime
    STRIP_PLAN with REFIT_IDENTICAL        yes                      yes                  only on a GPU
    timing cache, optimization level       yes                      yes                  no effect
    several optimization profiles          yes                      yes                  yes
    parser errors' node_name, operator     from 10.0 on             yes                  yes
    scratch memory of a context            device_memory_size (_v2 from 10.1 on)         _v2
    CUDA graphs                            captured by the runner   captured             by its own runtime config
    inspector's JSON: inputs and outputs   "Bindings"               "I/O Tensors"        "I/O Tensors"
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from vitdeploy import __version__
from vitdeploy.backends.registry import find
from vitdeploy.backends.tensorrt.options import EngineOptions
from vitdeploy.compiler.engine.interrupt import run_interruptible
from vitdeploy.compiler.engine.network import network_flags, parse, survey
from vitdeploy.compiler.engine.profiles import Shapes, check_profiles, check_shapes
from vitdeploy.compiler.engine.target import why_not
from vitdeploy.compiler.engine.watch import BuildLog, explain_error, listen, watch
from vitdeploy.core import machine, progress
from vitdeploy.core.errors import EngineError, InputError, ModelError, require
from vitdeploy.core.specs import TensorSpec
from vitdeploy.core.storage import sha256, write_atomically

__all__ = ["EngineInfo", "build_engine", "check_options"]

RTX_DEFAULT = ("8.0", "8.6", "8.9", "12.0+")  # what an RTX engine runs on when no compute capability is named
_NO_CACHE = re.compile("timing cache will not be used|failed to deserialize timing cache", re.IGNORECASE)
_OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 0)}


@dataclass(frozen=True)
class EngineInfo:
    """What was built, from what, for what, with what: an engine's entry in the manifest is `to_json()`.

    `profiles` has one entry per optimization profile: {input: {"min": shape, "opt": shape, "max": shape}}.
    `compute_capabilities` is of TensorRT-RTX engines ("12.0+" means and later); the others name their GPU.
    `layers` and the products are what the graph asks for; on a GPU `vitdeploy inspect` says what the engine runs.
    """

    flavour: str
    version: str
    precision: str
    profiles: tuple[Shapes, ...]
    flags: dict[str, Any]
    build_seconds: float
    source_onnx_sha256: str
    size_bytes: int
    layers: dict[str, int]
    products: int = 0
    int8_products: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    gpu: machine.Gpu | None = None
    timing_cache_sha256: str | None = None
    warnings: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; fields that do not apply are left out."""
        data: dict[str, Any] = {
            "vitdeploy": __version__,
            "tensorrt": {"flavour": self.flavour, "version": self.version},
            "precision": self.precision,
            "profiles": list(self.profiles),
            "strongly_typed": True,
            "flags": self.flags,
            "layers": self.layers,
            "products": self.products,
            "int8_products": list(self.int8_products),
            "build_seconds": round(self.build_seconds, 2),
            "source_onnx_sha256": self.source_onnx_sha256,
        }
        if self.compute_capabilities:
            data["compute_capabilities"] = list(self.compute_capabilities)
        if self.gpu is not None:
            data |= {
                "gpu": self.gpu.name,
                "compute_capability": self.gpu.compute_capability,
                "driver": self.gpu.driver,
                "cuda": self.gpu.cuda,
            }
        if self.timing_cache_sha256 is not None:
            data["timing_cache_sha256"] = self.timing_cache_sha256
        if self.warnings:
            data["warnings"] = list(self.warnings)
        return data


@dataclass(frozen=True)
class _Job:
    """What TensorRT works on, held until it has ended: the parser owns the weights that the network points to."""

    builder: Any
    network: Any
    config: Any
    parser: Any

    def build(self) -> Any:
        return self.builder.build_serialized_network(self.network, self.config)


def build_engine(
    onnx_path: Path, engine_path: Path, options: EngineOptions, *, log_path: Path | None = None
) -> EngineInfo:
    """Build an engine from a graph of a bundle: `image` uint8 (batch, height, width, 3) -> `logits`.

    Args:
        onnx_path: the graph; its types decide the engine's precision.
        engine_path: where the engine is written, whole or not at all.
        options: what it is for; `EngineOptions.for_manifest` gives the defaults for a bundle.
        log_path: where TensorRT's log goes; None: beside the engine, with the suffix .log.

    Raises:
        EngineError: engines of that flavour can't be built here, or TensorRT gave up; the message says why.
        InputError: the options do not fit the graph.
        ModelError: the graph is damaged, or has something in it that TensorRT does not know.
        KeyboardInterrupt: Ctrl-C; nothing was written. TensorRT has stopped, or does so at its next step.
    """
    trt = _check_here(options)
    if not onnx_path.is_file():
        raise ModelError(f"there is no graph at {onnx_path}", hint="export the bundle again")
    log_place = "" if log_path is None else f": {log_path}"
    began = time.perf_counter()
    with listen(trt, log_path or engine_path.with_suffix(".log")) as (logger, log):
        builder = trt.Builder(logger)
        network = builder.create_network(network_flags(trt))
        parser = parse(trt, network, logger, onnx_path)
        asked = survey(trt, network)
        profiles = check_profiles(network, options)
        config = builder.create_builder_config()
        _configure(trt, builder, config, options, profiles)
        cache = _open_timing_cache(config, options, log)
        plan = _run(trt, _Job(builder, network, config, parser), options, onnx_path, log, log_place)
        size = memoryview(plan).nbytes
        write_atomically(engine_path, plan)
    notes = log.notes()
    for words in notes:
        progress.note(f"Note: {words}.")
    rtx = options.flavour == "tensorrt-rtx"
    return EngineInfo(
        flavour=options.flavour,
        version=str(trt.__version__),
        precision=asked.precision,
        profiles=profiles,
        flags={name: value for name, value in options.to_json().items() if name != "compute_capabilities"},
        build_seconds=time.perf_counter() - began,
        source_onnx_sha256=sha256(onnx_path),
        size_bytes=size,
        layers=asked.layers,
        products=asked.products,
        int8_products=asked.int8_products,
        compute_capabilities=(options.compute_capabilities or RTX_DEFAULT) if rtx else (),
        gpu=None if rtx else machine.gpus()[0],
        timing_cache_sha256=_save_timing_cache(config, cache, options),
        warnings=tuple(notes),
    )


def _load(flavour: str) -> ModuleType:
    spec = find(flavour)
    trt = require(spec.needs[0].module, extra=spec.extra)
    version, oldest = str(trt.__version__), _OLDEST[flavour]
    if machine.release(version) < oldest:
        raise EngineError(
            f"{flavour} {version} is installed, and vitdeploy needs {oldest[0]}.{oldest[1]} or later",
            hint="install a later one: pip install --upgrade, or on a Jetson a later JetPack (6.1 has 10.3)",
        )
    return trt


def check_options(options: EngineOptions, image: TensorSpec) -> None:
    """Raise what `build_engine` would of the options and of this machine, before a graph for it is made.

    Args:
        options: what the engine shall be for.
        image: the bundle's input.
    """
    _check_here(options)
    check_shapes(image.name, tuple(-1 if isinstance(size, str) else size for size in image.shape), options)


def _check_here(options: EngineOptions) -> ModuleType:
    """The TensorRT that is here, if it can fulfil the options."""
    obstacle = why_not(options.flavour)
    if obstacle is not None:
        raise EngineError(f"no {options.flavour} engine can be built here: {obstacle[0]}", hint=obstacle[1])
    if options.hardware_compatible and machine.jetson_release() is not None:
        raise InputError(
            "--hardware-compatible: TensorRT has it for desktop and server GPUs only, and this is a Jetson",
            hint="leave it out; build on each kind of device",
        )
    trt = _load(options.flavour)
    for capability in options.compute_capabilities:
        _capability(trt, capability)
    return trt


def _configure(
    trt: ModuleType, builder: Any, config: Any, options: EngineOptions, profiles: tuple[Shapes, ...]
) -> None:
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, sizes in profile.items():
            shapes.set_shape(name, tuple(sizes["min"]), tuple(sizes["opt"]), tuple(sizes["max"]))
        if config.add_optimization_profile(shapes) < 0:
            raise InputError(f"TensorRT refuses the profile {profile}", hint="look into its log beside the engine")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that inspect can say what each layer runs in
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        # REFIT in its place keeps kernels from being chosen for these weights, and in 11.3 may lose a bias.
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(_capability(trt, capability), index)


def _capability(trt: ModuleType, capability: str) -> Any:
    member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
    if member is None:
        known = [name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
        raise InputError(
            f"TensorRT-RTX {trt.__version__} builds nothing for compute capability {capability}",
            hint=f"it knows {', '.join(f'{name[:-1]}.{name[-1]}' for name in known)}; for a Jetson or a server GPU use"
            " --target tensorrt on that machine",
        )
    return member


def _open_timing_cache(config: Any, options: EngineOptions, log: BuildLog) -> Any:
    path = options.timing_cache
    if path is None:
        return None
    warned, failed = len(log.warnings), len(log.errors)  # TensorRT 8 called it an error, RTX 1.7 a warning
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # Of a damaged one TensorRT makes an empty one and warns; the timings in the file would be overwritten.
    damaged = any(_NO_CACHE.search(message) for message in [*log.warnings[warned:], *log.errors[failed:]])
    if cache is None or damaged or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(
            f"the timing cache {path} is damaged, or of another GPU or TensorRT version",
            hint="delete it, or name another --timing-cache",
        )
    return cache


def _save_timing_cache(config: Any, cache: Any, options: EngineOptions) -> str | None:
    if cache is None or options.timing_cache is None:
        return None
    write_atomically(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return sha256(options.timing_cache)


def _run(trt: ModuleType, job: _Job, options: EngineOptions, onnx_path: Path, log: BuildLog, log_place: str) -> Any:
    """Build; the serialized engine is a buffer."""
    with progress.task(f"Building {options.flavour} engine from {onnx_path.name}", total=100, unit="%") as step:
        monitor = watch(trt, step)
        job.config.progress_monitor = monitor
        plan = run_interruptible(job.build, monitor.cancel)
        if plan is None:
            reason, hint = explain_error(log)
            raise EngineError(
                f"{options.flavour} {trt.__version__} could not build an engine from {onnx_path.name}: {reason}",
                hint=hint or f"run the ONNX form instead, or look into TensorRT's log{log_place}",
            )
        step.update(completed=100)
    return plan
