"""examples/batch_job.py: a report of a folder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from tests.tools.running import run
from vitdeploy import load


def test_batch_job(tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    inbox = Path(shutil.copytree(tiny_images, tmp_path / "inbox"))
    (inbox / "broken.png").write_bytes(b"oops")
    reports = tmp_path / "reports"
    done = run("batch_job.py", tiny_bundle, inbox, reports, "--unsure", 0.9)
    assert done.returncode == 0, done.stderr
    assert "41 images, 0 of them before, 1 failed" in done.stdout
    with load(tiny_bundle) as classifier:
        paths = sorted(inbox.rglob("*/*.png"))
        answers = dict(zip(map(str, paths), classifier.predict(paths), strict=True))
    with open(reports / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"]: row["label"] for row in rows if not row["error"]} == {
        name: answer.label for name, answer in answers.items()
    }
    summary = json.loads((reports / "summary.json").read_text())
    assert sum(summary["classes"].values()) == 40
    review = (reports / "review.txt").read_text().splitlines()
    unsure = {name for name, answer in answers.items() if answer.score < 0.9}
    assert {line.split("\t")[0] for line in review} == unsure | {str(inbox / "broken.png")}
    assert summary["to_review"] == len(review)
    again = run("batch_job.py", tiny_bundle, inbox, reports, "--unsure", 0)
    assert again.returncode == 0 and again.stdout == ""
    assert (reports / "review.txt").read_text().count("\n") == 1


def test_a_missing_bundle(tmp_path: Path) -> None:
    done = run("batch_job.py", tmp_path / "none", tmp_path, tmp_path / "reports")
    assert done.returncode == 1
    assert "no bundle" in done.stderr and "Traceback" not in done.stderr
