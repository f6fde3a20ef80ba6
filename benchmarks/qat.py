"""How much of a bad INT8's loss a quantisation-aware tune brings back, image by image.

    python benchmarks/qat.py CHECKPOINT DATASET FOLDER --json docs/results/cifar10-qat.json

The case is made bad on purpose: 16 calibration images, ranges that cut off one value in a hundred, no smoothing, no
correction of biases, and everything in INT8 that can be: attention's products, patch embedding, classifier. The tune
then runs with that very placement. FOLDER gets the bundles (before, after), the tuned checkpoint and result.json; where
they are there already, only the comparison image by image is made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np

from vitdeploy import load
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.data import ImageDataset, load_dataset
from vitdeploy.evaluation.statistics import mcnemar_exact, paired_difference
from vitdeploy.qat import QatConfig, tune

BAD = {"count": 16, "method": "percentile", "percentile": 99.0, "smoothing": False, "bias_correction": False}
EVERYTHING = {"attention": True, "patch_embedding": True, "classifier": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("dataset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--limit-train", type=int, default=2600)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--limit-test", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    before, after = asked.folder / "before", asked.folder / "after"
    if not before.exists():
        export(asked.checkpoint, before)
        build(before, ["int8"], target="onnx", recipe=Recipe(dataset=asked.dataset, **BAD, **EVERYTHING))
    config = QatConfig(
        model=asked.checkpoint,
        bundle=after,
        dataset=asked.dataset,
        output=asked.folder / "checkpoint",
        overwrite=True,
        max_steps=asked.steps,
        batch_size=asked.batch_size,
        limit_train=asked.limit_train,
        validation=asked.validation,
        limit_test=asked.limit_test,
        threads=1,
    )
    kept = asked.folder / "result.json"
    if not kept.exists():
        shutil.rmtree(after, ignore_errors=True)
        shutil.copytree(before, after)
        kept.write_text(json.dumps(tune(config).to_json()), encoding="utf-8")
    result = json.loads(kept.read_text(encoding="utf-8"))
    test = load_dataset(asked.dataset, "test", limit=asked.limit_test)
    right = {
        f"{name}, {precision}": answers(bundle, precision, test)
        for name, bundle in (("before", before), ("after", after))
        for precision in ("fp32", "int8")
    }
    report = {
        "result": {**result, **{name: Path(result[name]).name for name in ("output", "bundle")}},
        "recipe": {**BAD, **EVERYTHING},
        "settings": config.to_json(),
        "pairs": [pair(right, *names) for names in PAIRS],
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("vitdeploy", "torch", "transformers", "onnxruntime")},
    }
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"recovered: {result['recovered']:.1%} of {100 * result['loss']:.2f} points")
    for line in report["pairs"]:
        print(f"{line['form']} against {line['against']}: {line['change']:+.2f} points {line['interval']}")


PAIRS = (
    ("before, int8", "before, fp32"),
    ("after, int8", "before, int8"),
    ("after, int8", "before, fp32"),
    ("after, fp32", "before, fp32"),
)


def answers(bundle: Path, precision: str, test: ImageDataset) -> np.ndarray:
    """Which images a form has right, in ONNX Runtime."""
    with load(bundle, "onnxruntime", precision) as classifier:
        logits = classifier.logits([test.image(index) for index in range(len(test))])
    return logits.argmax(axis=1) == test.label_ids


def pair(right: dict[str, np.ndarray], form: str, against: str) -> dict[str, object]:
    """The paired change of top-1 in points, its 95 % interval, and McNemar's p."""
    only_against = int((right[against] & ~right[form]).sum())
    only_form = int((right[form] & ~right[against]).sum())
    change, interval = paired_difference(only_against, only_form, len(right[form]))
    return {
        "form": form,
        "against": against,
        "right": [int(right[form].sum()), int(right[against].sum())],
        "count": len(right[form]),
        "only_form_right": only_form,
        "only_other_right": only_against,
        "change": round(100 * change, 2),
        "interval": [round(100 * end, 2) for end in interval],
        "mcnemar_p": mcnemar_exact(only_against, only_form),
    }


if __name__ == "__main__":
    main()
