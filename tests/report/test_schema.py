"""What `to_json` gives is what docs/bench.schema.json says, and older reports can still be read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.small_bundle import write_small_bundle
from vitdeploy.bench import BenchReport, bench, markdown, render_html
from vitdeploy.data import load_dataset
from vitdeploy.report.comparison import compare
from vitdeploy.report.schema import schema

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
DOCS = Path(__file__).parents[2] / "docs"
FROZEN = Path(__file__).parent / "frozen"


def test_the_committed_schema_is_the_one_of_the_records() -> None:
    committed = json.loads((DOCS / "bench.schema.json").read_text())
    assert committed == schema(), "python -m vitdeploy.report.schema > docs/bench.schema.json"


@pytest.mark.parametrize("version", [1, 2])
def test_reports_of_every_schema_are_read(version: int, check: Any) -> None:
    report = BenchReport.read(FROZEN / f"schema-{version}.json")
    check(json.loads(report.dumps()))
    row = report.row("int8/onnxruntime")
    assert row.latency is not None and row.latency.on_demand_ms is None and row.latency.ms is row.latency.steady_ms
    assert row.latency.speedup is not None and row.latency.speedup.ratio > 1 and row.accuracy is not None
    assert row.latency.ms.count == len(row.latency.ms.samples) and row.latency.ms.p99 is None  # of a few calls
    assert report.settings.rounds == 60 and report.settings.latency is True
    assert compare(report, report).rows and render_html(report).startswith("<!DOCTYPE html>")
    assert report.recommendation["sentence"] in markdown(report)


@pytest.fixture(scope="module")
def check() -> Any:
    schema = json.loads((DOCS / "bench.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).validate


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path, tiny_checkpoint: Path) -> dict[str, Any]:
    """The JSON of a benchmark with everything in it."""
    bundle = write_small_bundle(tmp_path_factory.mktemp("small") / "small")
    report = bench(
        bundle,
        load_dataset(tiny_images, "all"),
        baseline=tiny_checkpoint,
        precisions=["fp32", "int8"],
        backends=["onnxruntime", "tensorrt-rtx"],
        batch_sizes=(1, 2),
        image_sizes=((16, 16), (24, 20)),
        rounds=2,
        threads=1,
        callers=(1, 2),
        rates=(50.0,),
        load_seconds=0.3,
        max_latency_ms=1000.0,
    )
    data: dict[str, Any] = json.loads(report.dumps())
    return data


def test_a_full_report_is_what_the_schema_says(full: dict[str, Any], check: Any) -> None:
    check(full)
    rows = {row["key"]: row for row in full["rows"]}
    assert set(rows) == {"fp32/pytorch", "fp32/onnxruntime", "int8/onnxruntime", "int8/tensorrt-rtx"}
    for key in ("fp32/pytorch", "fp32/onnxruntime"):
        row = rows[key]
        assert [(p["batch_size"], p["image_size"]) for p in row["latencies"]] == [
            *((1, [16, 16]), (2, [16, 16])), *((1, [24, 20]), (2, [24, 20])),
        ]  # fmt: skip
        assert row["cold_start"]["import_ms"] > 0 and row["latencies"][0]["memory"]["host_peak_bytes"] > 2e7
        assert row["load"]["closed"][1]["callers"] == 2 and row["load"]["open"][0]["rate"] == 50
    # PyTorch can be split; the small bundle has no preprocessing of its own to cut out.
    assert rows["fp32/pytorch"]["phases"]["preprocess_ms"] > 0 and rows["fp32/onnxruntime"]["phases"] is None
    peaks = {key: row["latencies"][0]["memory"]["host_peak_bytes"] for key, row in rows.items() if row["latencies"]}
    # A process that imports PyTorch holds more than one that does not: each form is measured apart.
    assert peaks["fp32/pytorch"] > 2 * peaks["fp32/onnxruntime"]


def test_the_schema_bites(full: dict[str, Any], check: Any) -> None:
    for path, value in (
        (("schema_version",), 1),
        (("rows", 0, "status"), "fine"),
        (("rows", 0, "latencies", 0, "on_demand_ms", "p50"), "fast"),
        (("rows", 0, "accuracy", "top1"), 88.1),
        (("rows", 0, "no_such_field"), 1),
    ):
        wrong = copy.deepcopy(full)
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]  # type: ignore[index]
        inner[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            check(wrong)


def test_a_full_report_survives_json_and_is_shown(full: dict[str, Any]) -> None:
    report = BenchReport.from_json(full)
    assert json.loads(report.dumps()) == full
    page = render_html(report)
    for title in ("Latency against batch", "Latency against image size", "Where the time goes", "Throughput",
                  "Latency under load", "File size and memory", "Changed answers"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert "| 24x20 |" in markdown(report)


def test_a_skipped_run_is_what_the_schema_says(check: Any, tiny_images: Path, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", engine=False)
    report = bench(bundle, load_dataset(tiny_images, "all"), latency=False, precisions=["fp16"], threads=1)
    check(json.loads(report.dumps()))


@pytest.mark.parametrize("name", ["cifar10-vit-small.json", "cifar10-accuracy.json"])
def test_the_published_reports_can_be_read(name: str) -> None:
    report = BenchReport.read(str(DOCS / "results" / name))  # a path as text will do
    assert report.rows and (report.rows[0].latency or report.rows[0].accuracy)
    assert render_html(report).startswith("<!DOCTYPE html>") and BenchReport.from_json(report.to_json()) == report
