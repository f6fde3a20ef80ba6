"""A nightly job: classify a folder, and say which images a person should look at.

    python examples/batch_job.py bundles/vit inbox reports --unsure 0.6

writes into `reports`: results.csv, one row per image; review.txt, the images whose best score is under `--unsure` or
that could not be read; summary.json, the counts. Where an image may have several labels each is counted, and those
without any are for review. A job that was killed continues where it was when it is started again;
one that was done classifies nothing. Needs `pip install '.[cpu]'`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path

from vitdeploy import VitdeployError, load, predict_files
from vitdeploy.core.text import visible


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify a folder of images for a report.")
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("reports", type=Path)
    parser.add_argument("--unsure", type=float, default=0.5, help="a best score under this is reviewed (default: 0.5)")
    given = parser.parse_args()
    results = given.reports / "results.csv"
    if not results.exists():
        try:
            with load(given.bundle) as classifier:
                done = predict_files(classifier, [given.images], results)
        except VitdeployError as error:
            print(visible(f"{error.message}\n{error.hint}"), file=sys.stderr)
            return 1
        print(f"{done.images} images, {done.resumed} of them before, {done.failed} failed")
    report(results, given.unsure)
    return 0


def report(results: Path, unsure: float) -> None:
    """Write summary.json and review.txt beside the results."""
    classes: Counter[str] = Counter()
    review = []
    with open(results, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["error"]:
                review.append(f"{row['image']}\t{row['error']}")
                continue
            score = float(row["score"])
            found = json.loads(row["labels"]) if "labels" in row else [row["label"]]
            classes.update(found)
            if not found or ("labels" not in row and score < unsure):
                other = f", or {row['label_2']}" if "label_2" in row else ""
                review.append(f"{row['image']}\t{row['label']} {score:.2f}{other}")
    results.with_name("review.txt").write_text("".join(f"{line}\n" for line in review), encoding="utf-8")
    summary = {"classes": dict(classes.most_common()), "to_review": len(review)}
    results.with_name("summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
