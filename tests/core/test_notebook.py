"""What a notebook shows of results: HTML without a script, all text escaped; and progress without a terminal."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from tests.tools.forms import report_of
from tests.tools.small_bundle import write_small_bundle
from vitdeploy import EmbeddingSpec
from vitdeploy.core import progress
from vitdeploy.evaluation.vectors import Kept, VectorQuality

EVIL = "<script>alert(1)</script>"


def test_a_prediction_is_bars(tmp_path: Path) -> None:
    small = write_small_bundle(tmp_path / "small", labels=("cat", EVIL, "dog"))
    with vitdeploy.load(small, "onnxruntime", "fp32", threads=1) as classifier:
        prediction = classifier.predict(np.full((8, 8, 3), 200, np.uint8), 3)
    page = prediction._repr_html_()
    widths = [int(width) for width in re.findall(r"width:(\d+)px", page)]
    assert widths == [round(160 * score.score) for score in prediction.top_k if score.score is not None]
    assert "<script" not in page and "&lt;script" in page and f"<b>{prediction.label}" in page.replace("&lt;", "<")


def test_a_bundle_is_its_files(tmp_path: Path) -> None:
    small = write_small_bundle(tmp_path / "small", labels=("cat", EVIL))
    page = vitdeploy.Bundle.open(small)._repr_html_()
    assert "model.int8-cpu.onnx" in page and "2 classes" in page and "<script" not in page
    assert page.count("<tr>") == 1 + 4 + 1  # a head, four graphs, an engine


def test_a_report_is_its_table() -> None:
    report = report_of(flip=1, seed=1)
    page = report._repr_html_()
    assert page.count("<tr>") == 1 + len(report.rows)
    best = report.best
    assert best is not None and best.accuracy is not None and f"<b>{best.accuracy.top1:.2%}</b>" in page
    assert "speed-up" in page and str(report.recommendation["sentence"])[:20] in page


def test_a_report_shows_what_its_task_is_judged_by() -> None:
    quality = VectorQuality(5, 200, recall=Kept(0.97, (0.96, 0.98)))
    report = report_of(seed=1)
    rows = tuple(replace(row, accuracy=None, embedding=quality) for row in report.rows)
    page = replace(report, rows=rows)._repr_html_()
    assert "<th>recall@5</th>" in page and page.count("97.00%") == len(rows) and "top-1" not in page.split("<thead>")[1]


def test_a_bundle_of_vectors_has_no_classes(tmp_path: Path) -> None:
    small = vitdeploy.Bundle.open(write_small_bundle(tmp_path / "small"))
    vectors = replace(small.manifest, labels=(), embedding=EmbeddingSpec("class", True, 24))
    page = replace(small, manifest=vectors)._repr_html_()
    assert "24 numbers an image" in page and "0 classes" not in page


def test_an_explanation_is_its_pictures(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (90, 40, 7)).save(tmp_path / "cat.png")
    found = vitdeploy.explain(tiny_bundle, tmp_path / "cat.png", tmp_path / "seen")
    assert found._repr_html_().count("<img ") == len(found.pictures) == 3
    found.pictures[0].unlink()
    assert found._repr_html_().count("<img ") == 2


def test_every_repr_is_short(tiny_bundle: Path, tmp_path: Path) -> None:
    from vitdeploy.explain import look_inside

    bundle = vitdeploy.Bundle.open(tiny_bundle)
    pixels = np.zeros((32, 32, 3), np.uint8)
    things: list[Any] = [bundle, bundle.manifest, vitdeploy.doctor(), vitdeploy.inspect(tiny_bundle)]
    things.append(vitdeploy.verify(tiny_bundle, backend="onnxruntime", precision="fp32"))
    things += [look_inside(tiny_bundle, pixels), report_of(flip=1, seed=1)]
    things += [vitdeploy.explain(tiny_bundle, pixels, tmp_path / "seen"), vitdeploy.load_dataset("digits", "test")]
    with vitdeploy.load(tiny_bundle, threads=1) as classifier:
        things += [classifier, classifier.predict(pixels)]
    for thing in things:
        assert len(repr(thing)) < 400, repr(thing)[:500]


def test_progress_in_a_notebook_needs_no_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, page: str) -> None:
            shown[-1] = page

    def display(page: str, *, display_id: bool) -> Handle:
        shown.append(page)
        return Handle()

    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    vitdeploy.show_progress()
    try:
        with progress.task(f"Training {EVIL}", total=4, unit="steps") as step:
            assert "<progress max='4' value='0'>" in shown[0] and "<script" not in shown[0]
            step.advance(3)
        assert shown[0].startswith("✓ Training") and "3/4 steps" in shown[0]
    finally:
        vitdeploy.show_progress(False)
    with progress.task("Silent again"):
        pass
    assert len(shown) == 1
