"""Run an example as its user does, or load one."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}


def run(example: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python examples/EXAMPLE ARGUMENTS`."""
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120)


def run_here(example: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has its packages imported already: for many runs of one example."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, [str(EXAMPLES / example), *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:  # a text is an error's message
        code = 1 if isinstance(end.code, str) else int(end.code or 0)
        err.write(end.code if isinstance(end.code, str) else "")
    finally:
        done = subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())
        sys.argv = before
    return done


def code_lines(example: str) -> list[str]:
    """Its lines without the docstring and empty lines."""
    text = (EXAMPLES / example).read_text()
    return [line for line in text.split('"""')[2].splitlines() if line.strip()]


def load_service() -> Any:
    """examples/service/app.py as a module."""
    return _module("service_app", EXAMPLES / "service" / "app.py")


def load_benchmark(name: str) -> Any:
    """benchmarks/NAME.py as a module."""
    return _module(f"benchmark_{name}", EXAMPLES.parent / "benchmarks" / f"{name}.py")


@functools.cache
def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # FastAPI and dataclasses look annotations up there
    spec.loader.exec_module(module)
    return module
