"""The command line that builds an engine of a bundle again, here, as it was asked for: what a refusal ends with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitdeploy.backends.tensorrt.options import options
from vitdeploy.bundle import Artifact

__all__ = ["rebuild_command"]

_USUAL_BATCH = (1, 1, 8)


def rebuild_command(artifact: Artifact, bundle: Path | None, flavour: str, **changes: Any) -> str:
    """`vitdeploy build-engine ...` with the options that the engine was built with.

    Args:
        artifact: the engine.
        bundle: where it lies; None: BUNDLE stands for it.
        flavour: the kind of TensorRT to build for, "tensorrt" or "tensorrt-rtx".
        changes: values to take in the place of the request's.
    """
    request = {**(artifact.built_with.get("request") or {}), **changes}
    words = ["vitdeploy", "build-engine", "BUNDLE" if bundle is None else str(bundle), f"--{artifact.precision}"]
    words += ["--target", flavour, *_profiles(request.get("profiles") or ())]
    for name, option in options().items():
        value = request.get(name)
        if option.not_for == flavour or value is None or value is False or value in ([], ()):
            continue
        words.append(option.name)
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return shlex.join(words)


def _profiles(profiles: Sequence[dict[str, Any]]) -> list[str]:
    """--batch and --image-size as they make these profiles."""
    words = []
    if any(profile.get("batch") for profile in profiles):
        words += ["--batch", ",".join(_range(profile.get("batch") or _USUAL_BATCH) for profile in profiles)]
    if profiles and all(profile.get("height") and profile.get("width") for profile in profiles):
        words += ["--image-size", ",".join(_range(p["height"], p["width"]) for p in profiles)]
    return words


def _range(*extents: Sequence[int]) -> str:
    """ "1:2:4", or "8x8:32x48:64x96"; one value where all three are the same."""
    sizes = ["x".join(map(str, each)) for each in zip(*extents, strict=True)]
    return sizes[0] if len(set(sizes)) == 1 else ":".join(sizes)
