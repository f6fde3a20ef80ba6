"""Whether pip failed since no index of packages answers: a test that needs one is skipped then, and fails otherwise."""

from __future__ import annotations

import pytest

__all__ = ["skip_without_index"]

_SIGNS = ("ConnectionError", "Failed to establish", "Name or service not known", "Max retries exceeded", "ProxyError")


def skip_without_index(stderr: str) -> None:
    """Skip the test if what pip said on standard error is that it reached no index."""
    for line in stderr.splitlines():
        if any(sign in line for sign in _SIGNS):
            pytest.skip(f"no index of packages answers: {line.strip()}")
