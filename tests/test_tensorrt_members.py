"""Every attribute that the builder and the runner take of TensorRT's objects, against what TensorRT has.

The real tensorrt_rtx is asked, and for TensorRT 10.3 to 11.4, which is of no use without a GPU, `tests.stubs.tensorrt`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import vitdeploy
from tests.stubs.tensorrt import MEMBERS, RTX_ONLY, Span

ROOT = Path(vitdeploy.__file__).parent
VERSIONS = ("10.3", "10.7", "10.13", "11.0", "11.4")
_MODULE = {"trt": "module", "_trt": "module"}
# file: {what a variable or attribute is called: its class}
FILES: dict[str, dict[str, str]] = {
    "compiler/engine/builder.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "shapes": "IOptimizationProfile",
    },
    "compiler/engine/network.py": {
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "layer": "ILayer",
        "tensor": "ITensor",
    },
    "compiler/engine/profiles.py": {"network": "INetworkDefinition", "image": "ITensor", "tensor": "ITensor"},
    "compiler/engine/watch.py": {"parser": "OnnxParser", "error": "ParserError"},
    "runtime/engine.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "_engine": "ICudaEngine",
        "config": "IRuntimeConfig",
        "context": "IExecutionContext",
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
        "inspector": "EngineInspector",
    },
    "runtime/lane.py": {"context": "IExecutionContext"},
}


def uses(source: str, receivers: dict[str, str]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """({class: attributes}, {class: names that are looked up with getattr and may be missing})."""
    direct: dict[str, set[str]] = defaultdict(set)
    looked_up: dict[str, set[str]] = defaultdict(set)

    def owner(node: ast.AST) -> str | None:
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        if isinstance(node, ast.Attribute):
            above = owner(node.value)
            if above == "module":
                return str(node.attr)  # trt.BuilderFlag
        return {**_MODULE, **receivers}.get(str(name))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            kind = owner(node.value)
            if kind in MEMBERS or kind in RTX_ONLY:
                direct[str(kind)].add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "hasattr", "_look"):
            kind = owner(node.args[0])
            if kind is not None and isinstance(node.args[1], ast.Constant):
                looked_up[kind].add(str(node.args[1].value))
    return direct, looked_up


def used(file: str) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    return uses((ROOT / file).read_text(encoding="utf-8"), FILES[file])


def lacking(direct: dict[str, set[str]], version: str) -> set[str]:
    """What a release of TensorRT does not have of what is used there without looking first."""
    return {
        f"{kind}.{name}"
        for kind, names in direct.items()
        for name in names - RTX_ONLY.get(kind, set())
        if not MEMBERS.get(kind, {}).get(name, Span("99.0")).covers(version)
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES)
def test_tensorrt_has_every_member(file: str, version: str) -> None:
    direct, looked_up = used(file)
    assert lacking(direct, version) == set()
    known = {kind: {*MEMBERS.get(kind, {}), *RTX_ONLY.get(kind, set())} for kind in looked_up}
    assert {f"{kind}.{name}" for kind in looked_up for name in looked_up[kind] - known[kind]} == set()


@pytest.mark.parametrize("file", FILES)
def test_tensorrt_rtx_has_every_member(file: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no names to compare with")
    direct, _ = used(file)
    missing = set()
    for kind, names in direct.items():
        real: Any = trt if kind == "module" else getattr(trt, kind)
        missing |= {f"{kind}.{name}" for name in names if not hasattr(real, name)}
    assert missing == set()


def test_the_table_of_members_is_of_the_same_classes_as_the_real_module() -> None:
    """A misspelt name in the table would let a misspelt name in the code pass."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no names to compare with")
    for kind, names in MEMBERS.items():
        real: Any = trt if kind == "module" else getattr(trt, kind)
        for name, span in names.items():
            if span.gone is None:
                assert hasattr(real, name), f"{kind}.{name}"
            elif span.gone == "11.0" and kind not in ("module", "ICudaEngine"):
                assert not hasattr(real, name), f"{kind}.{name}"


def test_enough_is_looked_at_and_the_check_bites() -> None:
    counts = {file: sum(map(len, used(file)[0].values())) for file in FILES}
    assert min(counts.values()) >= 4 and sum(counts.values()) >= 60, counts
    direct = used("compiler/engine/builder.py")[0]
    assert {"VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"} <= direct["BuilderFlag"]
    assert "set_compute_capability" in direct["IBuilderConfig"]
    bad = uses(
        "config.int8_calibrator; trt.BuilderFlag.INT8; engine.get_binding_name(0)",
        {"engine": "ICudaEngine", "config": "IBuilderConfig"},
    )[0]
    assert lacking(bad, "11.0") == {
        "IBuilderConfig.int8_calibrator",
        "BuilderFlag.INT8",
        "ICudaEngine.get_binding_name",
    }
    assert lacking(bad, "10.3") == {"ICudaEngine.get_binding_name"}
    assert lacking(uses("engine.create_context()", {"engine": "ICudaEngine"})[0], "11.4")
