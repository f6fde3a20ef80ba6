"""The house rules on imports, read from the source and from fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitdeploy

ROOT = Path(vitdeploy.__file__).parent
GROUND = {
    *(
        "errors",
        "interrupts",
        "progress",
        "storage",
        "specs",
        "bundle",
        "images",
        "datasets",
        "checkpoints",
        "hub",
        "machine",
    ),
    "__init__",  # the version number
}
ALLOWED = {  # wing: what it may import besides itself
    "ground": GROUND,
    "runtime": GROUND,
    "training": GROUND,
    "compiler": GROUND | {"runtime"},
    "bench": GROUND | {"runtime"},
    "bulk": GROUND | {"runtime"},
    "graphs": GROUND,
    "engines": GROUND | {"runtime"},
    "inspection": GROUND | {"engines", "graphs"},
    "qat": GROUND | {"runtime", "training", "compiler"},
    "doctor": GROUND,
    "explain": GROUND,
    "demo": GROUND | {"runtime", "training", "compiler", "bench"},
    "cli": GROUND
    | {"runtime", "training", "compiler", "bench", "bulk", "demo", "doctor"}
    | {"engines", "explain", "graphs", "inspection", "qat"},
    "__main__": {"cli"},
    "__init__": GROUND | {"runtime"},
}
HEAVY = {
    *("torch", "torchvision", "transformers", "accelerate", "safetensors", "datasets", "huggingface_hub", "pyarrow"),
    *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"),
    *("sklearn", "scipy", "pandas", "matplotlib", "kornia", "tensorboard"),
}
LIGHT = ("click", "numpy", "PIL", "rich")  # what a plain `pip install vitdeploy` brings
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(tree: ast.AST, *, top_level: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; `top_level`: only what importing the module itself imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield node.module or ""
            if node.module == "vitdeploy":
                yield from (f"vitdeploy.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if not top_level:
                yield from imports(node, top_level=top_level)
        elif not (top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            yield from imports(node, top_level=top_level)


def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def wing(module: Path) -> str:
    """Which part of the house a file belongs to."""
    name = module.parts[0].removesuffix(".py")
    return "ground" if name in GROUND - {"__init__"} else name


def crossings(tree: ast.AST, home: str) -> set[str]:
    """Parts of vitdeploy that a file of that wing imports and may not."""
    wrong = set()
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] != "vitdeploy" or len(parts) == 1:
            continue
        is_part = (ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").is_file()
        part = parts[1] if is_part else "__init__"
        if part != home and part not in ALLOWED[home]:
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_one_way(module: Path) -> None:
    home = wing(module)
    assert home in ALLOWED, f"{module}: say in ALLOWED where it stands"
    assert crossings(parse(module), home) == set()


@pytest.mark.parametrize(
    ("home", "line"),
    [
        ("runtime", "from vitdeploy.compiler.build import build"),
        ("runtime", "def f():\n    from vitdeploy import bench"),
        ("compiler", "import vitdeploy.cli.app"),
        ("ground", "from vitdeploy.runtime import load"),
        ("ground", "if TYPE_CHECKING:\n    from vitdeploy.training import finetune"),
        ("training", "from vitdeploy.bench.report import Row"),
    ],
)
def test_the_rule_bites(home: str, line: str) -> None:
    assert crossings(ast.parse(line), home)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_heavy_packages_are_imported_where_they_are_used(module: Path) -> None:
    assert {name.partition(".")[0] for name in imports(parse(module), top_level=True)} & HEAVY == set()


def test_only_known_packages() -> None:
    known = {*sys.stdlib_module_names, *HEAVY, *LIGHT, "vitdeploy", "tomli"}
    found = {name.partition(".")[0] for module in MODULES for name in imports(parse(module))}
    assert found - known == set()


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after a statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import vitdeploy",
        "import vitdeploy.runtime",
        "from vitdeploy import load, Classifier, Bundle, Prediction",
        "import vitdeploy.cli",
        "from vitdeploy.cli.app import run; run(['--help'])",
        "from vitdeploy.cli.app import run; run(['predict', '--help'])",
    ],
)
def test_importing_is_light(statement: str) -> None:
    assert loaded_by(statement) & HEAVY == set()


def test_importing_the_package_needs_nothing_but_the_standard_library() -> None:
    assert loaded_by("import vitdeploy") & {*HEAVY, *LIGHT} == set()


def test_the_heavy_check_bites() -> None:
    assert "onnxruntime" in loaded_by("import onnxruntime")


def test_public_names_are_there() -> None:
    for name in vitdeploy.__all__:
        assert getattr(vitdeploy, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        vitdeploy.nothing  # noqa: B018


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_running_a_bundle_loads_its_backend_alone(backend: str, tiny_bundle: Path) -> None:
    pytest.importorskip(backend)
    program = (
        "import sys, numpy, vitdeploy\n"
        f"with vitdeploy.load({str(tiny_bundle)!r}, backend={backend!r}, threads=1) as classifier:\n"
        "    classifier.predict(numpy.zeros((32, 32, 3), numpy.uint8))\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert set(done.stdout.rpartition("loaded:")[2].split()) & HEAVY == {backend}
