"""What Triton's python backend gives a model as `triton_python_backend_utils`, for tests without a server: tensors,
requests and responses that hold what they were made with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import pytest

__all__ = ["Request", "Response", "Tensor", "TritonError", "backend_utils", "request"]


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Request:
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = {tensor.name(): tensor for tensor in tensors}


class Response:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.error = error
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}


def request(*images: bytes) -> Request:
    """One for encoded images, as a client sends it: BYTES, [n, 1]."""
    return Request([Tensor("IMAGE", np.array([[image] for image in images], object))])


def backend_utils(patch: pytest.MonkeyPatch) -> None:
    """Let the model import it until the test ends."""
    module = ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=Response,
        get_input_tensor_by_name=lambda asked, name: asked.tensors.get(name),
    )
    patch.setitem(sys.modules, module.__name__, module)
