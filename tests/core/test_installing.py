"""The pip lines of hints, for each way in which vitdeploy may have come here."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from vitdeploy.core import installing
from vitdeploy.core.installing import extras_line, package_line, update_words, wheel_line


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of installed packages in which a vitdeploy is found first; the record of its origin can be put there."""
    record = tmp_path / "site" / "vitdeploy-9.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vitdeploy\nVersion: 9.0\nRequires-Dist: click>=8.1\n"
        "Provides-Extra: cpu\nRequires-Dist: onnxruntime>=1.22; extra == 'cpu'\n"
        'Requires-Dist: openvino>=2026.3; extra == "cpu"\nRequires-Dist: onnx>=1.23; extra == "build"\n'
        "Requires-Dist: cuda-python<13,>=12.6; extra == 'gpu-cu12'\n"
        "Requires-Dist: cuda-python>=13; extra == 'gpu-cu13'\nRequires-Dist: vitdeploy[gpu-cu13]; extra == 'gpu'\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(installing, "_ROOT", tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    return record / "direct_url.json"


def test_from_an_index(installed: Path) -> None:
    assert extras_line("cpu") == "pip install 'vitdeploy[cpu]'"
    assert extras_line("build", "cpu", upgrade=True) == "pip install --upgrade 'vitdeploy[build,cpu]'"
    assert extras_line() == "pip install vitdeploy"
    assert update_words() == "pip install --upgrade vitdeploy"
    assert wheel_line("wheels") is None  # pip finds it there again


def test_from_a_folder_or_a_wheel(installed: Path, tmp_path: Path) -> None:
    for name in ("the source", "vitdeploy-9.0-py3-none-any.whl"):
        place = tmp_path / name
        installed.write_text(json.dumps({"url": place.as_uri()}))
        # it is gone: the packages themselves
        assert extras_line("cpu") == "pip install 'onnxruntime>=1.22' 'openvino>=2026.3'"
        assert extras_line("gpu") == "pip install 'cuda-python>=13'"  # what an extra that it names brings
        place.mkdir()
        assert shlex.split(extras_line("cpu")) == ["pip", "install", f"./{name}[cpu]"]
        made = ["pip", "wheel", "--no-deps", "--wheel-dir", "a b", f"./{name}"]
        assert shlex.split(wheel_line("a b") or "") == made
        assert "from where this one came from" in update_words()


def test_a_package_of_two_extras_may_be_as_old_as_the_older_wants(installed: Path) -> None:
    assert installing.ranges()["cuda-python"] == ">=12.6" and installing.ranges()["onnx"] == ">=1.23"


def test_from_a_repository(installed: Path) -> None:
    record = {"url": "https://example.com/v.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}
    installed.write_text(json.dumps(record))
    assert extras_line("cpu") == "pip install 'vitdeploy[cpu] @ git+https://example.com/v.git'"
    assert update_words().startswith("pip install --upgrade 'vitdeploy @ git+https")
    assert (wheel_line("w") or "").endswith(" --wheel-dir w 'vitdeploy @ git+https://example.com/v.git'")


def test_from_a_checkout_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "sub").mkdir()
    monkeypatch.setattr(installing, "_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert extras_line("cpu") == "pip install -e '.[cpu]'"
    assert wheel_line("k8s/wheels") == "pip wheel --no-deps --wheel-dir k8s/wheels ."
    monkeypatch.chdir(tmp_path / "sub")
    assert shlex.split(extras_line("cpu")) == ["pip", "install", "-e", f"{tmp_path}[cpu]"]


def test_a_single_package(installed: Path) -> None:
    assert package_line("onnx") == "pip install 'onnx>=1.23'"
    assert package_line("sklearn") == "pip install scikit-learn"
