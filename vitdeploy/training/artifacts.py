"""What a finished run leaves beside the model: settings, metrics, curves, confusion matrix or the numbers of each
label, model card."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitdeploy.core.errors import require
from vitdeploy.core.storage import files_below
from vitdeploy.training.card import headline, model_card
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.confusion import draw_confusion
from vitdeploy.training.curve import draw_curve
from vitdeploy.training.result import FinetuneResult
from vitdeploy.training.settings import repeatable, to_toml

__all__ = ["SETTINGS_FILE", "save_metrics", "save_report"]

SETTINGS_FILE = "finetune.json"


def save_metrics(trainer: Any, folder: Path, metrics: dict[str, dict[str, float]]) -> None:
    """The Trainer's own files: its state, one file of metrics a split, and all of them in one."""
    trainer.args.output_dir = str(folder)
    for split, values in metrics.items():
        if values:
            trainer.save_metrics(split, values)
    trainer.state.best_model_checkpoint = None  # it lay in the run's folder; best_global_step says which it was
    trainer.save_state()


def save_report(folder: Path, config: FinetuneConfig, result: FinetuneResult, *, model_is_local: bool) -> None:
    """Everything that people read."""
    versions = {name: require(name, extra="build").__version__ for name in ("torch", "transformers")}
    settings = {
        "settings": config.to_json(),
        "versions": versions,
        "data": result.data,
        "notes": list(result.notes),
        "skipped": result.skipped,
        "resumed_from": list(result.resumed_from),
    }
    test = result.data["test"]["name"]
    name, value = headline(result)
    title = f"{test}: test {name} {value:.2%} after {result.steps} steps"
    files = {
        "finetune.toml": to_toml(repeatable(config, Path(config.output)), "vitdeploy finetune --config finetune.toml"),
        "training_curve.json": _json(result.curve.to_json()),
        "training_curve.svg": draw_curve(result.curve, title),
        **_by_class(result, test),
        "README.md": model_card(config, result, model_is_local=model_is_local),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    settings["files"] = files_below(folder)  # --overwrite replaces a folder that holds nothing else
    (folder / SETTINGS_FILE).write_text(_json(settings), encoding="utf-8")


def _by_class(result: FinetuneResult, test: str) -> dict[str, str]:
    """What the test images say of each class."""
    if result.multi_label is not None:
        numbers = {"names": list(result.labels), "threshold_is": "the best for micro F1 on the validation images"}
        return {"labels.json": _json({**numbers, **asdict(result.multi_label)})}
    confusion = {"labels": list(result.labels), "rows_are": "label", "counts": [list(row) for row in result.confusion]}
    return {
        "confusion_matrix.json": json.dumps(confusion, ensure_ascii=False) + "\n",
        "confusion_matrix.svg": draw_confusion(result.confusion, result.labels, f"{test}: test images"),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
