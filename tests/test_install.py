"""What a device gets: `pip install .[cpu]` in an empty environment runs a bundle, and torch or onnx is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy import load
from vitdeploy.machine import kernels_obstacle

ROOT = Path(__file__).parent.parent
ABSENT = ("torch", "torchvision", "transformers", "onnx", "onnxscript", "datasets", "scipy", "sklearn")
NO_INDEX = ("NewConnectionError", "Failed to establish", "No matching distribution found", "Name or service not known")

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


def install(folder: Path, extra: str, *options: str, **variables: str) -> Path:
    """A new environment in `folder` with vitdeploy from a copy of its source; returns its interpreter."""
    source = folder / "source"  # a copy: building leaves files beside the sources
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "vitdeploy", source / "vitdeploy", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, env=environment())
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *options, f"{source}{extra}"],
        capture_output=True,
        text=True,
        env=environment() | variables,
        timeout=1200,
    )
    if done.returncode and any(sign in done.stderr for sign in NO_INDEX):
        pytest.skip("pip finds no packages from here")
    assert done.returncode == 0, done.stderr
    return python


def has_kernels(python: Path) -> bool:
    ask = "from importlib import util; print(util.find_spec('vitdeploy.runtime._kernels') is not None)"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True, cwd=python.parent)
    return done.stdout.strip() == "True"


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
    assert "pip install 'vitdeploy[build]'" in done.stderr  # what is missing is named with its cure
