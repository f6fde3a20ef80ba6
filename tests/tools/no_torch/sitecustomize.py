"""With this folder on PYTHONPATH, an interpreter and its children find neither PyTorch nor what is built on it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

GONE = {"torch", "torchvision", "transformers", "accelerate", "safetensors", "kornia", "onnxscript"}


class Without(PathFinder):
    """Python's own way to find a package, for all but these."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # type: ignore[override]
        return None if name.partition(".")[0] in GONE else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
