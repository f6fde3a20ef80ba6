"""A plugin of pytest's for a machine without a GPU: the tests on a GPU meet a simulated H200.

    python -m pytest -p tests.tools.simulated_h200 -m gpu tests/gpu/test_engine_gpu.py

TensorRT-RTX builds in the place of TensorRT, since it can here, and the engine that is kept is one of the simulated
TensorRT's, whose answers ONNX Runtime computes from the graph. What is tried are the tests themselves (fixtures, names,
what they expect of each other) and the order of the runner's work, not TensorRT's kernels.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from vitdeploy.core import machine

GPU = machine.Gpu("NVIDIA H200 (simulated)", "9.0", 1 << 30, "580.1", "13.0", False)
machine.gpus = lambda: (GPU,)  # type: ignore[assignment]  # before anybody has taken it from there

from cuda.bindings.runtime import cudaStream_t  # noqa: E402

from tests.tools.simulated_cuda import SimulatedCuda  # noqa: E402
from tests.tools.simulated_gpu import SimulatedTensorRT  # noqa: E402
from vitdeploy.compiler import engine as package  # noqa: E402
from vitdeploy.compiler.engine import builder  # noqa: E402
from vitdeploy.compiler.engine.builder import EngineInfo  # noqa: E402
from vitdeploy.core.errors import EngineError  # noqa: E402

CUDA = SimulatedCuda(memory_bytes=GPU.memory_bytes, devices=1)
TENSORRT = SimulatedTensorRT(CUDA)
GRAPHS = Path(tempfile.mkdtemp(prefix="simulated-h200-"))
NOT_OF_RTX = {"optimization_level": None, "timing_cache": None, "strip_weights": False}
build_rtx = builder.build_engine


def build_engine(onnx_path: Path, engine_path: Path, options: Any, *, log_path: Path | None = None) -> EngineInfo:
    """`builder.build_engine`, where the engine for TensorRT is a simulated one."""
    if options.flavour != "tensorrt":
        return build_rtx(onnx_path, engine_path, options, log_path=log_path)
    cache = options.timing_cache
    if cache is not None and cache.is_file() and cache.read_bytes() == b"damaged":
        raise EngineError(f"the timing cache {cache} is damaged", hint="delete it")
    wanted = replace(options, flavour="tensorrt-rtx", **NOT_OF_RTX)
    info = build_rtx(onnx_path, engine_path, wanted, log_path=log_path)
    graph = GRAPHS / f"{len(list(GRAPHS.iterdir()))}.onnx"
    # ONNX Runtime has few kernels for BF16 on a CPU
    shutil.copy(onnx_path.with_name("model.onnx") if "bf16" in onnx_path.name else onnx_path, graph)
    layers = [{"Name": name, "TacticName": "gemm_i8i8", "LayerType": "gemm"} for name in info.int8_products]
    plan: dict[str, Any] = {"onnx": str(graph), "classes": 10, "layers": layers}
    plan["profiles"] = [sizes["image"] for sizes in info.profiles]
    plan |= {"weights": ""} if options.strip_weights else {"padding": "x" * 5000}
    content = json.dumps(plan).encode()
    engine_path.write_bytes(content)
    if cache is not None:
        cache.write_bytes(b"times")
    return replace(
        info,
        flavour="tensorrt",
        version=TENSORRT.__version__,
        gpu=GPU,
        compute_capabilities=(),
        flags=options.to_json(),
        size_bytes=len(content),
        timing_cache_sha256=None if cache is None else "of the times",
    )


CUDA.cudaStream_t = cudaStream_t
CUDA.cudaMemGetInfo = lambda: (0, GPU.memory_bytes - CUDA.used_bytes(), GPU.memory_bytes)
for name, module in (("tensorrt", TENSORRT), ("cuda.bindings.runtime", CUDA)):
    module.__name__, module.__spec__ = name, ModuleSpec(name, None)
    sys.modules[name] = module
builder.build_engine = package.build_engine = build_engine
