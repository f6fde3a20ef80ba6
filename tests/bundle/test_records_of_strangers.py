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


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        ("steady_ms p90", 0, "a time of .* is not one that can be measured"),
        ("steady_ms p90", -1, "p90 is -1, not 0 or more"),
        ("steady_ms min", 5e-324, "a time of .* is not one that can be measured"),
        ("steady_ms p50", 1e308, "a time of .* is not one that can be measured"),
        ("steady_ms samples", [1.0, 0.0], "a time of .* is not one that can be measured"),
        ("steady_ms samples", [], "has 0 times in rounds of"),
        ("steady_ms calls_per_round", 0, "times in rounds of 0"),
        ("steady_ms calls_per_round", -1, "times in rounds of -1"),
        ("steady_ms calls_per_round", 10**18, "times in rounds of 1000000000000000000"),
        ("images_per_s", 0, "a rate or ratio of .* is not positive"),
        ("steady_speedup", {"ratio": 0.0, "ci95": None}, "a rate or ratio of .* is not positive"),
        ("steady_speedup", {"ratio": -1.0, "ci95": None}, "a rate or ratio of .* is not positive"),
        ("image_size", [0, 32], "a batch or image size of .* is not positive"),
        ("batch_size", 10**400, "not a whole number of 64 bits"),
    ],
)
def test_a_time_that_no_call_takes_is_refused_and_never_compared(place: str, value: Any, why: str) -> None:
    data = BenchReport.read(TESTS / "report" / "frozen" / "schema-2.json").to_json()
    *inside, name = place.split()
    part = next(row for row in data["rows"] if row["latencies"])["latencies"][0]
    for key in inside:
        part = part[key]
    part[name] = value
    with pytest.raises(InputError, match=why) as caught:
        BenchReport.from_json(data)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"count": 0, "correct": None}, "not of the 0 images that it names"),
        ({"count": 10**18, "correct": "AAAA"}, "not of the 1000000000000000000 images"),
        ({"correct": "AAAA"}, "not of the .* images that it names"),
        ({"correct": "no base64!"}, "not a benchmark report"),
        ({"top1": 1.5}, "top1 is 1.5, not within 0 and 1"),
        ({"delta": 1e308}, "delta is 1e.308, not within -1 and 1"),
    ],
)
def test_an_accuracy_that_no_images_give_is_refused(changes: dict[str, Any], why: str) -> None:
    data = BenchReport.read(TESTS / "report" / "frozen" / "schema-2.json").to_json()
    accuracy = next(row["accuracy"] for row in data["rows"] if row["accuracy"])
    accuracy.update(changes)
    with pytest.raises(InputError, match=why):
        BenchReport.from_json(data)


@pytest.mark.parametrize(("name", "value"), [("size_bytes", -1), ("size_bytes", 10**400), ("cold_start_ms", 5e-324)])
def test_a_size_or_start_that_no_form_has_is_refused(name: str, value: Any) -> None:
    data = BenchReport.read(TESTS / "report" / "frozen" / "schema-2.json").to_json()
    data["rows"][0][name] = value
    with pytest.raises(InputError, match="not a benchmark report"):
        BenchReport.from_json(data)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1" * 400, "Infinity", "1e999"])
def test_a_condition_on_no_number_is_refused(number: str) -> None:
    with pytest.raises(InputError):
        parse(f"int8.p50 > {number}")
