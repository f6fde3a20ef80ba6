"""What the tests on a GPU share with those that try them without one: their tolerances, what takes part, the report."""

from __future__ import annotations

import shutil
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.backends.registry import find
from vitdeploy.core.machine import gpus, has_module

# Largest difference from ONNX Runtime on the same graph, as a share of the logits' range. FP32 products use TF32 (10
# bits of mantissa), as FP16 does; INT8 results round to other integers where sums differ in the last bit.
TOLERANCES = {"fp32": 0.01, "fp16": 0.03, "bf16": 0.05, "int8": 0.06}
FORMS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx", "int8": "model.int8.onnx"}
# What an engine's answers are compared with: ONNX Runtime on the same graph, which on a CPU has few kernels for BF16.
REFERENCES = {**FORMS, "bf16": FORMS["fp32"]}
SIZES = ((1, 32, 32), (3, 32, 32), (2, 48, 100), (1, 17, 250), (8, 64, 64))  # (batch, height, width)


def pixels(batch: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Noise that is another one for each of these sizes."""
    return np.random.default_rng(batch + height + width).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def providers() -> tuple[str, ...]:
    """The further providers of the ONNX Runtime that is installed: of onnxruntime-gpu, of onnxruntime-openvino.

    onnxruntime-gpu names its provider for TensorRT beside any TensorRT, and can load it beside one major version.
    """
    available = __import__("onnxruntime").get_available_providers() if has_module("onnxruntime") else []
    names = {"openvino": "OpenVINOExecutionProvider"}
    if gpus():
        names["cuda"] = "CUDAExecutionProvider"
    if gpus() and find("onnxruntime-tensorrt").obstacle() is None:
        names["tensorrt"] = "TensorrtExecutionProvider"
    return tuple(f"onnxruntime-{name}" for name, provider in names.items() if provider in available)


def can_compile() -> bool:
    """Whether torch.compile works on a GPU here: Triton compiles a module of Python's for each kernel."""
    header = Path(sysconfig.get_path("include"), "Python.h")  # of a package of its own on many systems: python3-dev
    return any(map(shutil.which, ("gcc", "clang"))) and header.is_file()


def seconds_by_test(stats: Mapping[str, Iterable[Any]]) -> dict[str, float]:
    """What each test took by pytest's reports, the fixtures that were made for it included: engines are built there."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in stats.values():
        for report in reports:
            if hasattr(report, "duration"):  # a file that could not be imported, and a warning, have none
                seconds[report.nodeid] += report.duration
    return seconds
