"""Which vitdeploy this is: the version, and in a development tree the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vitdeploy import __version__

__all__ = ["full_version"]


def full_version(root: Path = Path(__file__).parents[2]) -> str:
    """As in "0.1.0", or "0.1.0 (commit 1a2b3c4d5e6f, changed)" where `root` is a clone of the repository."""
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return __version__  # installed, or another project's repository around it
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return __version__
    return f"{__version__} (commit {commit}{', changed' * bool(_git(root, 'status', '--porcelain', '-uno'))})"


def _git(root: Path, *arguments: str) -> str:
    """What git prints; nothing where it is not installed or refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
