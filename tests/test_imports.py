"""The house rules on imports, read from the source and from fresh interpreters."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import architecture
from tests.tools.imports import MODULES, imported_parts, imports, parse, part_of

TESTS = Path(__file__).parent
FLOORS = {  # part: what it may import besides itself and the version number; docs/architecture.md draws it
    "core": set[str](),
    "bundle": {"core"},
    "models": {"core"},
    "data": {"core", "bundle", "models"},
    "backends": {"core", "bundle", "models"},
}
FLOORS["evaluation"] = {*FLOORS}
FLOORS["runtime"] = {*FLOORS}
_LOWER = {*FLOORS}
FLOORS |= {"report": _LOWER, "compiler": _LOWER, "training": _LOWER}
FLOORS |= {
    "bench": _LOWER | {"report"},
    "qat": _LOWER | {"compiler", "training"},
    "explain": _LOWER,
    "bulk": _LOWER,
    "deploy": _LOWER | {"report", "compiler", "bulk"},  # a site's graph is rewritten for WebGPU
    "inspection": _LOWER | {"report"},
    "doctor": _LOWER,
}
FLOORS["demo"] = {*FLOORS}
FLOORS["cli"] = {*FLOORS}
FLOORS |= {"__main__": {"cli"}, "__init__": {*FLOORS}}
HEAVY = {
    *("torch", "torchvision", "transformers", "accelerate", "safetensors", "datasets", "huggingface_hub", "pyarrow"),
    *("onnx", "onnx_ir", "ml_dtypes", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"),
    *("sklearn", "scipy", "pandas", "matplotlib", "kornia", "tensorboard", "triton_python_backend_utils"),
}
LIGHT = ("click", "numpy", "PIL", "rich")  # what a plain `pip install vitdeploy` brings


def crossings(tree: ast.AST, home: str) -> set[str]:
    """Parts of vitdeploy that a file of that wing imports and may not."""
    allowed = FLOORS[home] | {home, "__init__"}
    return {name for name, part in imported_parts(tree).items() if part not in allowed}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_one_way(module: Path) -> None:
    home = part_of(module)
    assert home in FLOORS, f"{module}: say in FLOORS where it stands"
    assert crossings(parse(module), home) == set()


@pytest.mark.parametrize(
    ("home", "line"),
    [
        ("runtime", "from vitdeploy.compiler.build import build"),
        ("runtime", "def f():\n    from vitdeploy import bench"),
        ("compiler", "import vitdeploy.cli.app"),
        ("core", "from vitdeploy.runtime import load"),
        ("data", "if TYPE_CHECKING:\n    from vitdeploy.training import finetune"),
        ("training", "from vitdeploy.report.records import Row"),
        ("report", "from vitdeploy.bench.run import bench"),
        ("backends", "from vitdeploy.runtime import load"),
    ],
)
def test_the_rule_bites(home: str, line: str) -> None:
    assert crossings(ast.parse(line), home)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_heavy_packages_are_imported_where_they_are_used(module: Path) -> None:
    assert {name.partition(".")[0] for name in imports(parse(module), top_level=True)} & HEAVY == set()


def test_the_picture_of_the_parts_is_what_they_import() -> None:
    assert architecture.drawn() == architecture.picture(), "if the change is meant: make goldens"


def test_arrows_that_follow_from_others_are_not_drawn() -> None:
    graph = {"a": set[str](), "b": {"a"}, "c": {"a", "b"}, "d": {"a"}}
    assert architecture.arrows(graph) == [("a", "b"), ("a", "d"), ("b", "c")]


def test_only_known_packages() -> None:
    known = {*sys.stdlib_module_names, *HEAVY, *LIGHT, "vitdeploy", "tomli"}
    found = {name.partition(".")[0] for module in MODULES for name in imports(parse(module))}
    assert found - known == set()


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Modules that import each other, directly or through others."""
    reached = {}
    for start in graph:
        waiting, seen = [start], set[str]()
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    return [others for start, seen in reached.items() if (others := {o for o in seen if start in reached[o]})]


def test_no_modules_import_each_other() -> None:
    """Neither in a function nor for type checkers. The package itself is left out: it imports when it is asked."""
    names = {".".join(("vitdeploy", *m.with_suffix("").parts)).removesuffix(".__init__"): m for m in MODULES}
    del names["vitdeploy"]
    graph = {name: {*imports(parse(module), modules=names)} & {*names} - {name} for name, module in names.items()}
    assert sum(map(len, graph.values())) > len(graph), "the imports were not found"
    assert circles(graph) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}] * 3
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def borrowed(text: str) -> list[str]:
    """Imports of test modules, conftests and benchmarks in a source, also in programs that it holds as strings."""
    return re.findall(r"^\s*(?:from|import) ((?:tests(?!\.tools\b)|benchmarks)\b.*)$", text, flags=re.M)


@pytest.mark.parametrize("module", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_another_or_a_benchmark(module: Path) -> None:
    assert borrowed(module.read_text(encoding="utf-8")) == [], "what tests share lives in tests/tools"


@pytest.mark.parametrize(
    "line",
    [
        "from tests.conftest import A",
        "    import tests.core.test_x",
        "x\nfrom benchmarks.x import y",
        "from tests import x",
    ],
)
def test_the_rule_of_tests_bites(line: str) -> None:
    assert borrowed(line) and not borrowed("from tests.tools.forms import Clock\nimport testsuite")


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
