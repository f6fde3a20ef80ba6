"""What a device runs is tested where PyTorch is not installed, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WITHOUT = TESTS / "tools" / "no_torch"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(WITHOUT), str(TESTS.parent)])}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=TESTS.parent, timeout=900
    )


def test_the_block_holds_in_children_and_leaves_the_rest() -> None:
    code = "import importlib.util as u; print([u.find_spec(n) is None for n in ('torch', 'transformers', 'numpy')])"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    assert run("-c", outer).stdout.strip() == "[True, True, False]"
    assert "No module named 'torch'" in run("-c", "import torch").stderr


@pytest.mark.full
def test_backends_and_runtime_pass_without_it() -> None:
    done = run("-m", "pytest", "-q", "-m", "not full", "-p", "no:cacheprovider", "tests/runtime", "tests/backends")
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 500
