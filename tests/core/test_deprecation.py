"""A deprecated function works on, warns where it is called, and goes in the version that it names."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import pytest

import vitdeploy
from vitdeploy.core.deprecation import deprecated

ROOT = Path(vitdeploy.__file__).parent


@deprecated(since="0.2.0", removed_in="0.4.0", instead="`twice`")
def doubled(number: int, *, times: int = 1) -> int:
    """Twice a number."""
    return number * 2**times


def test_it_works_on_and_warns_at_the_callers_line() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"doubled is deprecated since 0\.2\.0 and goes in 0\.4\.0: use `twice`"
    ) as seen:
        assert doubled(3, times=2) == 12
    assert [Path(warning.filename) for warning in seen] == [Path(__file__)]


def test_an_error_of_it_is_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TypeError, match="unsupported operand"):
            doubled(3, times=None)  # type: ignore[arg-type]


def test_it_is_described_as_before() -> None:
    assert doubled.__name__ == "doubled" and list(inspect.signature(doubled).parameters) == ["number", "times"]
    assert doubled.__doc__ == "Twice a number.\n\nDeprecated since 0.2.0: use `twice`."


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def overdue(function: object, version: str) -> bool:
    return release(getattr(function, "removed_in", "999.0.0")) <= release(version)


def test_nothing_outlives_the_version_that_removes_it() -> None:
    assert overdue(doubled, "0.4.0") and overdue(doubled, "1.0.0") and not overdue(doubled, "0.3.9")
    public = [getattr(vitdeploy, name) for name in vitdeploy.__all__]
    members = [member for owner in public if inspect.isclass(owner) for member in vars(owner).values()]
    late = [function for function in (*public, *members) if overdue(function, vitdeploy.__version__)]
    assert late == [], "remove them, and say so in CHANGELOG.md"


def test_the_decorator_is_the_only_way() -> None:
    """No module warns of a deprecation by itself, so that the test above sees all of them."""
    for path in ROOT.rglob("*.py"):
        assert path.name == "deprecation.py" or "DeprecationWarning" not in path.read_text(encoding="utf-8"), path
