"""examples/cpp, built against the headers that the OpenVINO wheel brings: the numbers of C++ are those of Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.running import EXAMPLES
from vitdeploy import load
from vitdeploy.models.tasks import CLASSIFICATION, TASKS

LIBRARIES = (
    "libjpeg, libpng and nlohmann's JSON are not installed: apt install libjpeg-dev libpng-dev nlohmann-json3-dev"
)
JPEG = 1e-3  # how far a score may be off where two versions of the decoder differ by a level
HEADERS = "this openvino package brings no headers"
# The wheels of TensorRT and TensorRT-RTX bring libraries and no headers; a Jetson has them, and NVIDIA's archives do.
TENSORRT = "no NvInfer.h and cuda_runtime_api.h: name their folders in VITDEPLOY_TENSORRT_INCLUDE (with colons)"


def compiled(source: str, *options: object) -> subprocess.CompletedProcess[str]:
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++", *options, "-"]
    return subprocess.run(list(map(str, command)), input=source, capture_output=True, text=True, check=False)


def have(*headers: str, options: tuple[object, ...] = ()) -> bool:
    return compiled("".join(f"#include <{header}>\n" for header in headers), *options).returncode == 0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = pytest.importorskip("openvino")
    config = Path(openvino.__path__[0]) / "cmake"
    if not (config / "OpenVINOConfig.cmake").is_file():
        pytest.skip(HEADERS)
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    if not have("cstdio", "jpeglib.h", "png.h", "nlohmann/json.hpp"):
        pytest.skip(LIBRARIES)
    build = tmp_path_factory.mktemp("cpp")
    flags = ("-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", "-DCMAKE_BUILD_TYPE=Debug")
    for command in (
        ["cmake", "-S", EXAMPLES / "cpp", "-B", build, f"-DOpenVINO_DIR={config}", *flags],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "classify"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


def files(folder: Path) -> Iterator[tuple[Path, float]]:
    """Images of each kind, and by how much a score may differ."""
    pixels = np.random.default_rng(1).integers(0, 256, (60, 81, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    named = {
        "colour.png": colour,
        "grey.png": colour.convert("L"),
        "palette.png": colour.convert("P"),
        "bits.png": colour.convert("1"),
        "deep.png": Image.fromarray((pixels[..., 0].astype(np.uint16) << 8) + 200),
        "transparent.png": Image.fromarray(pixels, "RGBA"),
    }
    for name, image in named.items():
        image.save(folder / name)
        yield folder / name, 1e-3 if name == "transparent.png" else 2e-6
    ramps = np.linspace(0, 1, 60)[:, None, None] ** 2 * [255, 20, 90] + np.linspace(0, 1, 81)[None, :, None] * [
        0,
        200,
        90,
    ]
    smooth = Image.fromarray(ramps.clip(0, 255).astype(np.uint8))
    for name, image in (("colour.jpg", smooth), ("grey.jpeg", smooth.convert("L"))):
        image.save(folder / name, quality=90)
        yield folder / name, JPEG
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = folder / f"turned-{orientation}.jpg"
        smooth.save(path, quality=95, exif=exif)
        yield path, JPEG


def answers(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    assert done.returncode == 0, done.stderr
    return {label: float(score) for label, score in (line.split("\t") for line in done.stdout.splitlines())}


def test_the_numbers_of_python(program: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Labels and scores, of the form for CPUs where the bundle is named, and of the file that is named."""
    turned: list[dict[str, float]] = []
    with load(tiny_bundle, "openvino", "int8", threads=1) as classifier:
        for path, tolerance in files(tmp_path):
            found = answers(run(program, tiny_bundle, path, 1))
            expected = {score.label: score.score for score in classifier.predict(path, len(classifier.labels)).top_k}
            assert len(found) == 5
            for label, score in found.items():
                assert score == pytest.approx(expected[label], abs=tolerance), path.name
            if "turned" in path.name:
                turned.append({label: score or 0.0 for label, score in expected.items()})
    apart = [max(abs(one[label] - other[label]) for label in one) for one, other in combinations(turned, 2)]
    assert len(apart) == 28 and min(apart) > 3 * JPEG  # a picture that is turned otherwise gives other scores
    with load(tiny_bundle, "openvino", "fp32", threads=1) as classifier:
        expected = {score.label: score.score for score in classifier.predict(tmp_path / "colour.png", 5).top_k}
    assert answers(run(program, tiny_bundle / "model.onnx", tmp_path / "colour.png")) == pytest.approx(
        expected, abs=2e-6
    )


@pytest.mark.parametrize("task", [*TASKS, "of a later version"])
def test_it_follows_the_task(task: str, program: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The same bundle, whose manifest gives its logits another meaning."""
    bundle, photo = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")), tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 81, 3), dtype=np.uint8)).save(photo)
    manifest = json.loads((bundle / "manifest.json").read_text())
    threshold = {"threshold": 0.3} if task == "multi_label" else {}
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "task": task, **threshold}))
    done = run(program, bundle / "model.onnx", photo, 1)
    if task not in TASKS or TASKS[task].kind is not CLASSIFICATION:
        assert done.returncode == 1 and done.stdout == ""
        assert ("embedding" if task == "embedding" else "is not known to this program") in done.stderr
        return
    assert done.returncode == 0, done.stderr
    with load(bundle, "openvino", "fp32", threads=1) as classifier:
        answer = classifier.predict(photo, 5)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [score.label for score in answer.top_k]
    wanted = [score.value if score.score is None else score.score for score in answer.top_k]
    np.testing.assert_allclose([float(line[1]) for line in lines], wanted, atol=2e-5)
    had = {line[0] for line in lines if line[2:] == ["yes"]}
    assert had == {score.label for score in answer.labels or () if score in answer.top_k}


def test_errors(program: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert run(program).returncode == 2
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "good.png")
    Image.fromarray(np.zeros((64, 64, 4), np.uint8), "CMYK").save(tmp_path / "cmyk.jpg")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    bad = [tmp_path / "none.png", tmp_path / "cmyk.jpg"]
    for suffix in ("png", "jpg"):
        noise.save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        for name, part in (("cut", content[: len(content) // 2]), ("head", content[:20]), ("text", b"oops")):
            bad.append(tmp_path / f"{name}.{suffix}")
            bad[-1].write_bytes(part)
    for path in bad:
        done = run(program, tiny_bundle, path)
        assert done.returncode == 1 and f"Error: {path}: " in done.stderr, path
        assert done.stdout == ""
    (tmp_path / "empty").mkdir()
    stranger = shutil.copy(tiny_bundle / "model.onnx", tmp_path / "empty")
    for bundle in (tmp_path / "nothing", tmp_path / "empty", stranger):
        done = run(program, bundle, tmp_path / "good.png")
        assert done.returncode == 1 and "no bundle" in done.stderr


def test_the_loader_of_engines_compiles() -> None:
    """Against the headers of TensorRT 10, 11 or TensorRT-RTX, which are alike in what it uses."""
    named = os.environ.get("VITDEPLOY_TENSORRT_INCLUDE", "")
    options = tuple(option for folder in filter(None, named.split(":")) for option in ("-isystem", folder))
    if not have("cstdio", "jpeglib.h", "png.h", "nlohmann/json.hpp"):
        pytest.skip(LIBRARIES)
    if not have("NvInfer.h", "cuda_runtime_api.h", options=(*options, "-Wno-deprecated-declarations")):
        pytest.skip(TENSORRT)
    source = (EXAMPLES / "cpp" / "classify_tensorrt.cpp").read_text()
    done = compiled(source, *options, "-Wno-deprecated-declarations", "-I", EXAMPLES / "cpp")
    assert done.returncode == 0, done.stderr
    broken = compiled(source.replace("enqueueV3", "enqueueV4"), *options, "-I", EXAMPLES / "cpp")
    assert broken.returncode != 0
