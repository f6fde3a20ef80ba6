"""Ctrl-C at any line of `deploy`, and a kill at any change of the disk, leave the old folder, the new one, or none.

Each way is walked once to learn its lines. What a broken one leaves beside the output does not keep the next one from
its work.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from tests.tools.any_line import lines_of, raised_at
from tests.tools.files import snapshot
from tests.tools.killed import KILLED, in_a_child, kill_at
from tests.tools.web import stand_in_package
from vitdeploy.core import storage
from vitdeploy.deploy.kubernetes import folder as kubernetes_folder
from vitdeploy.deploy.kubernetes.settings import KubernetesSettings
from vitdeploy.deploy.triton import repository
from vitdeploy.deploy.web import site

Write = Callable[[Path, bool], object]  # (output, overwrite)


@pytest.fixture(params=[pytest.param("kubernetes", marks=pytest.mark.full), "web"])
def way(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Write, list[ModuleType]]:
    """What writes an output, and the modules that it runs in; what is for Kubernetes holds what is for Triton."""
    if request.param == "web":
        package = stand_in_package(tmp_path_factory.mktemp("npm"))

        def web(output: Path, overwrite: bool) -> object:
            return site.web(tiny_bundle, output, onnxruntime_web=package, precision="int8", overwrite=overwrite)

        return web, [site, storage]
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    settings = KubernetesSettings(image="registry.example.com/vit:1", name="vit")
    return (
        lambda output, overwrite: kubernetes_folder.kubernetes(tiny_bundle, output, settings, overwrite=overwrite),
        [kubernetes_folder, repository, storage],
    )


def states(write: Write, folder: Path) -> Iterator[tuple[Path, bool, list[dict[str, bytes]]]]:
    """Nothing was there, then an older output: the output, whether it is replaced, and what may be there afterwards."""
    whole = folder / "whole"
    write(whole, False)
    new = snapshot(whole)
    yield folder / "none" / "output", False, [{}, new]
    older = folder / "older" / "output"
    shutil.copytree(whole, older)
    changed = next(path for path in sorted(older.rglob("*")) if path.name in ("config.pbtxt", "site.json"))
    changed.write_bytes(changed.read_bytes() + b"\n")
    yield older, True, [snapshot(older), new]


def check(
    write: Write, output: Path, overwrite: bool, allowed: list[dict[str, bytes]], where: object, *, ended: bool = True
) -> None:
    """The output is whole, and the next command writes it and takes away what the broken one left; where this process
    still has its lock, it is taken away after its end (`ended`)."""
    assert snapshot(output) in allowed, where
    left = beside(output)
    assert all(name.startswith(".output.partial-") for name in left), where
    if left or snapshot(output) != allowed[0]:
        write(output, overwrite or output.exists())
        assert snapshot(output) == allowed[1], where
        assert not ended or not set(beside(output)) & set(left), where
        back(output, allowed[0])


def beside(output: Path) -> list[str]:
    return [path.name for path in output.parent.iterdir() if path != output] if output.parent.exists() else []


def back(output: Path, files: dict[str, bytes]) -> None:
    """Put the state from before in place again."""
    shutil.rmtree(output.parent)
    for name, content in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(content)


def test_ctrl_c_at_any_line_leaves_a_whole_output(way: tuple[Write, list[ModuleType]], tmp_path: Path) -> None:
    write, modules = way
    for output, overwrite, allowed in states(write, tmp_path):
        run = partial(write, output, overwrite)
        lines = lines_of(run, modules)
        assert len(lines) > 50
        back(output, allowed[0])
        for line in lines:
            raised_at(line, run, modules, KeyboardInterrupt())
            check(write, output, overwrite, allowed, line, ended=line[0] != storage.__file__)


@pytest.mark.full
def test_a_kill_at_any_change_of_the_disk_leaves_a_whole_output(
    way: tuple[Write, list[ModuleType]], tmp_path: Path
) -> None:
    write, _ = way
    for output, overwrite, allowed in states(write, tmp_path):
        step, ended = 0, KILLED
        while ended == KILLED:

            def work(step: int = step, output: Path = output, overwrite: bool = overwrite) -> None:
                kill_at(step)
                write(output, overwrite)

            ended = in_a_child(work)
            check(write, output, overwrite, allowed, step)
            step += 1
        assert ended == 0 and step > 10
