"""The compiled kernels: which instruction sets they have, which of them run here, and which one is taken."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib import util
from typing import Any

from vitdeploy.backends.native import structures
from vitdeploy.core.errors import DependencyError

__all__ = ["VARIABLE", "InstructionSet", "chosen_isa", "instruction_sets", "kernels_obstacle", "open_library"]

VARIABLE = "VITDEPLOY_ISA"  # names the instruction set to take, for tests; the portable one is taken by this alone
_AGAIN = "vitdeploy again, from its source (pip install --force-reinstall --no-deps)"
_ELSEWHERE = "use ONNX Runtime or OpenVINO here"


@dataclass(frozen=True)
class InstructionSet:
    """One that the kernels were compiled for. `missing`: what this machine lacks to run it, or None."""

    name: str
    missing: str | None
    on_request: bool
    tile: Any  # structures.Tile
    address: int


def kernels_obstacle() -> tuple[str, str] | None:
    """Why vitdeploy's own INT8 kernels for CPUs can't run here, and the next step; None if they can.

    They are compiled when vitdeploy is installed, where a C++ compiler is there.
    """
    try:
        chosen_isa()
    except DependencyError as error:
        return error.message, error.hint or _ELSEWHERE
    return None


def chosen_isa() -> InstructionSet:
    """The fastest instruction set of those that run here, or the one that VITDEPLOY_ISA names.

    Raises:
        DependencyError: none does, or not that one; or vitdeploy was installed without the kernels.
    """
    every = instruction_sets()
    name = os.environ.get(VARIABLE)
    if name:
        names = ", ".join(isa.name for isa in every)
        found = next((isa for isa in every if isa.name == name), None)
        if found is None:
            raise DependencyError(f"{VARIABLE} is {name!r}: the kernels have {names}", hint=f"unset {VARIABLE}")
        if found.missing is not None:
            raise DependencyError(f"{VARIABLE} is {name!r}: {_lacks(found)}", hint=f"unset {VARIABLE}")
        return found
    offered = [isa for isa in every if not isa.on_request]
    for isa in offered:
        if isa.missing is None:
            return isa
    if not offered:
        raise DependencyError("the kernels know no instruction set of this kind of processor", hint=_ELSEWHERE)
    raise DependencyError(_lacks(offered[-1]), hint=_ELSEWHERE)


def _lacks(isa: InstructionSet) -> str:
    return f"this processor, or its operating system, has no {isa.missing}"


def instruction_sets() -> tuple[InstructionSet, ...]:
    """All that the kernels were compiled for, the fastest first.

    Raises:
        DependencyError: vitdeploy was installed without the kernels, or they do not load.
    """
    library = open_library()
    found: list[InstructionSet] = []
    while row := library.encoder_isa(len(found)):
        values = row.contents
        missing = None if values.missing is None else values.missing.decode()
        address = ctypes.addressof(values)
        found.append(InstructionSet(values.name.decode(), missing, bool(values.on_request), values.tile, address))
    return tuple(found)


def open_library() -> ctypes.CDLL:
    """The kernels.

    Raises:
        DependencyError: vitdeploy was installed without them, or they do not load.
    """
    found = util.find_spec("vitdeploy.backends.native._kernels")
    if found is None or found.origin is None:
        raise DependencyError(
            "vitdeploy was installed without its kernels, which takes a C++ compiler",
            hint=f"install g++, then {_AGAIN}",
        )
    try:
        return _loaded(found.origin)
    except (OSError, AttributeError) as error:  # it was compiled on another system, or from an earlier source
        raise DependencyError(f"the INT8 kernels do not load: {error}", hint=f"install {_AGAIN}") from error


@cache
def _loaded(path: str) -> ctypes.CDLL:
    library, pointer = ctypes.CDLL(path), ctypes.c_void_p
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "encoder_isa": (ctypes.POINTER(structures.InstructionSet), (ctypes.c_int,)),
        "encoder_layer_size": (ctypes.c_size_t, ()),
        "encoder_open": (pointer, (*[pointer] * 6, ctypes.c_int)),
        "encoder_run": (None, (pointer, pointer, ctypes.c_int, ctypes.c_size_t, pointer, ctypes.c_size_t)),
        "encoder_close": (None, (pointer,)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.encoder_layer_size() != ctypes.sizeof(structures.Layer):
        raise OSError("they are of another version")
    return library
