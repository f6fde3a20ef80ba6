"""examples/cpp, built against the headers that the OpenVINO wheel brings: the numbers of C++ are those of Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.examples.running import EXAMPLES
from vitdeploy import load


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = pytest.importorskip("openvino")
    config = Path(openvino.__path__[0]) / "cmake"
    if not (config / "OpenVINOConfig.cmake").is_file():
        pytest.skip("this openvino package brings no headers")
    if shutil.which("cmake") is None or not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("needs cmake and a C++ compiler")
    build = tmp_path_factory.mktemp("cpp")
    for command in (
        [
            "cmake",
            "-S",
            EXAMPLES / "cpp",
            "-B",
            build,
            f"-DOpenVINO_DIR={config}",
            "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
        ],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "classify"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("precision", "file"), [("fp32", "model.onnx"), ("int8", "model.int8-cpu.onnx")])
@pytest.mark.parametrize("size", [(32, 32), (60, 81)])
def test_the_numbers_of_python(
    precision: str, file: str, size: tuple[int, int], program: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.ppm")
    done = run(program, tiny_bundle / file, tmp_path / "image.ppm", 1)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    with load(tiny_bundle, "openvino", precision, threads=1) as classifier:
        expected = classifier.predict(pixels, 5).top_k
    assert [int(index) for index, _ in found] == [score.index for score in expected]
    np.testing.assert_allclose([float(s) for _, s in found], [score.score for score in expected], atol=2e-6)


def test_errors(program: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert run(program).returncode == 2
    bad = tmp_path / "bad.ppm"
    for content in (b"oops", b"P6 10 10 255\n123", b"P6 99999999 99999999 255\n", b"P6 -1 5 255\n", b"P5 1 1 255\n0"):
        bad.write_bytes(content)
        done = run(program, tiny_bundle / "model.onnx", bad)
        assert done.returncode == 1, content
        assert "Error:" in done.stderr and "bad.ppm" in done.stderr
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "good.ppm")
    done = run(program, tmp_path / "none.onnx", tmp_path / "good.ppm")
    assert done.returncode == 1 and "none.onnx" in done.stderr
