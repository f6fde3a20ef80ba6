"""The package onnxruntime-web of npm on this disk: where it is, its version, and the files that a site needs of it.

It is not fetched here: `npm install onnxruntime-web` puts it into node_modules, where it is found as Node does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.core.errors import DependencyError
from vitdeploy.core.storage import read_json

__all__ = ["NAME", "TESTED", "OnnxRuntimeWeb", "find"]

NAME = "onnxruntime-web"
TESTED = "1.30.0"
"""The version that the tests run: the one of tests/web/package.json."""

FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_INSTALL = f"npm install {NAME}@{TESTED}"


@dataclass(frozen=True)
class OnnxRuntimeWeb:
    """The package's folder and version."""

    folder: Path
    version: str

    def files(self) -> list[Path]:
        """What a site needs of it.

        Raises:
            DependencyError: some of it is not there.
        """
        paths = [self.folder / "dist" / name for name in FILES]
        for path in paths:
            if not path.is_file():
                raise DependencyError(
                    f"{NAME} {self.version} in {self.folder} has no dist/{path.name}", hint=f"take {TESTED}: {_INSTALL}"
                )
        return paths


def find(place: str | os.PathLike[str] | None = None) -> OnnxRuntimeWeb:
    """The package in a folder.

    Args:
        place: the package's folder, or one with a node_modules that has it; None: node_modules of the working folder,
            or of one above.

    Raises:
        DependencyError: it is not there, or is another package.
    """
    here = Path.cwd()
    starts = [Path(place)] if place is not None else [here, *here.parents]
    candidates = [start / "node_modules" / NAME for start in starts]
    if place is not None:
        candidates.insert(0, Path(place))
    for folder in candidates:
        if (folder / "package.json").is_file() and (found := _described(folder)) is not None:
            return found
    raise DependencyError(
        f"there is no {NAME} in {place}" if place is not None else f"there is no {NAME} in node_modules here or above",
        hint=f"{_INSTALL}; or name the folder that has it: --onnxruntime-web DIR",
    )


def _described(folder: Path) -> OnnxRuntimeWeb | None:
    """The package that lies in a folder; None where it is another."""
    try:
        facts = read_json(folder / "package.json", limit=1 << 20)
    except (OSError, ValueError) as error:
        raise DependencyError(f"can't read {folder / 'package.json'}: {error}", hint=_INSTALL) from error
    if not isinstance(facts, dict) or facts.get("name") != NAME or not isinstance(facts.get("version"), str):
        return None
    return OnnxRuntimeWeb(folder, facts["version"])
