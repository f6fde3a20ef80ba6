"""The main job, as `make demo` runs it."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vitdeploy.bench
from tests.tools.command_line import invoke
from vitdeploy.bench import latency
from vitdeploy.bundle import Bundle
from vitdeploy.core.machine import gpus, has_module
from vitdeploy.training import FinetuneConfig, scratch


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with a third of its epochs, enough for 95 %, and few timed rounds: no time is looked at."""
    whole = scratch.digits_config

    def third(*arguments: Any, **changes: Any) -> FinetuneConfig:
        config = whole(*arguments, **changes)
        return replace(config, epochs=config.epochs / 3)

    monkeypatch.setattr(scratch, "digits_config", third)
    monkeypatch.setattr(vitdeploy.bench, "bench", functools.partial(vitdeploy.bench.bench, rounds=10))
    monkeypatch.setattr(latency, "_PATIENCE", 1)  # other tests run beside it


@pytest.mark.usefixtures("shorter")
def test_the_demo_trains_exports_builds_and_measures(tmp_path: Path) -> None:
    done = invoke("demo", "--output", tmp_path / "demo")
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    bundle = Bundle.open(tmp_path / "demo" / "digits-vit")
    bundle.verify()
    rows = {(row["form"], row["backend"]): row for row in report["rows"]}
    for form in [("fp32", "pytorch"), *((p, b) for p in ("fp32", "fp16", "int8") for b in ("onnxruntime", "openvino"))]:
        row = rows[form]
        assert row["status"] == "ok", row["reason"]
        assert row["latencies"][0]["on_demand_ms"]["p50"] > 0 and row["size_bytes"] > 0
        assert row["accuracy"]["top1"] >= 0.95 and row["accuracy"]["count"] == 360
    if has_module("tensorrt_rtx") and not gpus():
        engines = [row for form, row in rows.items() if form[1] == "tensorrt-rtx"]
        assert len(engines) == 2 and all(row["status"] == "skipped" and "GPU" in row["reason"] for row in engines)
        assert len(bundle.select(kind="engine")) == 2
    calibration = json.loads((tmp_path / "demo" / "digits-vit" / "calibration.json").read_text())
    assert calibration["images"]["split"] == "train"
    vectors = Bundle.open(tmp_path / "demo" / "digits-vectors")
    assert vectors.manifest.task == "embedding"
    assert vectors.manifest.model["weights_sha256"] == bundle.manifest.model["weights_sha256"]
    ((asked, found),) = re.findall(r"the 5 test images nearest to a (\d) are (.*);", done.stdout)
    assert asked in "0123456789" and len(found.split(", ")) == 5
    (alike,) = re.findall(r"(\d+)% of all images' 5 nearest show the same digit", done.stdout)
    assert int(alike) >= 85, "a model that tells 95 % of the digits apart puts alike ones together"
    for path in ("checkpoint", "digits-vit", "digits-vectors", "report.json", "report.html"):
        assert str(tmp_path / "demo" / path) in done.stdout and (tmp_path / "demo" / path).exists()
    (next_command,) = [line for line in done.stdout.splitlines() if line.startswith("Next: vitdeploy ")]
    tried = invoke(*next_command.removeprefix("Next: vitdeploy ").split())
    assert tried.exit_code == 0, tried.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
    again = invoke("demo", "--output", tmp_path / "demo")
    assert again.exit_code == 1 and "already exists" in again.stderr


@pytest.mark.full
def test_demo_options_have_their_effect(tmp_path: Path) -> None:
    done = invoke("demo", "--output", tmp_path / "demo", "--epochs", "0.5", "--seed", "3", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["settings"]["seed"] == 3
    settings = json.loads((tmp_path / "demo" / "checkpoint" / "finetune.json").read_text())["settings"]
    assert settings["epochs"] == 0.5 and settings["seed"] == 3
    assert next(row for row in report["rows"] if row["backend"] == "pytorch")["accuracy"]["top1"] < 0.95
    assert invoke("demo", "--output", tmp_path / "demo", "--epochs", "0.5", "--overwrite").exit_code == 0
