"""Preprocessing in the graph: what a model's image processor does, on raw uint8 pixels of any size."""

from vitdeploy.compiler.preprocessing.graph import build_preprocessing
from vitdeploy.compiler.preprocessing.reference import reference
from vitdeploy.compiler.preprocessing.spec import spec_from_processor

__all__ = ["build_preprocessing", "reference", "spec_from_processor"]
