"""How many images the parts of a quantisation look at, unless told otherwise."""

from __future__ import annotations

__all__ = ["ANALYSIS_IMAGES", "VALIDATION_IMAGES"]

VALIDATION_IMAGES = 2000
"""On which a budget's drop is measured."""
ANALYSIS_IMAGES = 256
"""On which each layer alone is looked at."""
