"""Imports point one way, and importing loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitdeploy"
HEAVY = {
    *("torch", "torchvision", "transformers", "accelerate", "datasets", "safetensors"),
    *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"),
    *("sklearn", "scipy", "matplotlib", "pandas", "pyarrow"),
}
# Wings on top of the ground floor, and the wings that each may import. What is in none of them is ground floor.
WINGS = {
    "runtime": {"runtime"},
    "bench": {"bench", "runtime"},
    "training": {"training"},
    "compiler": {"compiler", "runtime"},
}
# These stand on everything: they join the wings into one story, as the command line does.
ROOF = {"cli", "demo", "doctor", "inspection", "__main__", "__init__"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The first part of a module's name below vitdeploy: "runtime", "errors" ..."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that the code imports anywhere, by its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(name: str, source: str) -> list[str]:
    """What a module of the part `name` imports and may not."""
    if name in ROOF:
        return []
    allowed = WINGS.get(name, set())
    found = []
    for module in imported(ast.parse(source)):
        parts = module.split(".")
        if parts[0] == "vitdeploy" and len(parts) > 1:
            target = parts[1]
            if target in ROOF - {"__init__"} or (target in WINGS and target not in allowed):
                found.append(module)
    return found


def imported_at_once(tree: ast.AST) -> Iterator[str]:
    """What is imported when the module is: not inside functions, not for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imported_at_once(ast.Module(node.orelse, []))
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        else:
            yield from imported_at_once(node)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_imports(part(path), path.read_text(encoding="utf-8")) == []


def test_an_import_the_wrong_way_is_seen() -> None:
    assert wrong_imports("runtime", "def f():\n    from vitdeploy.compiler import build")
    assert wrong_imports("runtime", "import vitdeploy.bench.latency")
    assert wrong_imports("compiler", "from vitdeploy import cli")
    assert wrong_imports("errors", "from vitdeploy.runtime import load")
    assert not wrong_imports("bench", "from vitdeploy.runtime.base import Runner")
    assert not wrong_imports("cli", "from vitdeploy.compiler import build")


# numerics of these wings are written with the packages that they own; nothing imports them before they are used
OWNERS = {"compiler", "training"}


@pytest.mark.parametrize(
    "path", [path for path in modules() if part(path) not in OWNERS], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_heavy_packages_wait_until_they_are_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {name.partition(".")[0] for name in imported_at_once(tree)} & HEAVY == set()


@pytest.mark.parametrize(
    "statement",
    [
        "import vitdeploy",
        "import vitdeploy.runtime",
        "import vitdeploy.cli",
        "from vitdeploy import load, Classifier, Bundle, Prediction",
        "from vitdeploy.cli.app import run; run(['--help'])",
        "from vitdeploy.cli.app import run; run(['predict', '--help'])",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    program = (
        f"{statement}\nimport sys\nprint('\\nloaded:', *sorted({{name.partition('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "vitdeploy" in loaded
    assert loaded & HEAVY == set()


def test_import_vitdeploy_needs_the_standard_library_and_numpy_alone() -> None:
    program = "import sys\nbefore = set(sys.modules)\nimport vitdeploy\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    foreign = {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
    assert foreign <= {"vitdeploy", "numpy"}


def test_every_public_name_is_there() -> None:
    import vitdeploy
    import vitdeploy.runtime

    for module in (vitdeploy, vitdeploy.runtime):
        for name in module.__all__:
            assert getattr(module, name) is not None
        with pytest.raises(AttributeError):
            module.no_such_name  # noqa: B018
