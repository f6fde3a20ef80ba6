"""The model card: README.md with the metadata by which the Hugging Face Hub lists, filters and compares models."""

from __future__ import annotations

from typing import Any

from vitdeploy.core.errors import require
from vitdeploy.core.text import visible
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.result import FinetuneResult

__all__ = ["model_card"]

_HUB_NAMES = {"cifar10": "uoft-cs/cifar10"}


def model_card(config: FinetuneConfig, result: FinetuneResult, *, model_is_local: bool) -> str:
    """README.md of a finished run."""
    cards = require("huggingface_hub", extra="build")
    test = result.data["test"]
    local = test["kind"] == "local"
    hub_name = None if local else _HUB_NAMES.get(test["name"], test["name"] if test["kind"] == "hub" else None)
    accuracy = cards.EvalResult(
        task_type="image-classification",
        task_name="Image classification",
        dataset_type=hub_name or test["name"],
        dataset_name=test["name"],
        dataset_split=test["split"],
        metric_type="accuracy",
        metric_name="Accuracy",
        metric_value=round(result.test_accuracy, 6),
    )
    name = result.output.name
    metadata = cards.ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", "vit", "vitdeploy"],
        base_model=None if model_is_local else str(config.model),
        datasets=[hub_name] if hub_name else None,
        metrics=["accuracy"],
        model_name=name,
        eval_results=[accuracy],
    )
    return visible(f"---\n{metadata.to_yaml()}\n---\n\n{_body(config, result, name)}")


def _body(config: FinetuneConfig, result: FinetuneResult, name: str) -> str:
    settings, data = config.to_json(), result.data
    validation = "none"
    if result.validation_accuracy is not None:
        count = data["validation"]["count"]
        validation = (
            f"{result.validation_accuracy:.2%} of {count} images carved out of train (best weights chosen by it)"
        )
    shown = {key: value for key, value in settings.items() if value not in (None, False, 0, 0.0, "none", "")}
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in shown.items() if key != "output")
    classes = ", ".join(result.labels[:50]) + (" ..." if len(result.labels) > 50 else "")
    test = data["test"]
    notes = "".join(f"- {note}\n" for note in result.notes)
    return f"""# {name}

An image classifier, fine-tuned by vitdeploy from `{settings["model"]}` on `{test["name"]}`.

- **Test accuracy**: {result.test_accuracy:.2%} of {test["count"]} images of {test["name"]}/{test["split"]}, looked at
  once, after everything was decided.
- **Validation accuracy**: {validation}.
- **Classes** ({len(result.labels)}): {classes}.
- **Steps**: {result.steps}, weights of step {result.curve.best_step or result.steps}.
{notes}
![loss and accuracy](training_curve.svg)

![confusion matrix](confusion_matrix.svg)

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")
classify("image.png")
```

To a device, with preprocessing in the graph: `vitdeploy export {name} --output bundles/{name}`.

## Settings

Those that are not off; all of them are in `finetune.toml`, which `vitdeploy finetune --config` takes.

| setting | value |
| --- | --- |
{rows}
"""


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")
