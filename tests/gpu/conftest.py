"""What the tests on a GPU share: which TensorRT can build and run here."""

from __future__ import annotations

import pytest

from vitdeploy.machine import gpus, has_module


@pytest.fixture(scope="session", params=["tensorrt", "tensorrt-rtx"])
def runtime_flavour(request: pytest.FixtureRequest) -> str:
    """Each kind of TensorRT that can build an engine for the GPU here and run it."""
    if not gpus():
        pytest.skip("needs an NVIDIA GPU and its driver, and there is none here")
    if not has_module("cuda.bindings.runtime") and not has_module("cuda.cudart"):  # by its name before 12.6.1
        pytest.skip("cuda-python is not installed: pip install cuda-python")
    from vitdeploy.compiler.engine import why_not

    obstacle = why_not(request.param)
    if obstacle is not None:
        pytest.skip(f"{obstacle[0]}; {obstacle[1]}")
    return str(request.param)
