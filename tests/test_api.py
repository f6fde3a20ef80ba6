"""The public API: all of it at the top of the package, loaded when it is used, the same in every order of imports."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vitdeploy

ROOT = Path(vitdeploy.__file__).parent
CALLS = (
    *("load", "export", "build", "bench", "compare", "finetune", "tune", "predict_files", "explain", "inspect"),
    *("doctor", "load_dataset"),
)


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def for_type_checkers() -> set[str]:
    """Names that the package imports for type checkers alone."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {name.asname or name.name for line in block.body for name in line.names}  # type: ignore[attr-defined]


def test_dir_lists_all_that_is_public_and_all_of_it_is_there() -> None:
    assert set(CALLS) <= set(dir(vitdeploy)) == set(vitdeploy.__all__)
    for name in dir(vitdeploy):
        assert getattr(vitdeploy, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        vitdeploy.nothing  # noqa: B018


def test_type_checkers_and_python_see_the_same_names() -> None:
    assert for_type_checkers() == set(vitdeploy._HOME)
    assert set(vitdeploy._HOME) < set(vitdeploy.__all__)
    assert (ROOT / "py.typed").is_file()


def test_every_error_and_spec_is_public() -> None:
    from vitdeploy.core import errors, specs

    classes = [
        name for module in (errors, specs) for name in module.__all__ if inspect.isclass(getattr(module, name, None))
    ]
    assert len(classes) > 15 and set(classes) <= set(vitdeploy.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_says_what_it_takes(name: str) -> None:
    found = getattr(vitdeploy, name)
    assert callable(found) and found.__doc__
    assert all(parameter.annotation for parameter in inspect.signature(found).parameters.values())


@pytest.mark.parametrize("name", ["bench", "doctor", "explain"])
@pytest.mark.parametrize(
    "first", ["import vitdeploy.{0}", "import vitdeploy; vitdeploy.{0}", "from vitdeploy import {0}"]
)
def test_a_package_of_a_calls_name_can_be_called_whatever_was_imported_first(name: str, first: str) -> None:
    function = "examine" if name == "doctor" else name
    code = (
        f"{first.format(name)}\n"
        f"import vitdeploy, inspect, vitdeploy.{name}, vitdeploy.{name} as package\n"
        f"from vitdeploy import {name} as public\n"
        f"from vitdeploy.{name} import {function} as function\n"
        f"assert vitdeploy.{name} is package is public\n"
        "assert inspect.signature(package) == inspect.signature(function)\n"
        "try: package(1, 2, 3, 4)\n"
        "except TypeError as error: print(error)\n"
    )
    assert f"{function}() takes" in run(code)


def test_no_other_public_name_is_hidden_by_a_module() -> None:
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(vitdeploy.__all__) == {"bench", "doctor", "explain"}


def test_doctor_by_its_public_name() -> None:
    assert vitdeploy.doctor().capabilities == vitdeploy.doctor.examine().capabilities  # type: ignore[attr-defined]


def test_what_calls_give_is_shown_in_a_line(tiny_bundle: Path) -> None:
    results = [vitdeploy.Bundle.open(tiny_bundle), vitdeploy.inspect(tiny_bundle), vitdeploy.doctor()]
    with vitdeploy.load(tiny_bundle, precision="fp32", threads=1) as classifier:
        results += [classifier, classifier.predict(tiny_bundle / "no image", errors="return")]
        results.append(classifier.predict(bytes(0), errors="return"))
    for result in results:
        assert "\n" not in repr(result) and len(repr(result)) < 500, repr(result)
    assert repr(classifier).endswith("10 classes, closed>")
