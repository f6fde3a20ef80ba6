"""The model card: README.md with the metadata by which the Hugging Face Hub lists, filters and compares models."""

from __future__ import annotations

from typing import Any

from vitdeploy.core.errors import require
from vitdeploy.core.text import visible
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.result import FinetuneResult

__all__ = ["headline", "model_card"]

_HUB_NAMES = {"cifar10": "uoft-cs/cifar10"}


def headline(result: FinetuneResult) -> tuple[str, float]:
    """The number that says how good the model is on the test images, by name: accuracy, or mAP of several labels."""
    if result.multi_label is None:
        return "accuracy", result.test_accuracy
    return "mAP", result.multi_label.mean_average_precision


def model_card(config: FinetuneConfig, result: FinetuneResult, *, model_is_local: bool) -> str:
    """README.md of a finished run."""
    cards = require("huggingface_hub", extra="build")
    test = result.data["test"]
    local = test["kind"] == "local"
    hub_name = None if local else _HUB_NAMES.get(test["name"], test["name"] if test["kind"] == "hub" else None)
    measured = [
        cards.EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=hub_name or test["name"],
            dataset_name=test["name"],
            dataset_split=test["split"],
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 6),
        )
        for kind, title, value in _metrics(result)
    ]
    name = result.output.name
    metadata = cards.ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", "vit", "vitdeploy"],
        base_model=None if model_is_local else str(config.model),
        datasets=[hub_name] if hub_name else None,
        metrics=[one.metric_type for one in measured],
        model_name=name,
        eval_results=measured,
    )
    return visible(f"---\n{metadata.to_yaml()}\n---\n\n{_body(config, result, name)}")


def _metrics(result: FinetuneResult) -> list[tuple[str, str, float]]:
    """Kind on the Hub, title and value of each number of the test images."""
    found = result.multi_label
    if found is None:
        return [("accuracy", "Accuracy", result.test_accuracy)]
    return [
        ("mean_average_precision", "Mean average precision", found.mean_average_precision),
        ("f1", f"F1 (micro, from a score of {found.threshold:.4g})", found.f1_micro or 0.0),
        ("exact_match", "Exact match", found.exact_match),
    ]


def _findings(result: FinetuneResult, validation: str) -> str:
    """Lines on how good the model is."""
    test, found = result.data["test"], result.multi_label
    looked = (
        f"{test['count']} images of {test['name']}/{test['split']}, looked at\n  once, after everything was decided"
    )
    if found is None:
        return f"""- **Test accuracy**: {result.test_accuracy:.2%} of {looked}.
- **Validation accuracy**: {validation}."""
    f1 = (
        "nothing was found"
        if found.f1_micro is None
        else f"F1 {found.f1_micro:.2%} micro, {found.f1_macro or 0:.2%} macro"
    )
    low, high = found.ci95
    chosen = "it is the usual one: there were no validation images to find a better one"
    if result.threshold is not None:
        chosen = (
            "with it micro F1 is highest on the validation images.\n  It is `label_threshold` in config.json, and"
            " bundles that are exported from here have it"
        )
    return f"""- **Test mAP**: {found.mean_average_precision:.2%} (95 % interval {low:.1%} to {high:.1%}); {f1};
  exact match {found.exact_match:.2%}, of {looked}.
- **Validation mAP**: {validation}.
- **Threshold**: a label counts from a score of {found.threshold:.4g}; {chosen}."""


def _body(config: FinetuneConfig, result: FinetuneResult, name: str) -> str:
    settings, data = config.to_json(), result.data
    validation = "none"
    if result.validation_accuracy is not None:
        chosen = data["validation"]
        value = result.validation_accuracy
        if result.multi_label is not None:  # what the weights were chosen by
            value = result.metrics["validation_mean_average_precision"]
        named = config.validation_split is not None
        where = f"of {chosen['name']}/{chosen['split']}" if named else "carved out of train"
        validation = f"{value:.2%} of {chosen['count']} images {where} (best weights chosen by it)"
    shown = {key: value for key, value in settings.items() if value not in (None, False, 0, 0.0, "none", "")}
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in shown.items() if key != "output")
    classes = ", ".join(result.labels[:50]) + (" ..." if len(result.labels) > 50 else "")
    test = data["test"]
    several = result.multi_label is not None
    pictures = "" if several else "\n![confusion matrix](confusion_matrix.svg)\n"
    notes = "".join(f"- {note}\n" for note in result.notes)
    what = "An image classifier of several labels an image" if several else "An image classifier"
    return f"""# {name}

{what}, fine-tuned by vitdeploy from `{settings["model"]}` on `{test["name"]}`.

{_findings(result, validation)}
- **{"Labels" if several else "Classes"}** ({len(result.labels)}): {classes}.
- **Steps**: {result.steps}, weights of step {result.curve.best_step or result.steps}.
{notes}
![loss and accuracy](training_curve.svg)
{pictures}
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
