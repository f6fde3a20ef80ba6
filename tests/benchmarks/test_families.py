"""The script that tries every architecture: one whose attention no pass knows works, others are refused by name; and
what its record claims."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.tools.running import ENVIRONMENT, load_benchmark

ROOT = Path(__file__).parents[2]


def test_it_tries_what_works_and_what_is_refused_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "families.py", "--work", tmp_path / "work"]
    command += ["--json", tmp_path / "found.json", "--resume", "--only", "glpn/GLPNModel", "detr", "dinat/DinatModel"]
    for stages in (["export"], ["export", "int8"]):
        done = subprocess.run(
            [*command, "--stages", *stages], capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
    assert [line.split()[3] for line in done.stdout.splitlines()] == ["glpn"], "the others were done"
    rows = {row["kind"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert list(rows) == ["detr", "dinat", "glpn"]
    assert (
        rows["detr"]["export"]["refused"].startswith("it is a detr model, which finds objects")
        and rows["detr"]["export"]["hint"]
    )
    assert rows["dinat"]["export"]["refused"] == "it needs natten, which is not installed"
    found = rows["glpn"]["export"]
    assert (
        "GLPNImageProcessorPil" in found["processor_refused"]
        and found["difference"] <= 1e-4 >= 10 * found["cosine_lost"]
    )
    assert 0.1 < rows["glpn"]["int8"]["share"] < 1 and 0 < rows["glpn"]["int8"]["cosine_lost"] < 0.1


def test_the_record_is_of_every_architecture_and_holds_no_traceback() -> None:
    families = load_benchmark("families")
    record = json.loads(families.RECORD.read_text(encoding="utf-8"))
    rows = record["rows"]
    for row in rows:
        failed = [name for name in families.STAGES if "crashed" in row.get(name, {})]
        assert not failed and (families.worked(row["export"]) or row["export"].get("hint")), row
        if families.worked(row["export"]):
            assert row["export"]["difference"] <= 1e-4 and row["export"].get("cosine_lost", 0) <= 1e-5
            assert {"fp16", "int8"} <= set(row), row
    assert sum(families.worked(row["export"]) for row in rows) >= 0.8 * len(rows), "four out of five"
    if version("transformers") != record["versions"]["transformers"]:
        pytest.skip("another transformers lists other architectures")
    assert [(row["kind"], row["architecture"], row["task"]) for row in rows] == list(families.architectures())
