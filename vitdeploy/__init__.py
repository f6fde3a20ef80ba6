"""vitdeploy: take a Vision Transformer from a checkpoint to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.errors import VitdeployError

if TYPE_CHECKING:
    from vitdeploy.bundle import Bundle
    from vitdeploy.runtime import Classifier, load
    from vitdeploy.specs import Prediction

__all__ = ["Bundle", "Classifier", "Prediction", "VitdeployError", "__version__", "load"]
__version__ = "0.1.0"

_LAZY = {
    "Bundle": "vitdeploy.bundle",
    "Classifier": "vitdeploy.runtime",
    "Prediction": "vitdeploy.specs",
    "load": "vitdeploy.runtime",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
