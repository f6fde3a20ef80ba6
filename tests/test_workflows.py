"""The workflows run what anybody can run: targets of the Makefile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import lowest, release
from tests.tools.documents import PAGES, blocks
from tests.tools.index import skip_without_index
from vitdeploy import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, flags=re.M))
NOT_OURS = (
    "sudo apt-get update && sudo apt-get install ",
    *(f'cat {page} >> "$GITHUB_STEP_SUMMARY"' for page in ("gate.md", "coverage.md", "docs/results/mutation.md")),
)


def commands(workflow: Path) -> list[str]:
    return re.findall(r"^ *- run: (.+)$", workflow.read_text(encoding="utf-8"), flags=re.M)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_each_command_is_a_target_of_the_makefile(workflow: Path) -> None:
    found = [command for command in commands(workflow) if not command.startswith(NOT_OURS)]
    assert found
    for command in found:
        program, target, *_ = command.split()
        assert program == "make" and target in TARGETS, command


def test_every_target_is_phony_and_says_what_it_does() -> None:
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, flags=re.M)
    assert phony is not None and set(phony[1].replace("\\\n", " ").split()) == TARGETS
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", shown, flags=re.M)) == TARGETS


def test_what_the_documents_make_is_a_target() -> None:
    named = {}
    for page in PAGES:
        lines = re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))
        for block in blocks(page):
            lines += re.findall(r"^make ([a-z-]+)", block.text, flags=re.M) if block.is_program else []
        named |= dict.fromkeys(lines, page.name)
    assert len(named) > 20
    assert {name: page for name, page in named.items() if name not in TARGETS} == {}


def test_the_tests_run_on_every_python_that_is_promised() -> None:
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', metadata)
    tested = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/checks.yml").read_text(encoding="utf-8"))
    assert tested is not None and re.findall(r"3\.\d+", tested[1]) == promised
    assert f'requires-python = ">={promised[0]}"' in metadata


def test_actions_are_pinned_to_commits() -> None:
    for workflow in WORKFLOWS:
        for action in re.findall(r"uses: (\S+)", workflow.read_text(encoding="utf-8")):
            assert action.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed: pip install '.[ci]'")
    return found


def test_a_linter_finds_nothing_in_the_workflows() -> None:
    done = subprocess.run([program("zizmor"), "--offline", ".github"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_hooks_are_valid() -> None:
    command = [program("pre-commit"), "validate-config", ".pre-commit-config.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_lowest_versions_are_those_of_the_metadata() -> None:
    text = (
        '\n[project]\ndependencies = ["one>=1.2"]\na = ["two>=3", "one>=1.10", "three>=1; python_version < \'3.11\'"]\n'
    )
    assert lowest.lowest(text) == ["one==1.10", "three==1 ; python_version < '3.11'", "two==3"]
    found = lowest.lowest((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert len(found) > 30 and "torch" in {line.partition("=")[0] for line in found}


@pytest.mark.full
def test_every_lowest_version_is_a_release(tmp_path: Path) -> None:
    """What was never released is a bound that nobody can test: `make test-lowest` would go on without the package."""
    wanted = tmp_path / "lowest.txt"
    lines = lowest.lowest((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
    command += ["--target", tmp_path, "--requirement", wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        skip_without_index(done.stderr)
    assert done.returncode == 0, done.stderr


def test_a_release_needs_its_tag_its_version_and_its_entry() -> None:
    entry = f"# Changelog\n\n## [{__version__}] - 2027-01-05\n"
    assert release.obstacles(f"v{__version__}", __version__, entry) == []
    assert len(release.obstacles(__version__, __version__, "## [Unreleased]\n")) == 2
    assert len(release.obstacles("v0.0.1", __version__, entry)) == 1


@pytest.mark.skipif(shutil.which("make") is None or os.name != "posix", reason="needs make")
@pytest.mark.parametrize(
    ("cuda", "extra"), [("12.8", "gpu-cu12,openvino"), ("13.0", "gpu-cu13,openvino"), (None, "cpu")]
)
def test_what_is_installed_beside_a_gpu_is_for_its_driver(cuda: str | None, extra: str, tmp_path: Path) -> None:
    """ONNX Runtime, TensorRT and PyTorch: PyPI's PyTorch is for CUDA 13, and clashes with the extra for CUDA 12."""
    table = f"| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15    CUDA Version: {cuda}    |"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{table}'\n" if cuda else "#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "--dry-run", "--always-make", "VENV=none", "none/.installed"]
    if extra.startswith("gpu-cu12"):
        refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert refused.returncode == 2 and "TORCH_INDEX='--index-url ADDRESS'" in refused.stderr
        command.append("TORCH_INDEX=--index-url https://example.org/cu126")
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert f'".[build,{extra},dev]"' in said
    (torch,) = (line for line in said.splitlines() if "torch==" in line)
    assert ("https://example.org/cu126" in torch) == (extra.startswith("gpu-cu12"))


@pytest.mark.skipif(shutil.which("make") is None or os.name != "posix", reason="needs make")
def test_an_environment_that_was_interrupted_is_made_whole(tmp_path: Path) -> None:
    """Ctrl-C while pip is put into it leaves a python that can install nothing."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    assert (environment / "bin" / "python").exists() and not (environment / "bin" / "pip").exists()
    subprocess.run(["make", f"{environment}/bin/pip", f"PYTHON={sys.executable}"], cwd=ROOT, check=True)
    subprocess.run([environment / "bin" / "python", "-m", "pip", "--version"], check=True)
