"""Makes a checkpoint: the Hugging Face Trainer, set up for ViT.

from vitdeploy.training import FinetuneConfig, finetune

result = finetune(FinetuneConfig(model="runs/scratch", dataset="digits", output="runs/digits", epochs=20))
result.test_accuracy
"""

from __future__ import annotations

from vitdeploy.training.config import AUGMENTATIONS, Curve, FinetuneConfig, FinetuneResult, SamplePrediction
from vitdeploy.training.run import finetune
from vitdeploy.training.scratch import create_digits_vit, create_vit, digits_config

__all__ = [
    "AUGMENTATIONS",
    "Curve",
    "FinetuneConfig",
    "FinetuneResult",
    "SamplePrediction",
    "create_digits_vit",
    "create_vit",
    "digits_config",
    "finetune",
]
