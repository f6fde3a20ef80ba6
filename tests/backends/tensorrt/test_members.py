"""Every member that the builder and the runner use of TensorRT's objects, against what TensorRT has.

The real tensorrt_rtx is asked; of TensorRT 10 and 11, which can't be installed without a GPU's worth of libraries,
typed stubs that were read out of NVIDIA's own bindings (`tests/tools/signatures.py`). Uses are read from the syntax.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import vitdeploy
from tests.tools.signatures import CLASSES, Api, as_stub, of_module, of_stub
from tests.tools.uses import MODULE, Uses, uses

ROOT = Path(vitdeploy.__file__).parent
STUBS = {name: Path(__file__).parents[2] / "stubs" / f"tensorrt_{name}.pyi" for name in ("10_3", "10_13", "11_4")}

# {file: ({parameter or attribute: its class}, variables of ours whose members have names as TensorRT's)}
FILES: dict[str, tuple[dict[str, str], str]] = {
    "compiler/engine/builder.py": (
        {"builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig"},
        "self gpu image options onnx_path step",
    ),
    "compiler/engine/network.py": (
        {"network": "INetworkDefinition", "parser": "OnnxParser", "layer": "ILayer", "tensor": "ITensor"},
        "path",
    ),
    "compiler/engine/profiles.py": ({"network": "INetworkDefinition", "tensor": "ITensor"}, ""),
    "compiler/engine/watch.py": ({"parser": "OnnxParser", "error": "ParserError"}, "step"),
    "backends/tensorrt/engine.py": ({"_engine": "ICudaEngine", "_kernels": "IRuntimeCache"}, "self spec weights math"),
    "backends/tensorrt/execution.py": ({"context": "IExecutionContext"}, "self np output array spec allocator _engine"),
    "backends/tensorrt/runner.py": ({}, "self array _path engine"),
}
# What only TensorRT-RTX has. The code uses it after it has looked for it, or for that flavour alone.
RTX_ONLY = {
    (MODULE, "ComputeCapability"),
    (MODULE, "CudaGraphStrategy"),
    (MODULE, "DynamicShapesKernelSpecializationStrategy"),
    ("ComputeCapability", "__members__"),
    ("CudaGraphStrategy", "DISABLED"),
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeCache", "deserialize"),
    ("IRuntimeCache", "serialize"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "set_runtime_cache"),
}
RTX_CLASSES = {
    *("ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "IRuntimeCache"),
}
# From TensorRT 10.13 on; used after CudaGraphStrategy, which only TensorRT-RTX has.
RUNTIME_CONFIG = {
    ("ICudaEngine", "create_runtime_config"),
    ("IRuntimeConfig", "set_execution_context_allocation_strategy"),
}
# Methods of a derived class that TensorRT calls and does not show as members of its own class.
CALLED_BACK = {("IOutputAllocator", "reallocate_output_async"): 5, ("IOutputAllocator", "reallocate_output"): 4,
               ("IOutputAllocator", "notify_shape"): 2}  # fmt: skip
OURS = {("IProgressMonitor", "cancel"), ("IProgressMonitor", "_change"), ("IOutputAllocator", "forget")}


def rtx() -> Api:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no names to compare with")
    return of_module(trt)


@pytest.fixture(scope="module", params=["rtx", *STUBS])
def api(request: pytest.FixtureRequest) -> tuple[str, Api]:
    """A release of TensorRT and what it has."""
    return request.param, rtx() if request.param == "rtx" else of_stub(STUBS[request.param])


def read(text: str, names: dict[str, str]) -> Uses:
    """The uses in a source, by the classes that calls give in TensorRT 11.4."""
    return uses(text, {"trt": MODULE, "_trt": MODULE, **names}, of_stub(STUBS["11_4"]))


def used(file: str) -> Uses:
    return read((ROOT / file).read_text(encoding="utf-8"), FILES[file][0])


def lacking(found: Uses, release: str, api: Api) -> set[str]:
    """What a release does not have of what is used there, or takes other arguments for."""
    spared = set() if release == "rtx" else RTX_ONLY | (RUNTIME_CONFIG if release == "10_3" else set())
    wrong = {
        f"{kind}.{name}" for kind, name in found.members if (kind, name) not in spared and not _has(api, kind, name)
    }
    for call in found.calls:
        if (call.kind, call.name) in spared | found.looked_up or (spared and "IRuntimeConfig" in call.positional):
            continue
        member = api.get(call.kind, {}).get(call.name)
        if member is not None and not member.takes(call.positional, call.named):
            wrong.add(f"{call.kind}.{call.name} called in line {call.line}")
    return wrong


def _has(api: Api, kind: str, name: str) -> bool:
    if kind == MODULE:
        return name in api or name in ("__version__", "__name__")
    is_enumeration = all(member.type == kind for member in api.get(kind, {}).values())
    return name in api.get(kind, {}) or (is_enumeration and kind in api and name in ("name", "value", "__members__"))


@pytest.mark.parametrize("file", FILES)
def test_every_member_is_there_and_takes_these_arguments(file: str, api: tuple[str, Api]) -> None:
    assert lacking(used(file), *api) == set()


@pytest.mark.parametrize("file", FILES)
def test_what_tensorrt_calls_back_has_its_name_and_arguments(file: str, api: tuple[str, Api]) -> None:
    for (kind, name), count in used(file).overrides.items():
        member = api[1][kind].get(name)
        if member is not None:
            assert [len(call) for call in member.calls] == [count], f"{kind}.{name}"
        elif (kind, name) in CALLED_BACK:
            assert CALLED_BACK[kind, name] == count
        else:
            assert (kind, name) in OURS, f"{kind}.{name}"


@pytest.mark.parametrize("file", FILES)
def test_what_is_looked_up_exists_somewhere(file: str) -> None:
    everywhere = [rtx(), *map(of_stub, STUBS.values())]
    for kind, name in used(file).looked_up:
        assert any(_has(api, kind, name) for api in everywhere), f"{kind}.{name}"


@pytest.mark.parametrize("file", FILES)
def test_no_use_escapes_the_check(file: str) -> None:
    """A member with a name of TensorRT's belongs to a variable whose class is known, or that is known to be ours."""
    strangers = {variable for variable, _ in used(file).unknown}
    assert strangers <= set(FILES[file][1].split()), used(file).unknown


def test_no_file_escapes_the_check() -> None:
    names = {name for members in rtx().values() for name in members if "_" in name.strip("_")}
    ours = {("runtime/inputs.py", "device_memory")}
    found = set()
    for path in ROOT.rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        if file not in FILES:
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            found |= {(file, n.attr) for n in nodes if isinstance(n, ast.Attribute) and n.attr in names}
            found |= {(file, n.id) for n in nodes if isinstance(n, ast.Name) and n.id in ("trt", "_trt")}
    assert found == ours


def test_what_is_spared_is_really_missing() -> None:
    before, later = of_stub(STUBS["10_3"]), of_stub(STUBS["11_4"])
    assert not any(_has(api, *member) for member in RTX_ONLY for api in (before, later))
    assert not any(_has(before, *member) for member in RUNTIME_CONFIG)
    assert all(_has(later, *member) for member in RUNTIME_CONFIG)
    assert all(_has(rtx(), *member) for member in RTX_ONLY | RUNTIME_CONFIG)


def test_the_stubs_are_of_different_releases() -> None:
    """What NVIDIA's release notes say was removed, renamed and added."""
    old, middle, new = (of_stub(path) for path in STUBS.values())
    for kind, name in (
        ("BuilderFlag", "FP16"),
        ("BuilderFlag", "INT8"),
        ("IBuilderConfig", "int8_calibrator"),
        ("ITensor", "dynamic_range"),
        ("ILayer", "precision"),
        ("ICudaEngine", "device_memory_size"),
    ):
        assert name in old[kind] and name in middle[kind] and name not in new[kind], f"{kind}.{name}"
    assert "SQUEEZE" not in old["LayerType"] and "SQUEEZE" in middle["LayerType"]
    assert CLASSES - old.keys() == RTX_CLASSES | {"IRuntimeConfig"}
    assert CLASSES - new.keys() == RTX_CLASSES


def test_enough_is_looked_at_and_the_check_bites() -> None:
    every = [used(file) for file in FILES]
    assert sum(len(found.members) for found in every) >= 110 and sum(len(found.calls) for found in every) >= 60
    assert ("ITimingCache", "serialize") in used("compiler/engine/builder.py").members  # of what a call gives
    names = {"config": "IBuilderConfig", "engine": "ICudaEngine", "builder": "Builder"}

    def bad(text: str, release: str = "10_3") -> set[str]:
        return lacking(read(text, names), release, of_stub(STUBS[release]))

    assert bad("config.int8_calibrator; trt.BuilderFlag.INT8", "11_4") == {
        "IBuilderConfig.int8_calibrator",
        "BuilderFlag.INT8",
    }
    assert bad("engine.get_binding_name(0)") == {"ICudaEngine.get_binding_name"}
    assert bad("net = builder.create_network(0)\nnet.get_layer(0).get_output(0).dtyp") == {"ITensor.dtyp"}
    assert bad("engine.get_tensor_profile_shape('x')") == {"ICudaEngine.get_tensor_profile_shape called in line 1"}
    assert bad("config.set_timing_cache(cache, ignore=True)") == {"IBuilderConfig.set_timing_cache called in line 1"}
    assert bad("config.set_flag(trt.MemoryPoolType.WORKSPACE)") == {"IBuilderConfig.set_flag called in line 1"}
    assert not bad("config.set_flag(trt.BuilderFlag.STRIP_PLAN)")
    assert read("thing.set_flag(1)", {}).unknown == {("thing", "set_flag"): [1]}


def test_a_stub_says_what_the_module_says(tmp_path: Path) -> None:
    real: Any = rtx()
    (tmp_path / "rtx.pyi").write_text(as_stub(real), encoding="utf-8")
    assert of_stub(tmp_path / "rtx.pyi") == real


@pytest.mark.parametrize("release", STUBS)
def test_a_stub_of_differences_says_as_much(release: str, tmp_path: Path) -> None:
    """From any base to any release, with classes and members that come, change and go."""
    api = of_stub(STUBS[release])
    for number, base in enumerate(STUBS.values()):
        (tmp_path / "base.pyi").write_text(as_stub(of_stub(base)), encoding="utf-8")
        path = tmp_path / f"{number}.pyi"
        path.write_text(as_stub(api, tmp_path / "base.pyi"), encoding="utf-8")
        assert of_stub(path) == api
