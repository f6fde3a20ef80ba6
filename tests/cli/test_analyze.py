"""`vitdeploy analyze`: the table, the JSON, the refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_table_and_json(cli: Callable[..., Any], tiny_bundle_copy: Path) -> None:
    shown = cli("analyze", tiny_bundle_copy, "--dataset", "digits", "--count", "24")
    assert shown.exit_code == 0
    assert "fc1" in shown.stdout and "SQNR" in shown.stdout and "24 images of digits/train" in shown.stdout
    data = json.loads(cli("analyze", tiny_bundle_copy, "--dataset", "digits", "--count", "8", "--json").stdout)
    assert data["data"]["count"] == 8 and len(data["rows"]) == 12
    assert data == json.loads((tiny_bundle_copy / "analysis.json").read_text())


def test_the_test_split_is_refused(cli: Callable[..., Any], tiny_bundle_copy: Path) -> None:
    refused = cli("analyze", tiny_bundle_copy, "--dataset", "digits", "--split", "test")
    assert refused.exit_code == 1 and "test split" in refused.stderr
    assert not (tiny_bundle_copy / "analysis.json").exists()
