"""Optimization profiles: the ranges that were asked for against what the graph takes, before anything is built."""

from __future__ import annotations

from typing import Any

from vitdeploy.backends.tensorrt.options import EngineOptions, Profile
from vitdeploy.core.errors import InputError
from vitdeploy.core.specs import ShapeRange

__all__ = ["Shapes", "check_profiles", "check_shapes"]

Shapes = dict[str, dict[str, list[int]]]  # {input: {"min": shape, "opt": shape, "max": shape}}

_DEFAULT_BATCH = ShapeRange(1, 1, 8)
_MOST_VALUES = 2**31 - 1  # of one tensor, which kernels index with 32 bits


def check_profiles(network: Any, options: EngineOptions) -> tuple[Shapes, ...]:
    """The shapes of each profile, checked against the graph.

    Raises:
        InputError: the graph takes no images, a range does not fit it or is too large, or two profiles are the same.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    inputs = [(str(tensor.name), tuple(map(int, tensor.shape))) for tensor in tensors]
    if len(inputs) != 1 or len(inputs[0][1]) != 4 or inputs[0][1][3] != 3:
        found = ", ".join(f"{name} {shape}" for name, shape in inputs)
        raise InputError(
            f"the graph's inputs are {found}; an engine is built from one that takes (batch, height, width, 3) images",
            hint="export the model with vitdeploy export",
        )
    return check_shapes(*inputs[0], options)


def check_shapes(name: str, graph: tuple[int, ...], options: EngineOptions) -> tuple[Shapes, ...]:
    """The shapes of each profile for an input `name` that has the shape `graph` (-1: dynamic).

    Raises:
        InputError: a range does not fit the graph or is too large, or two profiles are the same.
    """
    profiles = tuple({name: _shapes(graph, profile)} for profile in options.profiles)
    for number, profile in enumerate(profiles, 1):
        if profile in profiles[: number - 1]:
            raise InputError(
                f"profile {number} is the same as profile {profiles.index(profile) + 1}: {words(profile[name])}",
                hint="name each range once; on a graph of a fixed size there is one profile",
            )
    return profiles


def words(shapes: dict[str, list[int]]) -> str:
    """A profile's shapes as the command line takes them: "1x224x224:1x224x224:8x1080x1920"."""
    return ":".join("x".join(map(str, shapes[key][:3])) for key in ("min", "opt", "max"))


def _shapes(graph: tuple[int, ...], profile: Profile) -> dict[str, list[int]]:
    asked = {"batch": profile.batch, "height": profile.height, "width": profile.width}
    ranges = [_range(name, size, given) for (name, given), size in zip(asked.items(), graph, strict=False)]
    batch, height, width = (extent.maximum for extent in ranges)
    values = batch * height * width * 3
    if values > _MOST_VALUES:
        raise InputError(
            f"{batch} images of {height}x{width} pixels have {values} values, TensorRT takes {_MOST_VALUES} at most",
            hint="lower the maximum of --batch or --image-size",
        )
    return {
        "min": [*(extent.minimum for extent in ranges), 3],
        "opt": [*(extent.optimum for extent in ranges), 3],
        "max": [*(extent.maximum for extent in ranges), 3],
    }


def _range(name: str, size: int, given: ShapeRange | None) -> ShapeRange:
    """The range of one dimension that has `size` in the graph (-1: dynamic)."""
    if size >= 0:
        fixed = ShapeRange(size, size, size)
        if given is not None and given != fixed:
            raise InputError(
                f"the graph takes a {name} of {size} only, not {given.minimum} to {given.maximum}",
                hint="leave the option out, or export the bundle again without a fixed size",
            )
        return fixed
    if given is not None:
        return given
    if name == "batch":
        return _DEFAULT_BATCH
    raise InputError(
        f"the graph takes images of any {name}, and an engine needs a range of them",
        hint=f"set {name} in the Profile, or take EngineOptions.for_manifest(bundle.manifest)",
    )
