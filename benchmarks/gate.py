"""Whether this working tree made a form slower or worse than another commit did: both measure one bundle, in turns.

python -m benchmarks.gate --base origin/main --markdown gate.md

The base is checked out beside this tree and its kernels are compiled. The demo's bundle and checkpoint are made once,
by this tree; then base and tree run `bench` on them in turns, each in a fresh process, and `compare --fail-if` judges.
Its exit code is this program's: 3 where a condition is met, 4 where the machine was too busy to judge one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

_ROOT = Path(__file__).parents[1]
# On a machine that others share: what it stops is the careless change, not the last percent.
_CONDITIONS = ("fp32.p50 > 1.15x", "int8.p50 > 1.15x", "int8.top1 < -1pt", "*.size > 1.1x", "*.memory > 1.25x")


def _run(tree: Path, *command: object, check: bool = True) -> int:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, *map(str, command)], cwd=tree, env=environment, check=check).returncode


def gate(base: str, markdown: Path, turns: int) -> int:
    """The exit code of the comparison."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = folder / "base"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", other, base], cwd=_ROOT, check=True)
        try:
            for tree in (other, _ROOT):
                _run(tree, "setup.py", "--quiet", "build_ext", "--inplace")
            demo = folder / "demo"
            _run(_ROOT, "-m", "vitdeploy", "--quiet", "demo", "--output", demo)
            reports: dict[Path, list[Path]] = {other: [], _ROOT: []}
            for turn in range(turns):
                for tree, made in reports.items():
                    made.append(folder / f"{len(made)}-{'base' if tree == other else 'tree'}.json")
                    options = ("--dataset", "digits", "--baseline", demo / "checkpoint", "--no-save", "--no-pictures")
                    command = ("-m", "vitdeploy", "--quiet", "bench", demo / "digits-vit", *options)
                    print(f"turn {turn + 1}: {tree}", file=sys.stderr)
                    _run(tree, *command, "--json", made[-1])
            conditions = [part for condition in _CONDITIONS for part in ("--fail-if", condition)]
            sides = (*reports[other], "--", *reports[_ROOT])
            return _run(
                _ROOT, "-m", "vitdeploy", "compare", *sides, *conditions, "--markdown", markdown.resolve(), check=False
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=_ROOT, check=True)


@click.command()
@click.option("--base", default="origin/main", show_default=True, help="The commit to compare with.")
@click.option("--markdown", type=click.Path(path_type=Path), default="gate.md", show_default=True)
@click.option("--turns", type=click.IntRange(min=1), default=2, show_default=True, help="Reports on each side.")
def main(base: str, markdown: Path, turns: int) -> None:
    """Compare this tree with BASE."""
    sys.exit(gate(base, markdown, turns))


if __name__ == "__main__":
    main()
