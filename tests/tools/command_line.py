"""Run the command line in this process and keep what it prints."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass

from tests.tools.hints import command_lines, dead_ends, refused
from tests.tools.schemas import faults, schema_of
from vitdeploy.cli.app import run


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str


def invoke(*arguments: object) -> Outcome:
    """What `vitdeploy ARGUMENTS` prints and its exit code; JSON must fit the command's schema."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["--quiet", *map(str, arguments)])
    words = [str(word) for word in arguments]
    if "--json" in words and out.getvalue().startswith("{"):
        assert faults(words, out.getvalue()) == [], f"docs/schemas: {schema_of(words)}"
    for hint in re.findall(r"^Hint: (.+)$", err.getvalue(), flags=re.M):
        assert dead_ends(hint) == [], f"a hint that can't be followed: {hint}"
        for line in command_lines(hint):
            assert refused(line) is None, f"{line}: {refused(line)}"
    for line in re.findall(r"^(?:Next:|next) +(vitdeploy .+)$", out.getvalue(), flags=re.M):
        assert refused(line) is None, f"{line}: {refused(line)}"
    return Outcome(code, out.getvalue(), err.getvalue())
