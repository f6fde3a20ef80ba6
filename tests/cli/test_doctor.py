"""The doctor tells people what they can do here; packages are real or real metadata, never patched away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest

import vitdeploy
from vitdeploy.core import machine
from vitdeploy.doctor import examine, unsuitable

NAMES = (
    *("finetune", "export", "quantize", "onnxruntime", "openvino", "native"),
    *("build_tensorrt", "build_tensorrt_rtx", "run_tensorrt", "run_tensorrt_rtx"),
)
RANGES = [
    "onnxruntime>=1.22; extra == 'cpu'",
    "openvino>=2026.3; extra == 'cpu'",
    "tensorrt-cu12>=10.3; extra == 'gpu-cu12'",
]


def install(folder: Path, name: str, version: str, *, module: str | None = None, requires: list[str] = []) -> None:  # noqa: B006
    """What pip leaves behind for a package: its metadata and, if named, an empty module."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires), ""]))
    if module is not None:
        (folder / module).mkdir()
        (folder / module / "__init__.py").write_text("")


def bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`vitdeploy` in an environment with nothing but itself, what it depends on and what lies in `folder`."""
    folder.mkdir(exist_ok=True)
    for name in ("click", "rich", "pygments", "markdown_it", "mdurl"):
        spec = util.find_spec(name)
        if spec is not None and spec.origin is not None and not (folder / name).exists():
            (folder / name).symlink_to(Path(spec.origin).parent)
    (folder / "vitdeploy").symlink_to(Path(vitdeploy.__file__).parent)
    install(folder, "vitdeploy", "0.1.0", requires=RANGES)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-S", "-m", "vitdeploy", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def capabilities(answer: str) -> dict[str, Any]:
    return {item["key"]: item for item in json.loads(answer)["capabilities"]}


def test_what_is_installed_here_is_reported(cli: Callable[..., Any]) -> None:
    outcome = cli("doctor", "--json")
    assert outcome.exit_code == 0
    data = json.loads(outcome.stdout)
    assert data["schema_version"] == 1 and data["machine"]["cores"] == machine.usable_cores()
    found = capabilities(outcome.stdout)
    # ONNX Runtime's TensorRT is spoken of only where the package is installed that has it
    more = ("onnxruntime_tensorrt",) if machine.version("onnxruntime-gpu") else ()
    assert tuple(found) == (*NAMES[:6], *more, *NAMES[6:])
    for key, package in (("openvino", "openvino"), ("quantize", "onnx")):
        versions = {p["name"]: p["version"] for p in found[key]["packages"]}
        assert versions[package] == machine.version(package)
        assert found[key]["available"] is (machine.version(package) is not None)


def test_people_read_the_same_in_80_columns(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli("doctor")
    assert outcome.exit_code == 0
    assert all(len(line) <= 80 for line in outcome.stdout.splitlines() if "pip install" not in line)
    text = " ".join(outcome.stdout.split())
    for capability in examine().capabilities:
        assert f"{'yes' if capability.available else 'no'} {capability.name}" in text
    assert machine.cpu_name() in text


@pytest.mark.skipif(bool(machine.gpus()), reason="this machine has a GPU")
def test_without_a_gpu_engines_are_another_machines_job() -> None:
    diagnosis = examine()
    for key in ("build_tensorrt", "run_tensorrt", "run_tensorrt_rtx"):
        capability = diagnosis.capability(key)
        assert not capability.available and capability.reason and "GPU" in capability.reason and capability.next_step


def test_a_bare_environment_is_told_what_to_install(tmp_path: Path) -> None:
    answer = bare(tmp_path / "site", "doctor", "--json")
    assert answer.returncode == 0, answer.stderr
    found = capabilities(answer.stdout)
    assert not any(item["available"] for item in found.values())
    assert found["finetune"]["next_step"] == "pip install 'vitdeploy[build]'"
    assert found["export"]["next_step"] == "pip install 'vitdeploy[build,cpu]'"
    assert found["openvino"]["next_step"] == "pip install 'vitdeploy[cpu]'"
    assert found["openvino"]["reason"] == "openvino is not installed"
    words = bare_again(tmp_path / "site", "doctor")
    assert "pip install 'vitdeploy[build,cpu]'\n" in words.stdout


def bare_again(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "80"}
    command = [sys.executable, "-S", "-m", "vitdeploy", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)


def test_a_version_outside_the_range_is_not_good_enough(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "openvino", "2024.6.0", module="openvino")
    install(site, "onnxruntime", "1.22.0", module="onnxruntime")
    found = capabilities(bare(site, "doctor", "--json").stdout)
    assert not found["openvino"]["available"] and "2024.6.0" in found["openvino"]["reason"]
    assert found["openvino"]["next_step"] == "pip install --upgrade 'vitdeploy[cpu]'"
    assert found["onnxruntime"]["available"]  # the lowest version that does


@pytest.mark.parametrize(("installed", "fits"), [("10.16.1.11", True), ("11.4.0.106", False), (None, True)])
def test_onnx_runtimes_tensorrt_needs_the_tensorrt_that_it_is_linked_to(
    tmp_path: Path, installed: str | None, fits: bool
) -> None:
    """The provider's own file names it; a system's TensorRT says no version. Without onnxruntime-gpu nobody is told."""
    site = tmp_path / "site"
    install(site, "onnxruntime-gpu", "1.31.1", module="onnxruntime")
    (site / "onnxruntime" / "capi").mkdir()
    (site / "onnxruntime" / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x7fELF\0libnvinfer.so.10\0")
    if installed is not None:
        install(site, "tensorrt-cu13", installed, module="tensorrt")
    found = capabilities(bare(site, "doctor", "--json").stdout)["onnxruntime_tensorrt"]
    assert found["available"] is fits
    if not fits:
        assert found["reason"] == f"ONNX Runtime 1.31.1 needs TensorRT 10, and {installed} is installed"
        assert "'tensorrt-cu13>=10,<11'" in found["next_step"]


def test_metadata_without_files_is_no_package(tmp_path: Path) -> None:
    install(tmp_path / "site", "openvino", "2026.1.0")
    found = capabilities(bare(tmp_path / "site", "doctor", "--json").stdout)
    assert not found["openvino"]["available"] and "files are not there" in found["openvino"]["reason"]


def test_both_onnxruntimes_are_a_problem_with_a_cure(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "onnxruntime", "1.23.0", module="onnxruntime")
    install(site, "onnxruntime-gpu", "1.23.0")
    answer = bare(site, "doctor", "--json")
    assert answer.returncode == 0
    (problem,) = json.loads(answer.stdout)["problems"]
    assert "onnxruntime and onnxruntime-gpu" in problem["message"]
    assert problem["next_step"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")
    assert "Problem: onnxruntime and onnxruntime-gpu" in bare_again(site, "doctor").stdout


def test_one_onnxruntime_is_none_and_the_doctor_never_makes_it_two(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "onnxruntime-gpu", "1.23.0", module="onnxruntime")
    answer = bare(site, "doctor", "--json")
    assert json.loads(answer.stdout)["problems"] == []
    found = capabilities(answer.stdout)
    assert found["onnxruntime"]["available"]
    # vitdeploy[cpu] would bring the other onnxruntime along
    assert found["openvino"]["next_step"] == "pip install 'openvino>=2026.3'"


@pytest.mark.parametrize(
    ("capability", "rtx"),
    [("8.6", True), ("12.0", True), ("6.1", False), ("8.0", False), ("8.7", False), ("9.0", False)],
)
def test_with_a_gpu_the_packages_decide(
    capability: str, rtx: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No GPU is here to ask, so this one is made up; TensorRT-RTX is for those of NVIDIA's support matrix."""
    gpu = machine.Gpu("Made up", capability, 8 * 10**9, "580.65", "13.0", integrated=False)
    monkeypatch.setattr(machine, "gpus", lambda: (gpu,))
    install(tmp_path, "tensorrt", "11.4.0", module="tensorrt")
    install(tmp_path, "cuda-python", "13.0.0", module="cuda")
    (tmp_path / "cuda" / "bindings").mkdir()
    (tmp_path / "cuda" / "bindings" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = {item.key: item for item in examine().capabilities}
    assert found["build_tensorrt"].available and found["run_tensorrt"].available
    if not rtx:
        assert f"the Made up here has {capability}" in str(found["run_tensorrt_rtx"].reason)
    elif machine.has_module("tensorrt_rtx"):
        assert found["run_tensorrt_rtx"].available


@pytest.mark.parametrize(("driver", "problem"), [("12.8", True), ("13.0", False)])
def test_packages_for_a_cuda_that_the_driver_does_not_know_are_a_problem(
    driver: str, problem: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = machine.Gpu("Made up", "8.6", 8 * 10**9, "570.1", driver, integrated=False)
    monkeypatch.setattr(machine, "gpus", lambda: (gpu,))
    install(tmp_path, "cuda-python", "13.4.4", module="cuda")
    monkeypatch.syspath_prepend(tmp_path)
    found = [each for each in examine().problems if "CUDA" in each.message]
    assert bool(found) is problem
    if problem:
        assert found[0].message == "packages here are for CUDA 13, and the driver knows CUDA up to 12.8"
        assert "580" in found[0].next_step and "gpu-cu12" in found[0].next_step


@pytest.mark.parametrize(
    ("number", "wanted", "bad"),
    [
        ("1.22.0", ">=1.22", False),
        ("1.9.1", ">=1.22", True),  # as text, 1.9 would be the larger
        ("2.13.0+cpu", ">=2.9", False),
        ("10.3.0.26", ">=10.3,<12", False),
        ("12.0", ">=10.3,<12", True),
        ("1.0", "==1.0.0", False),
        ("1.1", "!=1.1", True),
        ("3", "", False),
    ],
)
def test_version_ranges(number: str, wanted: str, bad: bool) -> None:
    assert unsuitable(number, wanted) is bad


def test_ranges_are_those_of_the_package() -> None:
    """The doctor reads vitdeploy's own metadata: a range there that it could not read would never be checked."""
    from vitdeploy.core.installing import ranges

    ranges = ranges()
    for requirement in metadata.requires("vitdeploy") or []:
        if requirement.startswith("vitdeploy["):  # the extra dev names others of its own package, without a range
            continue
        found = re.match(r"([\w.-]+?)(?:\[[^\]]*\])?\s*([<>=!][^;]*)", requirement)
        assert found is not None, requirement
        if found[1] in ("onnxruntime-gpu", "cuda-python"):  # of each CUDA there is another range
            assert ranges[found[1]] in (">=1.22", ">=12.6")
        else:
            assert ranges[found[1].lower()] == found[2].strip()


def test_the_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vitdeploy.cli.app import run; run(['--quiet', 'doctor', '--json']);"
        "heavy = ('torch', 'transformers', 'datasets', 'onnx', 'onnxruntime', 'openvino', 'tensorrt_rtx', 'numpy');"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stderr.strip() == "[]"


def test_help_has_an_example(cli: Callable[..., Any]) -> None:
    outcome = cli("doctor", "--help")
    assert outcome.exit_code == 0 and "vitdeploy doctor --json" in outcome.stdout
