"""Pictures of what a Vision Transformer does with one image: its patches, its attention, its sense of place.

import vitdeploy

result = vitdeploy.explain("bundles/vit-cifar10", "cat.png", "cat-explained")
result.inside.prediction.label, result.pictures
"""

from __future__ import annotations

from vitdeploy.core.callable_module import make_callable
from vitdeploy.explain.inside import Inside
from vitdeploy.explain.rollout import position_similarity, rollout, token_maps
from vitdeploy.explain.run import Explanation, explain, look_inside

__all__ = ["Explanation", "Inside", "explain", "look_inside", "position_similarity", "rollout", "token_maps"]

make_callable(__name__, "explain")
