"""Reports, calibrations and plans as strangers may have changed them: read, or refused with an error of ours."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.fuzz import rounds
from tests.tools.mutation import mutate
from vitdeploy.bench import render_html
from vitdeploy.compiler.float16.plan import HalfPlan
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.core.errors import BundleError, InputError, VitdeployError
from vitdeploy.report.comparison import compare
from vitdeploy.report.comparison_text import comparison_json, comparison_markdown, comparison_table
from vitdeploy.report.conditions import evaluate, parse
from vitdeploy.report.records import BenchReport

TESTS = Path(__file__).parents[1]
PLAIN = TESTS / "frozen" / "schema-1" / "plain"


def read_calibration(path: Path) -> None:
    Calibration.load(path, json.loads((PLAIN / "calibration.json").read_text())["model_sha256"])


def read_report(path: Path) -> None:
    report = BenchReport.read(path)
    compared = compare(report, report)
    comparison_table(compared), comparison_markdown(compared, []), comparison_json(compared, [])
    evaluate(parse("*.p50 > 1.1x"), compared)
    render_html(report)


READERS: dict[str, tuple[Path, Callable[[Path], object]]] = {
    "calibration": (PLAIN / "calibration.json", read_calibration),
    "half plan": (PLAIN / "half.json", HalfPlan.load),
    "report 1": (TESTS / "report" / "frozen" / "schema-1.json", read_report),
    "report 2": (TESTS / "report" / "frozen" / "schema-2.json", read_report),
    "report": (PLAIN / "bench" / "report.json", read_report),
}


NO_FILES = ["[" * 100_000, '{"schema_version": 1, "x": "\\ud800"}', "[]", "3", "{", "{}", '{"schema_version": true}']


@pytest.mark.fuzz
@pytest.mark.parametrize("name", READERS)
def test_what_strangers_changed_is_read_or_refused(name: str, tmp_path: Path) -> None:
    source, read = READERS[name]
    original, draw, refused = json.loads(source.read_text()), random.Random(name), 0
    file = tmp_path / "file.json"
    for _ in range(rounds(300)):
        data = copy.deepcopy(original)
        for _ in range(draw.randint(1, 3)):
            mutate(data, draw)
        file.write_text(json.dumps(data))
        try:
            read(file)
        except VitdeployError:
            refused += 1
        except Exception as error:
            raise AssertionError(json.dumps(data)[:20_000]) from error
    assert refused > 10


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"schema_version": 1, "x": "\\ud800"}', "[]", "3", "{", "{}", '{"schema_version": true}'],
)
def test_what_is_no_such_file_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises((BundleError, InputError)):
        READERS[name][1](tmp_path / "file.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400])
def test_a_report_of_numbers_that_are_none_meets_no_condition_and_is_refused(value: Any, tmp_path: Path) -> None:
    data = json.loads((PLAIN / "bench" / "report.json").read_text())

    def spoil(part: Any) -> bool:
        """Change the first median anywhere in the report."""
        if isinstance(part, dict) and isinstance(part.get("p50"), float):
            part["p50"] = value
            return True
        return any(map(spoil, part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()))

    assert spoil(data["rows"])
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="not a finite number"):
        BenchReport.read(tmp_path / "report.json")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1" * 400, "Infinity", "1e999"])
def test_a_condition_on_no_number_is_refused(number: str) -> None:
    with pytest.raises(InputError):
        parse(f"int8.p50 > {number}")
