"""Every command that prints JSON has a schema; tests/tools/command_line.py compares each output that a test sees."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tools.command_line import invoke
from tests.tools.command_names import every_command, options_of
from tests.tools.schemas import FOLDER, faults, schema_of
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.cli.exits import EXIT_CODES

PAGE = FOLDER.parent / "reference" / "json.md"
REPORT = FOLDER.parent / "results" / "cifar10-vit-small.json"
pytest.importorskip("jsonschema")


def commands_with_json() -> set[str]:
    return {name for name in every_command() if "--json" in options_of(name)}


def test_every_command_with_json_has_its_schema_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \| .*$", text, flags=re.M)
    assert set(re.findall(r"`([\w -]+)`", " ".join(row for row in rows if "--" not in row))) == commands_with_json()
    assert {f"../schemas/{path.name}" for path in FOLDER.iterdir()} <= set(re.findall(r"\]\(([^)#]+)", text))
    for name in commands_with_json() - {"bench", "demo"}:
        assert (FOLDER / f"{name.replace(' ', '.')}.schema.json").is_file(), name


def test_the_outputs_of_the_quick_commands_fit(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    (tmp_path / "no.png").write_bytes(b"no image")
    for command in (
        ("doctor", "--json"),
        ("inspect", bundle, "--json"),
        ("inspect", bundle / "model.onnx", "--json"),
        ("predict", bundle, tmp_path / "no.png", "--precision", "fp32", "--backend", "onnxruntime", "--json"),
        ("compare", REPORT, REPORT, "--fail-if", "int8.p50 > 1.5x", "--json", "-"),
    ):
        done = invoke(*command)  # compares
        assert json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"backend": 1}, "backend"),
        ({"more": 1}, "more"),
        ({"predictions": [{"image": "a.png"}]}, "label"),
        ({"predictions": None}, "predictions"),
    ],
)
def test_a_wrong_output_is_found(change: dict[str, Any], fault: str) -> None:
    right: dict[str, Any] = {"backend": "onnxruntime", "precision": "fp32", "predictions": [], "errors": []}
    assert faults(["predict"], json.dumps(right)) == []
    found = faults(["predict"], json.dumps({**right, **change}))
    assert any(fault in text for text in found), found


def test_what_is_written_to_a_file_has_a_schema_of_its_own() -> None:
    assert schema_of(["predict", "b", "photos", "--output=r.csv", "--json"]) == "predict.output"
    assert schema_of(["finetune", "m", "--dry-run", "--json"]) == "finetune.plan"


def test_the_page_has_every_exit_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.M))
    assert rows == {str(code): meaning for code, meaning in EXIT_CODES.items()}
