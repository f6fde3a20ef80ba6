"""The backends that a test runs on."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from vitdeploy.backends.native.library import kernels_obstacle

CPU_BACKENDS = [
    "onnxruntime",
    "openvino",
    pytest.param("native", marks=pytest.mark.skipif(bool(kernels_obstacle()), reason=str(kernels_obstacle()))),
]
"""What runs INT8 on a CPU."""
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="makes its model with PyTorch")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="counts OpenVINO among what is tried")
