"""The audit of the benchmark's word runs, and what it says of what may never be is true of a few trials too."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.tools.running import load_benchmark

pytestmark = pytest.mark.usefixtures("real_meters")


def test_it_runs_and_what_may_never_be_is_not(tmp_path: Path) -> None:
    pytest.importorskip("transformers")  # what is taken over from a report is asked of real files
    audit, out, table = load_benchmark("audit"), tmp_path / "audit.json", tmp_path / "audit.md"
    with contextlib.suppress(SystemExit):  # so few trials may miss a bar
        audit.main(["--trials", "20", "--json", str(out), "--markdown", str(table)])
    found = json.loads(out.read_text())
    claims = [claim for part in found.values() if isinstance(part, list) for claim in part]
    assert set(audit.PARTS) < set(found) and len(claims) >= 90 and table.read_text().count("| at ") >= 40
    never = [claim for claim in claims if claim["bar"] == "never"]
    assert len(never) >= 10 and all(claim["holds"] for claim in never)
    taken = next(claim for claim in claims if "another folder: taken over" in claim["what"])
    assert taken["share"] == 1


def test_it_finds_what_is_taken_over_without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("vitdeploy.bench.assemble._answers", lambda *facts: "0" * 64)
    claims = list(load_benchmark("audit").reuse(1))
    assert sum(not claim.holds for claim in claims) >= 6
