"""Optional packages: what is said when one is missing, broken, or interrupted while it loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vitdeploy.core.errors import DependencyError, require
from vitdeploy.core.installing import extras_line


def test_a_missing_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone; PyTorch with all that is used beside it."""
    with pytest.raises(DependencyError, match="needs the package 'no_such_package', which is not installed") as caught:
        require("no_such_package.part", extra="cpu")
    assert caught.value.hint == "pip install no_such_package"
    monkeypatch.setitem(sys.modules, "torch", None)  # what Python does with a module that can't be imported
    with pytest.raises(DependencyError, match="'torch'") as caught:
        require("torch", extra="build")
    assert caught.value.hint == extras_line("build") and "[build]" in caught.value.hint


def test_a_package_that_is_there_is_returned() -> None:
    assert require("json.decoder", extra="cpu").__name__ == "json.decoder"


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        ("raise ImportError('libfoo.so: cannot open')", DependencyError, "installed but does not load: libfoo.so"),
        ("import another_missing_package", DependencyError, "installed but does not load"),
        # What pybind11 makes of Ctrl-C during the initialisation of a module.
        ("raise ImportError('initialization failed') from KeyboardInterrupt()", KeyboardInterrupt, "^$"),
    ],
)
def test_a_package_that_does_not_load(
    code: str, expected: type[BaseException], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(expected, match=message) as caught:
        require(name, extra="cpu")
    assert type(caught.value) is expected and isinstance(caught.value.__cause__, ImportError)
