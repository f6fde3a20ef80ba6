"""Run the command line in this process and keep what it prints."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from vitdeploy.cli.app import run


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str


def invoke(*arguments: object) -> Outcome:
    """What `vitdeploy ARGUMENTS` prints and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["--quiet", *map(str, arguments)])
    return Outcome(code, out.getvalue(), err.getvalue())
