"""Pictures of what a Vision Transformer does with one image: its patches, its attention, its sense of place.

from vitdeploy.explain import explain

result = explain("bundles/vit-cifar10", "cat.png", "cat-explained")
result.inside.prediction.label, result.pictures
"""

from __future__ import annotations

from vitdeploy.explain.inside import Inside
from vitdeploy.explain.rollout import position_similarity, rollout, token_maps
from vitdeploy.explain.run import Explanation, explain, look_inside

__all__ = ["Explanation", "Inside", "explain", "look_inside", "position_similarity", "rollout", "token_maps"]
