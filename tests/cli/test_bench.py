"""`vitdeploy bench`: every option has an effect, results and notes go where they belong, errors are clear."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.backends import needs_openvino
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.bench import BenchReport
from vitdeploy.bench.latency import LatencyRun
from vitdeploy.bench.machine import BusyMeter
from vitdeploy.bundle import Bundle, Manifest

Cli = Callable[..., Any]
QUICK = ("--rounds", 2, "--threads", 1, "--no-memory", "--no-phases")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("small") / "small")


def as_json(cli: Cli, small: Path, images: Path, *options: object, split: str = "all") -> dict[str, Any]:
    done = cli("bench", small, "--dataset", images, "--split", split, "--no-save", *QUICK, *options, "--json", "-")
    assert done.exit_code == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)  # standard output holds JSON and nothing else
    return data


def test_the_table_is_the_result(cli: Cli, small: Path, tiny_images: Path) -> None:
    done = cli("bench", small, "--dataset", tiny_images, "--split", "all", "--no-save", *QUICK)
    assert done.exit_code == 0, done.stderr
    for words in ("ONNX Runtime", "OpenVINO", "INT8", "speed-up", "TensorRT-RTX: skipped: engine built for", "fastest"):
        assert words in done.stdout
    assert "bench" not in {artifact.kind for artifact in Bundle.open(small).manifest.artifacts}


def test_rows_are_chosen(cli: Cli, small: Path, tiny_images: Path) -> None:
    data = as_json(cli, small, tiny_images, "--backend", "openvino", "--precision", "fp32,int8", "--no-accuracy")
    assert [row["key"] for row in data["rows"]] == ["fp32/openvino", "int8/openvino"]
    assert all(row["accuracy"] is None and row["latencies"][0]["on_demand_ms"]["p50"] > 0 for row in data["rows"])


def test_what_is_measured_is_chosen(cli: Cli, small: Path, tiny_images: Path) -> None:
    only = ("--precision", "fp32", "--backend", "onnxruntime")
    data = as_json(cli, small, tiny_images, *only, "--no-latency", "--limit", 20, "--max-drop", 0.25, "--seed", 3)
    assert "--no-latency" in data["command"] and "--no-save" in data["command"]
    (row,) = data["rows"]
    assert row["latencies"] == [] and row["accuracy"]["count"] == 20
    assert data["settings"]["max_drop_points"] == 0.25 and data["settings"]["seed"] == 3
    other = as_json(cli, small, tiny_images, *only, "--no-latency", "--limit", 20, "--seed", 4)
    assert other["dataset"]["fingerprint"] != data["dataset"]["fingerprint"]


def test_how_it_is_timed_is_chosen(cli: Cli, small: Path, tiny_images: Path) -> None:
    only = ("--precision", "fp32", "--backend", "onnxruntime", "--no-accuracy")
    (row,) = as_json(cli, small, tiny_images, *only, "--batch-size", "2,5")["rows"]
    assert [point["batch_size"] for point in row["latencies"]] == [2, 5]
    on_demand, steady = (row["latencies"][0][name]["count"] for name in ("on_demand_ms", "steady_ms"))
    assert 2 <= on_demand <= 6 and steady == 3 * on_demand  # beside busy programs rounds are made again
    data = as_json(cli, small, tiny_images, *only, "--rounds", 30, "--max-seconds", 0)
    (row,) = data["rows"]
    assert [row["latencies"][0][name]["count"] for name in ("on_demand_ms", "steady_ms")] == [10, 30]
    assert data["settings"]["threads"] == 1


@needs_openvino
def test_sizes_loads_and_limits_are_chosen(cli: Cli, small: Path, tiny_images: Path) -> None:
    only = ("--precision", "fp32", "--backend", "onnxruntime", "--limit", 20)
    load = ("--image-size", "16,24x20", "--callers", "1,2", "--rate", "40.5", "--load-seconds", 0.3)
    data = as_json(cli, small, tiny_images, *only, *load)
    (row,) = data["rows"]
    assert [point["image_size"] for point in row["latencies"]] == [[16, 16], [24, 20]]
    assert [loop["callers"] for loop in row["load"]["closed"]] == [1, 2]
    assert [loop["rate"] for loop in row["load"]["open"]] == [40.5] and data["settings"]["load_seconds"] == 0.3
    assert "--image-size 16x16,24x20" in data["command"]
    assert row["latencies"][0]["memory"] is None and row["phases"] is None
    for option, words in (
        (("--max-latency-ms", "0.0001"), "at p50 already"),
        (("--max-latency-ms", "1000"), "p95 can't be told from"),
        (("--max-memory", "1MB"), "of memory"),
    ):
        data = as_json(cli, small, tiny_images, *only, "--memory", *option)
        assert data["recommendation"]["key"] is None and words in data["rows"][0]["outside"][0]
    assert data["settings"]["max_memory_bytes"] == 10**6 and "--max-memory 1MB" in data["command"]


def test_what_it_shall_be_best_at_is_chosen(cli: Cli, small: Path, tiny_images: Path) -> None:
    data = as_json(cli, small, tiny_images, "--no-accuracy", "--prefer", "size", "--backend", "openvino")
    assert data["settings"]["prefer"] == "size" and "smallest form" in data["recommendation"]["sentence"]
    smallest = min(data["rows"], key=lambda row: (row["size_bytes"], row["latencies"][0]["on_demand_ms"]["p50"]))
    assert data["recommendation"]["key"] == smallest["key"]


def test_an_option_that_is_repeated_keeps_all_that_was_said(cli: Cli, small: Path, tiny_images: Path) -> None:
    only = ("--precision", "fp32", "--precision", "fp16", "--no-latency")
    data = as_json(cli, small, tiny_images, *only, "--backend", "openvino", "--backend", "onnxruntime")
    assert {row["backend"] for row in data["rows"]} == {"openvino", "onnxruntime"} and len(data["rows"]) == 4
    assert "--backend openvino,onnxruntime" in data["command"] and data["settings"]["precisions"] == ["fp32", "fp16"]


def test_more_baselines_are_rows(cli: Cli, small: Path, tiny_images: Path, tiny_checkpoint: Path) -> None:
    also = "bf16,half,half-preprocessed,tf32"
    options = ("--baseline", tiny_checkpoint, "--also", also, "--device", "cpu", "--phases", "--precision", "fp32")
    data = as_json(cli, small, tiny_images, *options, "--backend", "onnxruntime", "--keep-gpu-busy")
    rows = {row["key"]: row for row in data["rows"]}
    ways = ("fp32", "bf16-autocast", "fp16-half", "fp16-half-preprocessed", "fp32-tf32")
    assert list(rows) == [*(f"{way}/pytorch" for way in ways), "fp32/onnxruntime"]
    assert rows["bf16-autocast/pytorch"]["phases"]["preprocess_ms"] > 0 and data["settings"]["device"] == "cpu"
    ready = rows["fp16-half-preprocessed/pytorch"]
    assert ready["status"] == "ok" and ready["phases"] is None and not ready["on_front"]
    assert ready["accuracy"]["top1"] == rows["fp16-half/pytorch"]["accuracy"]["top1"]
    assert rows["fp32-tf32/pytorch"]["status"] == "skipped" and data["settings"]["keep_gpu_busy"]
    assert all(row["tf32"] is None for row in data["rows"])


def test_accuracy_can_come_from_an_earlier_report(cli: Cli, small: Path, tiny_images: Path, tmp_path: Path) -> None:
    only = ("--precision", "fp32", "--backend", "onnxruntime")
    earlier = tmp_path / "accuracy.json"
    earlier.write_text(json.dumps(as_json(cli, small, tiny_images, *only, "--no-latency")))
    data = as_json(cli, small, tiny_images, *only, "--accuracy-from", earlier)
    assert data["rows"][0]["accuracy"] == json.loads(earlier.read_text())["rows"][0]["accuracy"]
    assert data["rows"][0]["latencies"] and any("taken from that report" in note for note in data["notes"])
    done = cli("bench", small, "--dataset", tiny_images, "--split", "test", *QUICK, *only, "--accuracy-from", earlier)
    assert done.exit_code == 1 and "other images" in done.stderr


def test_the_split_is_chosen(cli: Cli, small: Path, tiny_images: Path) -> None:
    only = ("--precision", "fp32", "--backend", "onnxruntime", "--no-latency")
    test, train = (as_json(cli, small, tiny_images, *only, split=split) for split in ("test", "train"))
    assert test["dataset"]["split"] == "test" != train["dataset"]["split"]
    assert test["dataset"]["fingerprint"] != train["dataset"]["fingerprint"]


@pytest.mark.parametrize("option", ["--image-column", "--label-column"])
def test_columns_reach_the_dataset(cli: Cli, small: Path, tiny_images: Path, option: str) -> None:
    done = cli("bench", small, "--dataset", tiny_images, option, "photo")
    assert done.exit_code == 1 and "has no columns" in done.stderr


def test_a_baseline_that_is_not_there_is_found_before_anything_is_measured(
    cli: Cli, small: Path, tiny_images: Path, tmp_path: Path
) -> None:
    for baseline, words in ((tmp_path / "vti", "no checkpoint at"), (small, "is not a checkpoint")):
        done = cli("bench", small, "--dataset", tiny_images, "--baseline", baseline, "--json", tmp_path / "r.json")
        assert done.exit_code == 1 and words in done.stderr and "Hint: " in done.stderr
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("option", ["--json", "--report", "--markdown", "--csv"])
def test_a_file_that_can_not_be_written_is_found_before_anything_is_done(
    cli: Cli, small: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").touch()
    done = cli("bench", small, "--dataset", tmp_path / "none", option, tmp_path / "file" / "report.txt")
    assert done.exit_code == 1 and "a file is in the place of one of its folders" in done.stderr


def test_pytorch_is_the_baseline(cli: Cli, small: Path, tiny_images: Path, tiny_checkpoint: Path) -> None:
    data = as_json(cli, small, tiny_images, "--baseline", tiny_checkpoint, "--precision", "fp32")
    assert data["baseline"]["key"] == "fp32/pytorch"
    # Where other programs keep the machine busy, as tests side by side do, there is no ratio and a reason.
    assert all(item["on_demand_speedup"] or item["busy"] for row in data["rows"] for item in row["latencies"])


@needs_openvino
def test_files_are_written_and_kept_in_the_bundle(cli: Cli, tiny_images: Path, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", engine=False)
    files = {name: tmp_path / f"out.{name}" for name in ("json", "report", "markdown", "csv")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    done = cli("bench", bundle, "--dataset", tiny_images, "--split", "all", *QUICK, "--precision", "fp32", *options)
    assert done.exit_code == 0, done.stderr
    report = BenchReport.from_json(json.loads(files["json"].read_text()))
    assert files["report"].read_text().startswith("<!DOCTYPE html>") and files["markdown"].read_text().count("\n|") >= 4
    assert all(str(path) in done.stderr for path in files.values())
    lines = list(csv.DictReader(files["csv"].open()))
    assert [line["key"] for line in lines] == [row.key for row in report.rows]
    assert float(lines[0]["p50_ms"]) == report.rows[0].latency.ms.p50  # type: ignore[union-attr]
    kept = json.loads((bundle / "bench" / "report.json").read_text())
    assert BenchReport.from_json(kept) == report
    Bundle.open(bundle).verify()
    # The command in the report says what was asked, and not where it was.
    assert report.command == (
        f"vitdeploy bench bundle --dataset {tiny_images.name} --split all --precision fp32 --threads 1 --rounds 2"
        " --no-memory --no-phases"
        " --json out.json --report out.report --markdown out.markdown --csv out.csv"
    )


def test_a_bundle_that_cannot_be_written_keeps_nothing_and_says_so(
    cli: Cli, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.bundle import editing
    from vitdeploy.core.storage import locked

    monkeypatch.setattr(editing, "_PATIENCE_S", 0.2)  # the lock is held for as long as the command runs
    bundle = write_small_bundle(tmp_path / "bundle", engine=False)
    with locked(bundle / ".lock"):
        done = cli("bench", bundle, "--dataset", tiny_images, "--split", "all", *QUICK, "--precision", "fp32")
    assert done.exit_code == 0 and "fastest" in done.stdout
    assert not (bundle / "bench").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--dataset", "nonsense"], 1, "nonsense"),
        ([], 2, "--dataset"),
        (["--dataset", "x", "--batch-size", "one"], 2, "such as 1,8"),
        (["--dataset", "x", "--backend", "tensorflow"], 2, "openvino"),
        (["--dataset", "x", "--precision", "int4"], 2, "fp16"),
        (["--dataset", "x", "--limit", "0"], 2, "limit"),
        (["--dataset", "x", "--image-size", "large"], 2, "such as 224"),
        (["--dataset", "x", "--max-memory", "much"], 2, "such as 500MB"),
        (["--dataset", "x", "--max-latency-ms", "0"], 1, "more than 0"),
        (["--dataset", "x", "--also", "int4"], 2, "bf16-compile"),
    ],
)
def test_wrong_use_is_explained(cli: Cli, small: Path, options: list[str], code: int, words: str) -> None:
    done = cli("bench", small, *options)
    assert done.exit_code == code and words in done.stderr and "Traceback" not in done.stderr


def test_options_that_fit_nothing_are_explained(cli: Cli, small: Path, tiny_images: Path) -> None:
    for options in (
        ["--batch-size", "0"],
        ["--no-latency", "--no-accuracy"],
        ["--backend", "tensorrt"],
        ["--no-latency", "--max-latency-ms", "10"],
        ["--no-memory", "--max-memory", "500MB"],
    ):
        done = cli("bench", small, "--dataset", tiny_images, "--split", "all", *options)
        assert done.exit_code == 1 and "Hint:" in done.stderr


def test_help_has_an_example(cli: Cli) -> None:
    done = cli("bench", "--help")
    assert done.exit_code == 0 and "vitdeploy bench bundles/vit --dataset cifar10" in done.stdout


def interrupt_at_visit(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    visits, visit = 0, LatencyRun._visit

    def interrupted(run: LatencyRun, name: str, index: int) -> None:
        nonlocal visits
        visits += 1
        if visits == number:
            signal.raise_signal(signal.SIGINT)  # what a terminal sends for Ctrl-C
        visit(run, name, index)

    monkeypatch.setattr(LatencyRun, "_visit", interrupted)


@needs_openvino
def test_ctrl_c_writes_what_was_measured_and_exits_with_130(
    cli: Cli, small: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at_visit(20, monkeypatch)
    files = tmp_path / "out.json", tmp_path / "out.html"
    options = ("--no-save", "--rounds", 1000, "--threads", 1, "--no-memory", "--json", files[0], "--report", files[1])
    done = cli("bench", small, "--dataset", tiny_images, "--split", "all", *options)
    assert done.exit_code == 130 and "Partial" in done.stdout
    report = BenchReport.read(files[0])
    assert report.partial and "Partial." in files[1].read_text()
    assert all(2 <= row.latency.ms.count <= 4 for row in report.rows if row.latency)


@pytest.fixture
def chosen(cli: Cli, tiny_images: Path, tmp_path: Path) -> tuple[tuple[object, ...], Path, Manifest]:
    """A benchmark's command line, its bundle, and the manifest after a first run, which made a choice."""
    bundle = write_small_bundle(tmp_path / "bundle", engine=False)
    command = ("bench", bundle, "--dataset", tiny_images, "--split", "all", *QUICK, "--no-accuracy")
    assert cli(*command).exit_code == 0
    before = Bundle.open(bundle).manifest
    assert before.choice is not None
    return command, bundle, before


@needs_openvino
def test_a_partial_report_does_not_replace_a_choice(
    cli: Cli, chosen: tuple[tuple[object, ...], Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, bundle, before = chosen
    interrupt_at_visit(8, monkeypatch)
    done = cli(*command)
    assert done.exit_code == 130
    assert Bundle.open(bundle).manifest == before
    assert not BenchReport.read(bundle / "bench" / "report.json").partial


@needs_openvino
def test_a_busy_machine_does_not_replace_a_choice(
    cli: Cli, chosen: tuple[tuple[object, ...], Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, bundle, before = chosen
    monkeypatch.setattr(BusyMeter, "other_share", lambda meter: 0.5)
    done = cli(*command)
    assert done.exit_code == 0 and "The fastest form was not measured: the machine was busy" in done.stdout
    assert Bundle.open(bundle).manifest == before
    done = cli(*command, "--json", "-", "--no-save")
    assert json.loads(done.stdout)["recommendation"]["key"] is None


def test_pictures_can_be_left_out(cli: Cli, tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    """The INT8 graph of random weights disagrees with FP32 somewhere on 40 images of noise."""
    found = {}
    for option in ("--pictures", "--no-pictures"):
        page = tmp_path / f"{option}.html"
        options = ("--split", "all", "--no-save", "--no-latency", option, "--report", page, "--json", "-")
        options += ("--backend", "onnxruntime")
        done = cli("bench", tiny_bundle, "--dataset", tiny_images, *options)
        assert done.exit_code == 0, done.stderr
        found[option] = [item["image_png"] for item in json.loads(done.stdout)["disagreements"]]
        assert ("data:image/png" in page.read_text()) == (option == "--pictures")
    assert found["--pictures"] and all(found["--pictures"])
    assert len(found["--no-pictures"]) == len(found["--pictures"]) and not any(found["--no-pictures"])


def test_ctrl_c_before_anything_was_measured_writes_nothing(
    cli: Cli, small: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatencyRun, "_warm_up", lambda run, name: signal.raise_signal(signal.SIGINT))
    one = ("--precision", "fp32", "--backend", "onnxruntime")
    done = cli("bench", small, "--dataset", tiny_images, "--split", "all", *one, "--json", tmp_path / "out.json")
    assert done.exit_code == 130 and not list(tmp_path.iterdir())
