"""Every command of every document is run, as its reader would, or says in its source why not."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tools.documents import PAGES, PROGRAMS, ROOT, Block, blocks, make_world, run, stand_in


def named(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def to_run(page: Path) -> list[Block]:
    return [
        block for block in blocks(page) if "file" in block.marks or (block.is_program and "not run" not in block.marks)
    ]


QUICK = [page for page in PAGES if not all(block.is_slow for block in to_run(page))]
SLOW = [page for page in PAGES if any(block.is_slow for block in to_run(page))]


@pytest.fixture(scope="module")
def world(
    tiny_bundle: Path, tiny_checkpoint: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the documents speak of. Read-only: copy it."""
    return make_world(tmp_path_factory.mktemp("world"), tiny_bundle, tiny_checkpoint, tiny_images)


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, in which the test stands."""
    copy = Path(shutil.copytree(world, tmp_path / "world"))
    stand_in(copy, monkeypatch)
    return copy


@pytest.mark.parametrize("page", named(QUICK))
def test_commands_run(page: Path, here: Path) -> None:
    for block in to_run(page):
        if not block.is_slow:
            run(block)


@pytest.mark.full
@pytest.mark.parametrize("page", named(SLOW))
def test_slow_commands_run(page: Path, here: Path) -> None:
    for block in to_run(page):
        module = block.marks.get("run", "").partition(" with ")[2]
        if module and find_spec(module) is None:
            pytest.skip(f"{block} needs {module}")
        run(block)


@pytest.mark.parametrize("page", named(PAGES))
def test_no_command_escapes(page: Path) -> None:
    for block in blocks(page):
        if not block.is_program:
            calls = [line for line in block.text.splitlines() if line.startswith(("$ ", *(f"{p} " for p in PROGRAMS)))]
            assert not calls, f"{block} is not taken for a program: {calls}"
        if block.is_slow:
            assert block.marks["run"].partition(" with ")[0] == "full", block
        if "not run" in block.marks:
            assert block.is_program and len(block.marks["not run"].split()) >= 3, block
            for test in re.findall(r"tests/[\w/]+\.py", block.marks["not run"]):
                assert (ROOT / test).is_file(), f"{block}: there is no {test}"


def test_a_command_that_fails_is_found(here: Path) -> None:
    page = here / "page.md"
    page.write_text(
        "Text.\n\n<!-- file: names.txt -->\n\n    one\n\n<!-- before: touch made -->\n```sh\ntest -f names.txt\n"
        "test -f made\nvitdeploy inspect bundles/vit\nvitdeploy inspect bundles/none\n```\n\n"
        "<!-- not run: needs a Jetson -->\n\n    ssh jetson\n"
    )
    names, failing, left_out = blocks(page)
    assert (names.marks, names.text) == ({"file": "names.txt"}, "one\n")
    assert (left_out.marks, left_out.language, left_out.line) == ({"not run": "needs a Jetson"}, "sh", 17)
    run(names)
    with pytest.raises(AssertionError, match="bundles/none"):
        run(failing)
