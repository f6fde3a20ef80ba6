"""The extras for GPUs resolve where they should, and bring every library of CUDA that their files are linked to.

pip resolves each for other Pythons and machines, and installs nothing; of a wheel the parts that are looked at come
over the network. TensorRT's own packages fetch themselves from an index of NVIDIA's when they are built, so their
bindings, which are wheels of the same version, are asked for in their place.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.tools.index import skip_without_index

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
PYTHONS, MACHINES = ("3.10", "3.11", "3.12", "3.13"), ("x86_64", "aarch64")
SYSTEM = re.compile(r"(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|z|util)|ld-linux-.*)\.so")
DRIVER = {"libcuda.so.1"}
PROVIDERS = "onnxruntime/capi/libonnxruntime_providers_{}.so"


class Remote(io.RawIOBase):
    """A file on a server, of which only what is read is fetched."""

    def __init__(self, url: str) -> None:
        self._url, self._at = url, 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
            self._size = int(answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        wanted = {"Range": f"bytes={self._at}-{self._at + count - 1}"}
        with urllib.request.urlopen(urllib.request.Request(self._url, headers=wanted), timeout=120) as answer:
            if answer.status != 206 and self._size > 1 << 24:
                pytest.skip("the index gives no parts of files, and these are hundreds of megabytes")
            content = answer.read()
            content = content if answer.status == 206 else content[self._at : self._at + count]
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@cache
def wheel(url: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BufferedReader(Remote(url), 1 << 20))
    except urllib.error.URLError as error:
        pytest.skip(f"the index does not answer: {error}")


def requirements(extra: str, python: str, machine: str) -> list[str]:
    """What an extra asks for there, those of the extras that it names included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for each in map(Requirement, project["optional-dependencies"][extra]):
        if each.marker and not each.marker.evaluate({"python_version": python, "platform_machine": machine}):
            continue
        if each.name == project["name"]:
            found += [line for inner in sorted(each.extras) for line in requirements(inner, python, machine)]
        else:
            name = f"{each.name}-bindings" if each.name.startswith("tensorrt-") else each.name
            extras = f"[{','.join(sorted(each.extras))}]" if each.extras else ""
            found.append(f"{name}{extras}{each.specifier}")
    return found


@cache
def resolved(extra: str, python: str, machine: str) -> dict[str, tuple[str, str]]:
    """{package: (version, address of its wheel)} that pip would install there."""
    platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in range(17, 36))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--use-feature", "fast-deps", "--only-binary", ":all:", "--target", folder]
        command += ["--report", f"{folder}/report.json", "--python-version", python]
        command += [word for name in platforms for word in ("--platform", name)]
        command += requirements(extra, python, machine)
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            skip_without_index(done.stderr)
        assert done.returncode == 0, done.stderr
        report = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    return {
        item["metadata"]["name"].lower().replace("_", "-"): (item["metadata"]["version"], item["download_info"]["url"])
        for item in report["install"]
    }


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["gpu-cu12", "gpu-cu13"])
def test_an_extra_resolves_to_packages_for_one_cuda(extra: str, python: str, machine: str) -> None:
    cuda = extra[-2:]
    found = {name: version for name, (version, _) in resolved(extra, python, machine).items()}
    assert found["cuda-python"].startswith(f"{cuda}.") and found["cuda-bindings"].startswith(f"{cuda}.")
    # the wheels for CUDA 12 are for x86-64; ONNX Runtime's for CUDA 13 are for Python 3.11 and later
    assert (f"tensorrt-cu{cuda}-bindings" in found) == (cuda == "13" or machine == "x86_64")
    with_onnxruntime = python != "3.10" if cuda == "13" else machine == "x86_64"
    assert ("onnxruntime-gpu" in found) == with_onnxruntime != ("onnxruntime" in found)
    if with_onnxruntime:
        assert f"nvidia-cudnn-cu{cuda}" in found
    assert not [name for name in found if re.search(r"-cu1[1-3]\b", name) and f"-cu{cuda}" not in name]


def test_the_bindings_for_cuda_12_are_not_laid_under_those_for_cuda_13() -> None:
    """PyPI's PyTorch asks for the latter; an old cuda-python, which has the same files, asks for nothing."""
    (python,) = (line for line in requirements("gpu-cu12", "3.12", "x86_64") if line.startswith("cuda-python"))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--target",
            folder,
        ]
        command += ["--only-binary", ":all:", python, "cuda-bindings>=13.0.3,<14"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        skip_without_index(done.stderr)
    assert done.returncode != 0 and "conflict" in done.stderr, done.stderr


def needed(url: str, name: str) -> set[str]:
    """The libraries that a file in a wheel is linked to, but for the system's own."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file, wheel(url).open(name) as content:
        shutil.copyfileobj(content, file)
        file.flush()
        command = ["readelf", "--dynamic", "--wide", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"\(NEEDED\).*\[(.*)\]", said))
    assert found, f"readelf finds nothing that {name} needs"
    return {library for library in found if not SYSTEM.match(library)}


@pytest.mark.parametrize(
    ("extra", "machine"), [("gpu-cu12", "x86_64"), ("gpu-cu13", "x86_64"), ("gpu-cu13", "aarch64")]
)
def test_an_extra_brings_what_its_files_are_linked_to(extra: str, machine: str) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    found = resolved(extra, "3.12", machine)
    brought = {Path(name).name for _, url in found.values() for name in wheel(url).namelist() if ".so" in name}
    onnxruntime = found["onnxruntime-gpu"][1]
    by_cuda = needed(onnxruntime, PROVIDERS.format("cuda"))
    assert any(library.startswith("libcublas.so") for library in by_cuda) and by_cuda - DRIVER <= brought
    # the TensorRT provider is linked to one major version of TensorRT, as the doctor says; ARM's wheel has none
    provider = PROVIDERS.format("tensorrt")
    assert (provider in wheel(onnxruntime).namelist()) == (machine == "x86_64")
    if machine == "x86_64":
        assert needed(onnxruntime, provider) - DRIVER - brought == {"libnvinfer.so.10", "libnvonnxparser.so.10"}
    version, url = found[f"tensorrt-cu{extra[-2:]}-bindings"]
    (bindings,) = (name for name in wheel(url).namelist() if name.endswith(".so"))
    major = version.partition(".")[0]
    assert f"libnvinfer.so.{major}" in needed(url, bindings)


def test_gpu_is_the_newest_of_them() -> None:
    assert requirements("gpu", "3.12", "x86_64") == requirements("gpu-cu13", "3.12", "x86_64") != []
