"""Makes a checkpoint: the Hugging Face Trainer, set up for ViT.

from vitdeploy import FinetuneConfig, finetune

result = finetune(FinetuneConfig(model="runs/scratch", dataset="digits", output="runs/digits", epochs=20))
result.test_accuracy
"""

from __future__ import annotations

from vitdeploy.training.config import AUGMENTATIONS, PRECISIONS, FinetuneConfig
from vitdeploy.training.estimate import DryRun, dry_run
from vitdeploy.training.processes import is_main_process
from vitdeploy.training.result import Curve, FinetuneResult, SamplePrediction
from vitdeploy.training.run import finetune
from vitdeploy.training.scratch import create_digits_vit, create_vit, digits_config
from vitdeploy.training.settings import read_settings

__all__ = [
    "AUGMENTATIONS",
    "PRECISIONS",
    "Curve",
    "DryRun",
    "FinetuneConfig",
    "FinetuneResult",
    "SamplePrediction",
    "create_digits_vit",
    "create_vit",
    "digits_config",
    "dry_run",
    "finetune",
    "is_main_process",
    "read_settings",
]
