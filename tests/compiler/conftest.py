"""Fixtures of tests of engine builds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.engines import Recorder
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.engine import EngineOptions
from vitdeploy.core import progress


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    with progress.use(recorder):
        yield recorder


@pytest.fixture(scope="session")
def options(tiny_bundle: Path) -> EngineOptions:
    """The usual ranges of the tiny bundle."""
    return EngineOptions().for_manifest(Bundle.open(tiny_bundle).manifest)
