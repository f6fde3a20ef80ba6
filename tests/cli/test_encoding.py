"""Terminals and pipes that can't show every letter."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.cli.encoding import any_encoding


@pytest.mark.parametrize("name", ["bé.png", "missing-猫.png"])
def test_an_ascii_terminal_gets_every_answer_and_error(name: str, tiny_bundle_copy: Path, tmp_path: Path) -> None:
    manifest = tiny_bundle_copy / "manifest.json"
    data = json.loads(manifest.read_text(encoding="utf-8"))
    data["labels"] = ["café ✓", *data["labels"][1:]]
    manifest.write_text(json.dumps(data), encoding="utf-8")
    if not name.startswith("missing"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / name)
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [sys.executable, "-m", "vitdeploy", "predict", str(tiny_bundle_copy), str(tmp_path / name), "-k", "10"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == (1 if name.startswith("missing") else 0)
    assert b"Unicode" not in done.stderr and b"Traceback" not in done.stderr
    assert name.startswith("missing") or b"caf\\xe9 +" in done.stdout


def test_what_an_encoding_has_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
        any_encoding()
        print("é ≤ \udcc3", end="", flush=True)
        written[encoding] = raw.getvalue()
    assert written == {
        "ascii": rb"\xe9 <= \udcc3",
        "latin-1": b"\xe9 <= \\udcc3",
        "utf-8": "é ≤ ".encode() + rb"\udcc3",
    }
