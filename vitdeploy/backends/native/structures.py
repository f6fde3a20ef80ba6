"""The kernels' structures as in kernels.h and encoder.cpp, which say what each field is."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["Classifier", "Factors", "InstructionSet", "Layer", "Linear", "Norm", "Patches", "Shape", "Tile"]

_POINTER = ctypes.c_void_p


def _structure(name: str, /, **fields: Any) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Linear = _structure(
    "Linear",
    **dict.fromkeys(("inputs", "outputs"), ctypes.c_int),
    **dict.fromkeys(("weights", "sums", "scale", "bias"), _POINTER),
    **dict.fromkeys(("inverse", "zero"), ctypes.c_float),
    exact=_POINTER,
    **dict.fromkeys(("steep", "cubic"), ctypes.c_float),
)
Norm = _structure("Norm", weight=_POINTER, bias=_POINTER, epsilon=ctypes.c_float)
Factors = _structure(
    "Factors", **dict.fromkeys(("query", "key", "share", "value", "query_zero", "share_zero"), ctypes.c_float)
)
Layer = _structure(
    "Layer",
    **dict.fromkeys(("before", "after"), Norm),
    **dict.fromkeys(("qkv", "output", "fc1", "fc2"), Linear),
    factors=Factors,
    gate=Linear,
)
Patches = _structure(
    "Patches",
    **dict.fromkeys(("channels", "side_y", "side_x", "down", "across", "first"), ctypes.c_int),
    **dict.fromkeys(("weights", "positions"), _POINTER),
    norm=Norm,
)
Classifier = _structure("Classifier", classes=ctypes.c_int, weights=_POINTER, bias=_POINTER)
Shape = _structure("Shape", **dict.fromkeys(("width", "hidden", "heads", "head", "layers", "read"), ctypes.c_int))
Tile = _structure("Tile", **dict.fromkeys(("rows", "columns", "lanes", "group", "alignment"), ctypes.c_int))
InstructionSet = _structure(
    "InstructionSet",
    **dict.fromkeys(("name", "missing"), ctypes.c_char_p),
    on_request=ctypes.c_int,
    tile=Tile,
    steps=_POINTER,
)
