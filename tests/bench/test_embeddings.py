"""The benchmark of an embedding: what each form keeps of FP32's vectors, its limits, and the report of it."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.tools.command_line import invoke
from tests.tools.forms import CLASSES, Clock, KnownRunner, Pictures, form, report_on
from tests.tools.towers import write_tower
from vitdeploy import BenchReport, Recipe, bench, build, export, load, load_dataset
from vitdeploy.bench import csv_text, markdown, render_html, save
from vitdeploy.bundle import Bundle
from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.vectors import summarise_vectors
from vitdeploy.models.tasks import TASKS
from vitdeploy.report.mixed import mixed, mixed_sentences
from vitdeploy.report.recommendation import recommended
from vitdeploy.report.text import terminal_table
from vitdeploy.runtime.selection import Candidate, candidates


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> tuple[Path, Path]:
    """(checkpoint, bundle with INT8)."""
    root = tmp_path_factory.mktemp("vectors")
    checkpoint = write_tower("dinov2", root / "checkpoint")
    bundle = export(checkpoint, root / "bundle")
    build(bundle, ["int8"], target="onnx", recipe=Recipe(dataset=str(tiny_images), count=16))
    return checkpoint, bundle.path


@pytest.fixture(scope="module")
def report(made: tuple[Path, Path], tiny_images: Path) -> BenchReport:
    return bench(
        made[1],
        load_dataset(tiny_images, "all"),
        baseline=made[0],
        backends=("onnxruntime",),
        neighbours=3,
        min_cosine=0.9,
        max_drop_points=50,
        rounds=3,
        max_seconds=3,
        memory=False,
        threads=1,
    )


def test_each_form_is_compared_with_pytorch(report: BenchReport, made: tuple[Path, Path], tiny_images: Path) -> None:
    data = load_dataset(tiny_images, "all")
    images = [data.image(index) for index in range(len(data))]
    with load(made[1], "onnxruntime", "fp32") as exact, load(made[1], "onnxruntime", "int8") as small:
        wanted, found = exact.embed(images), small.embed(images)
    seen = np.ones(len(images), np.bool_)
    int8 = report.row("int8/onnxruntime").embedding
    own = summarise_vectors(Answers(found, seen), data.label_ids, 3, Answers(wanted, seen))
    assert int8 is not None and int8.cosine is not None and own is not None and own.cosine is not None
    assert int8.cosine.value == pytest.approx(own.cosine.value, abs=1e-4) and int8.cosine.value < 0.99999
    assert (int8.count, int8.k) == (40, 3)
    fp32 = report.row("fp32/onnxruntime").embedding
    assert fp32 is not None and fp32.cosine is not None and fp32.recall is not None and fp32.knn is not None
    assert fp32.cosine.value > 0.99999 and fp32.recall.value > 0.95 and fp32.knn.delta == 0
    base = report.base
    assert base is not None and base.backend == "pytorch" and base.embedding is not None
    assert base.embedding.cosine is None and base.embedding.knn is not None
    assert {row.status for row in report.rows} == {"ok"} and not report.disagreements


def test_the_report_is_written_and_read(report: BenchReport) -> None:
    again = BenchReport.from_json(json.loads(report.dumps()))
    assert again.row("int8/onnxruntime").embedding == report.row("int8/onnxruntime").embedding
    page, text, table = render_html(report), markdown(report), csv_text(report)
    for shown in (page, text):
        assert "cosine" in shown and "recall@" in shown and "3NN top-1" in shown.replace("kNN top-1", "3NN top-1")
    assert "bootstrap" in page and "bootstrap" in text
    line = next(line for line in table.splitlines() if line.startswith("int8/onnxruntime"))
    head = table.splitlines()[0].split(",")
    kept = report.row("int8/onnxruntime").embedding
    assert kept is not None and kept.recall is not None
    assert float(line.split(",")[head.index("recall")]) == pytest.approx(kept.recall.value)


def test_limits_decide_what_is_recommended(report: BenchReport) -> None:
    def outside(**limits: float | None) -> tuple[str, ...]:
        return recommended(replace(report, settings=replace(report.settings, **limits))).row("int8/onnxruntime").outside

    assert not any("cosine" in why for why in outside(min_cosine=0.5))
    assert any("a mean cosine of" in why for why in outside(min_cosine=0.9999999))
    assert any("recall@3" in why for why in outside(min_recall=0.9999999))
    bare = tuple(replace(row, embedding=row.embedding and replace(row.embedding, knn=None)) for row in report.rows)
    nothing = recommended(replace(report, rows=bare, settings=replace(report.settings, min_cosine=None)))
    assert "no limit says what it must keep" in nothing.row("int8/onnxruntime").outside[0]
    assert nothing.recommendation["key"] == nothing.baseline["key"] or nothing.recommendation["key"] is None
    some = recommended(replace(report, rows=bare, settings=replace(report.settings, min_cosine=0.5)))
    assert "keeps a mean cosine of 0.5" in str(some.recommendation["sentence"])


def test_load_keeps_to_the_limits_of_the_report(report: BenchReport, made: tuple[Path, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(made[1], tmp_path / "bundle"))

    def found(rows: BenchReport = report, **limits: float | None) -> tuple[Candidate, Candidate]:
        """INT8 and FP32, as `load` finds them."""
        asked = replace(rows, settings=replace(report.settings, **{"min_cosine": None, **limits}))
        save(asked, Bundle.open(path), "<html>")
        with Bundle.open(path).edit() as editor:
            editor.update(choice=None)
        there = {c.precision: c for c in candidates(Bundle.open(path), "onnxruntime", "auto", "cpu")}
        return there["int8"], there["fp32"]

    int8, fp32 = found(min_cosine=0.01, min_recall=0.001)
    assert int8.reason is None and fp32.reason is None
    assert "within 50 points of top-1 of a nearest-neighbour classifier and the limits on vectors" in fp32.why
    assert "a mean cosine of 0.01 and recall@3 of 0.001" in fp32.why
    for limits, word in (({"min_cosine": 0.9999999}, "a mean cosine of"), ({"min_recall": 0.9999999}, "recall@3 of")):
        int8, fp32 = found(**limits)
        assert int8.reason is not None and int8.reason.startswith(f"it has {word}")
        assert "in the bundle's benchmark" in int8.reason and fp32.reason is None
    kept = report.row("int8/onnxruntime").embedding
    assert kept is not None and kept.knn is not None
    worse = replace(kept, knn=replace(kept.knn, delta=-0.6))
    rows = tuple(replace(row, embedding=worse) if row.form == "int8" else row for row in report.rows)
    assert found(replace(report, rows=rows))[0].reason == (
        "it lost 60.00 points of top-1 of a nearest-neighbour classifier in the bundle's benchmark; the budget was 50"
    )
    bare = tuple(replace(row, embedding=row.embedding and replace(row.embedding, knn=None)) for row in report.rows)
    int8, _ = found(replace(report, rows=bare), min_cosine=0.01)
    assert "the fastest within the limits on vectors (a mean cosine of 0.01) in the benchmark" in int8.why


def test_an_index_of_one_form_and_queries_of_another(report: BenchReport) -> None:
    """Both ways, in every report."""
    kept = report.row("int8/onnxruntime").embedding
    assert kept is not None and kept.queries is not None and kept.index is not None and kept.recall is not None
    shares = {
        kept.queries.value: "its queries find {} on an index of PyTorch",
        kept.index.value: "queries of PyTorch find {} on its index",
        kept.recall.value: "alone it finds {}",
    }
    console = Console(width=200, file=io.StringIO())
    console.print(terminal_table(report, 60))  # too narrow for the columns
    assert isinstance(console.file, io.StringIO)
    told = " ".join(console.file.getvalue().split())
    for value, words in shares.items():
        assert words.format(f"{100 * value:.1f} %") in told and words.format(f"{100 * value:.1f} %") in markdown(report)
    assert "Within recall" not in told and "fp32" not in {each.row.form for each in mixed(report)}
    page = render_html(report)
    section = page[page.index("Mixed with the baseline") :].partition("<h2>")[0]
    assert all(f"{kept:.4f}<small>" in section for kept in shares) and "yes" not in section
    between = (kept.queries.ci95[0] + kept.index.ci95[0]) / 2
    limited = replace(report, settings=replace(report.settings, min_recall=between))
    (answer,) = (each for each in mixed(limited) if each.row.backend == "onnxruntime")
    assert answer.may(answer.queries) is (kept.queries.ci95[0] >= between)
    assert answer.may(answer.index) is (kept.index.ci95[0] >= between)
    strict, easy = (replace(report, settings=replace(report.settings, min_recall=least)) for least in (0.9999999, 1e-7))
    assert mixed_sentences(strict)[0].endswith("its queries there no, its index for them no.")
    assert mixed_sentences(easy)[0].endswith("its queries there yes, its index for them yes.")
    assert '<span class="bad">no</span>' in render_html(strict) and '<span class="good">yes' in render_html(easy)


def test_what_layers_cost_an_embedding_is_in_the_page(report: BenchReport) -> None:
    row = {"layer": "fc1", "kind": "linear", "macs_share": 0.1, "sqnr_db": 30.0, "logits_db": 25.0, "agreement": 91.0}
    rows = [{**row, "drop": None, "cosine": 0.98765, "recall": 0.8765}]
    data = {"count": 40, "name": "photos", "split": "train"}
    page = render_html(replace(report, analysis={"precision": "int8", "data": data, "rows": rows}))
    section = page[page.index("Layer by layer") :].partition("<h2>")[0]
    assert "0.98765" in section and "0.8765" in section and "FP32&#x27;s vectors" in section.replace("'", "&#x27;")
    assert "best class" not in section


def test_images_without_classes_have_no_classifier(made: tuple[Path, Path], tiny_images: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for place, path in enumerate(sorted(tiny_images.rglob("*.png"))[:12]):
        shutil.copy(path, photos / f"{place}.png")
    asked = ["--backend", "onnxruntime", "--no-latency", "--min-recall", 0.01, "--split", "all", "--json", "-"]
    done = invoke("bench", made[1], "--dataset", photos, *asked, "--neighbours", 2, "--no-save")
    assert done.exit_code == 0, done.stderr
    rows = {row["key"]: row["embedding"] for row in json.loads(done.stdout)["rows"]}
    assert rows["int8/onnxruntime"]["knn"] is None and rows["int8/onnxruntime"]["recall"]["value"] > 0
    assert rows["fp32/onnxruntime"]["recall"] is None, "the first form is the baseline"


def tried(baseline: KnownRunner) -> BenchReport:
    """Vectors of images without classes; the baseline's time and its answers are its own affair."""
    clock = baseline.clock
    forms = [form("fp32", "pytorch", baseline), form("int8", "openvino", KnownRunner(clock, CLASSES))]
    return report_on(
        forms, clock, Pictures(40, CLASSES), task=TASKS["embedding"], rounds=10, phases=False, memory=False
    )


def test_what_embeddings_without_classes_lose_is_no_change_of_top1() -> None:
    """Nothing changes that has points, so there is no picture of it: it had every form at no change of top-1."""
    page = render_html(tried(KnownRunner(Clock(), CLASSES)))
    assert "Every form" in page and "Accuracy against latency" not in page and "top-1" not in page


def test_vectors_that_are_compared_with_none_say_nothing() -> None:
    """They were taken for the baseline's own, which are all found: for the best quality that there is."""
    whole = KnownRunner(Clock(), CLASSES)
    tried(whole)
    found = tried(KnownRunner(Clock(), CLASSES, breaks_after=whole.calls - 1))  # answers come last
    assert found.row("fp32/pytorch").latencies and found.row("fp32/pytorch").embedding is None
    row = found.row("int8/openvino")
    assert row.status == "ok" and row.embedding is None and row.quality is None and not row.on_front
    assert "not compared with a baseline" in row.outside[0]
