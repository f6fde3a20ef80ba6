"""Run an example as its user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}


def run(example: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python examples/EXAMPLE ARGUMENTS`."""
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120)


def code_lines(example: str) -> list[str]:
    """Its lines without the docstring and empty lines."""
    text = (EXAMPLES / example).read_text()
    return [line for line in text.split('"""')[2].splitlines() if line.strip()]
