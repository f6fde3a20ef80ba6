"""How Triton serves a bundle: the one settings object of `triton`, and of what writes a repository with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vitdeploy.core.settings import AT_LEAST_ONE, OneOf, check
from vitdeploy.core.specs import TOP_K

__all__ = ["DEVICES", "ROUTES", "TritonSettings"]

DEVICES = ("cpu", "gpu")
ROUTES = ("load", "pixels")


@dataclass(frozen=True)
class TritonSettings:
    """A bundle in Triton.

    Attributes:
        name: of the model; None: the bundle's folder name.
        device: "cpu" or "gpu".
        precision: of the form that runs; "auto": what `load` takes there, and for `NAME_pixels` the smallest form that
            the device is for.
        via: "load": NAME runs the bundle in its own process; "pixels": it decodes, and asks NAME_pixels.
        max_batch: most images of one call.
        instances: of each model, side by side.
        top_k: how many of the best classes an answer has.

    Raises:
        InputError: a value out of range.
    """

    name: str | None = None
    device: Annotated[str, OneOf("device", DEVICES)] = "cpu"
    precision: str = "auto"
    via: Annotated[str, OneOf("route", ROUTES)] = "load"
    max_batch: Annotated[int, AT_LEAST_ONE] = 32
    instances: Annotated[int, AT_LEAST_ONE] = 1
    top_k: Annotated[int, AT_LEAST_ONE] = TOP_K

    def __post_init__(self) -> None:
        check(self)
