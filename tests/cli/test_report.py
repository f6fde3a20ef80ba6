"""`vitdeploy report` draws the page of a bundle's last benchmark and opens it."""

from __future__ import annotations

import json
import shutil
import webbrowser
from html import escape
from pathlib import Path

import pytest

from tests.tools.command_line import invoke
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.bundle import Bundle
from vitdeploy.report.records import BenchReport

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "results" / "cifar10-vit-small.json"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was asked to open; there is none on a machine of tests."""
    seen: list[str] = []

    def note(address: str) -> bool:
        seen.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", note)
    return seen


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A bundle that holds a report, and a page that somebody else wrote."""
    path = write_small_bundle(tmp_path / "bundle")
    with Bundle.open(path).edit() as editor:
        shutil.copy(REPORT, editor.path_for("bench/report.json"))
        editor.path_for("bench/report.html").write_text("<script>alert(1)</script>")
        for name in ("bench/report.json", "bench/report.html"):
            editor.add(name, kind="bench")
    return path


def test_a_bundles_page_is_drawn_from_its_numbers_and_opened(measured: Path, opened: list[str]) -> None:
    done = invoke("report", measured)
    assert done.exit_code == 0, done.stderr
    page = Path(done.stdout.strip())
    assert opened == [page.as_uri()]
    text = page.read_text(encoding="utf-8")
    assert escape(BenchReport.read(REPORT).recommendation["sentence"]) in text and "<script" not in text


def test_a_report_can_be_written_to_a_file(tmp_path: Path, opened: list[str]) -> None:
    done = invoke("report", REPORT, "--output", tmp_path / "page.html", "--no-open")
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "page.html")
    assert opened == [] and "<h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_machine_without_a_browser_is_told_where_the_page_is(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    done = invoke("report", measured)
    assert done.exit_code == 0 and "No browser" in done.stderr and Path(done.stdout.strip()).is_file()


def test_what_holds_no_report_says_how_to_make_one(tmp_path: Path, opened: list[str]) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    done = invoke("report", bundle)
    assert done.exit_code == 1 and f"vitdeploy bench {bundle}" in done.stderr
    (tmp_path / "other.json").write_text(json.dumps({"schema_version": 3}))
    assert invoke("report", tmp_path / "other.json").exit_code == 1
    done = invoke("report", REPORT, "--output", REPORT)
    assert done.exit_code == 1 and REPORT.read_text(encoding="utf-8").startswith("{")
    assert opened == []
