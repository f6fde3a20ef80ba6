"""Quantisation-aware tuning: a short training with the INT8 arithmetic of a bundle inside, exported back into it.

from vitdeploy.qat import QatConfig, tune

result = tune(QatConfig(model="runs/vit", bundle="bundles/vit", dataset="cifar10", output="runs/vit-qat"))
result.recovered  # the share of INT8's loss that came back
"""

from __future__ import annotations

from vitdeploy.qat.config import QatConfig, QatResult
from vitdeploy.qat.run import tune

__all__ = ["QatConfig", "QatResult", "tune"]
