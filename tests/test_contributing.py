"""Who follows a page of docs/contributing gets what it promises: its code is put into a copy of the package and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path for path in sorted((ROOT / "docs" / "contributing").glob("*.md"))}
REPORT = ROOT / "docs" / "results" / "cifar10-vit-small.json"
NEW, EDIT, TRY = r"# (vitdeploy/\S+\.py)", r"# in (\S+), (before|after): (.+)", "# try it"


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(first line, the rest) of each block of code."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [(first, rest) for first, _, rest in (block.partition("\n") for block in found)]


def follow(page: Path, tree: Path) -> list[str]:
    """Do what the page says in a copy of the package; returns the programs that try it."""
    programs = []
    for first, rest in blocks(page, "py"):
        if new := re.fullmatch(NEW, first):
            assert not (tree / new[1]).exists(), f"{new[1]} is there already"
            (tree / new[1]).parent.mkdir(exist_ok=True)
            (tree / new[1]).write_text(rest, encoding="utf-8")
        elif edit := re.fullmatch(EDIT, first):
            lines = (tree / edit[1]).read_text(encoding="utf-8").splitlines(keepends=True)
            places = [number for number, line in enumerate(lines) if line.strip() == edit[3]]
            assert len(places) == 1, f"{edit[1]} has {len(places)} lines {edit[3]!r}"
            lines.insert(places[0] + (edit[2] == "after"), rest)
            (tree / edit[1]).write_text("".join(lines), encoding="utf-8")
        else:
            assert first == TRY, first
            programs.append(rest)
    return programs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "vitdeploy", tmp_path / "vitdeploy", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(tree: Path, *command: object, **variables: str) -> None:
    """Run a program with the copied package, in its folder."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [str(part) for part in command], cwd=tree, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_are_those_that_contributing_names() -> None:
    named = re.findall(r"docs/contributing/([\w-]+)\.md", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(PAGES)


def test_every_room_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"`((?:vitdeploy|docs)/[\w./-]+)`", text)
    assert len(rooms) > 15 and [room for room in rooms if not (ROOT / room).exists()] == []


@pytest.mark.parametrize("name", sorted(set(PAGES) - {"instruction-set"}))
def test_what_a_page_adds_has_its_place(name: str, tree: Path) -> None:
    assert follow(PAGES[name], tree), "the page has no program that tries it"
    for first, _ in blocks(PAGES[name], "py"):
        if first != TRY:
            path = tree / re.findall(r"vitdeploy/\S+\.py", first)[0]
            compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(PAGES) - {"instruction-set"}))
def test_a_page_followed_does_what_it_says(name: str, tree: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, tree / "bundles" / "vit")
    Image.new("RGB", (40, 30), "orange").save(tree / "cat.png")
    for program in follow(PAGES[name], tree):
        run(tree, sys.executable, "-c", program, REPORT)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_page_on_instruction_sets_followed_gives_one_that_runs(tree: Path, tiny_bundle: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__", "frozen"))
    copying, building = (f"{first}\n{rest}" for first, rest in blocks(PAGES["instruction-set"], "sh"))
    run(tree, "sh", "-ec", copying)
    # the portable set is slow: one test of its products, and one bundle
    kernels = "-k float32 tests/backends/native/test_kernels.py"
    building = building.replace("python ", f"{sys.executable} ").replace("tests/backends/native", kernels)
    run(tree, "sh", "-ec", building)
    program = (
        "import sys, numpy, vitdeploy\n"
        "from vitdeploy.backends.native import library\n"
        "assert library.chosen_isa().name == 'mine'\n"
        "with vitdeploy.load(sys.argv[1], backend='native', precision='int8') as classifier:\n"
        "    print(classifier.predict(numpy.zeros((32, 32, 3), numpy.uint8)))\n"
    )
    run(tree, sys.executable, "-c", program, tiny_bundle, VITDEPLOY_ISA="mine")
