"""How often a fuzzer tries: a few times among the other tests, and as often as one asks by `make fuzz ROUNDS=...`."""

from __future__ import annotations

import os

__all__ = ["rounds"]

_USUAL = 300


def rounds(few: int) -> int:
    """`few`, or as many times more as VITDEPLOY_FUZZ is more than 300."""
    return max(few, few * int(os.environ.get("VITDEPLOY_FUZZ", _USUAL)) // _USUAL)
