"""Run a bundle: `load` opens it on the best backend that is here, and gives a classifier.

    from vitdeploy import load

    with load("bundles/vit") as classifier:
        print(classifier.predict("cat.png").label)

Importing this package loads no backend: `load` imports the one that it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitdeploy.runtime.classifier import Classifier
    from vitdeploy.runtime.loading import load

__all__ = ["Classifier", "load"]

_LAZY = {"Classifier": "vitdeploy.runtime.classifier", "load": "vitdeploy.runtime.loading"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
