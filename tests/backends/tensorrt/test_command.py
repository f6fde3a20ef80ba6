"""The command that a refusal ends with builds the engine that was asked for, here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.tools.command_names import parsed
from vitdeploy.backends.tensorrt import compatibility
from vitdeploy.backends.tensorrt.command import rebuild_command
from vitdeploy.backends.tensorrt.options import options
from vitdeploy.bundle import Artifact
from vitdeploy.cli import build_engine
from vitdeploy.compiler.build import _request
from vitdeploy.compiler.engine import EngineOptions, Profile
from vitdeploy.core import machine
from vitdeploy.core.errors import EngineError
from vitdeploy.core.specs import ShapeRange


def engine(options: EngineOptions, **built: Any) -> Artifact:
    return Artifact(
        f"engines/{options.flavour}-int8.engine", kind="engine", sha256="0" * 64, size_bytes=1, precision="int8",
        target=options.flavour, built_with={"request": _request(options), **built},
    )  # fmt: skip


def asked(command: str, flavour: str) -> EngineOptions:
    """The options that `vitdeploy build-engine` reads out of a command line."""
    name, verb, *words = shlex.split(command)
    assert (name, verb) == ("vitdeploy", "build-engine")
    context = parsed("build-engine", words)
    assert context.params["int8"] and context.params["target"] == flavour
    given = context.params
    profiles = build_engine._profiles(given["batch"], given["image_size"])
    return EngineOptions(flavour, profiles, **{name: given[name] for name in options()})


def sides(*sizes: int) -> ShapeRange:
    return ShapeRange(*(sizes * 3 if len(sizes) == 1 else sizes))


CAMERA, UPLOADS = Profile(sides(1), sides(480), sides(640)), Profile(sides(1, 8, 32), sides(1, 224, 1080), sides(1920))


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(),
        EngineOptions(profiles=(CAMERA, UPLOADS), workspace_mib=64, max_aux_streams=0),
        EngineOptions(compute_capabilities=("8.6", "12.0")),
        EngineOptions(
            flavour="tensorrt",
            profiles=(UPLOADS,),
            optimization_level=0,
            hardware_compatible=True,
            version_compatible=True,
            strip_weights=True,
            timing_cache=Path("timing.cache"),
        ),
    ],
)
def test_the_command_asks_for_the_same(options: EngineOptions) -> None:
    command = rebuild_command(engine(options), Path("a bundle"), options.flavour)
    assert asked(command, options.flavour) == options


def test_a_batch_that_was_left_out_beside_one_that_was_given() -> None:
    options = EngineOptions(profiles=(Profile(None, sides(8), sides(8)), CAMERA))
    command = rebuild_command(engine(options), None, options.flavour)
    assert "--batch 1:1:8,1 --image-size 8x8,480x640" in command and "BUNDLE" in command


@pytest.mark.parametrize(
    ("here", "flavour", "capabilities"),
    [
        ("8.9", "tensorrt-rtx", ("8.6", "8.9")),
        ("12.1", "tensorrt-rtx", ()),  # TensorRT-RTX names none of these, and means it where none is named
        ("9.0", "tensorrt", ()),  # no such kernels in TensorRT-RTX
        ("7.5", "tensorrt", ()),
    ],
)
def test_for_another_gpu(here: str, flavour: str, capabilities: tuple[str, ...]) -> None:
    options = EngineOptions(profiles=(CAMERA,), compute_capabilities=("8.6",))
    gpu = machine.Gpu("NVIDIA Other", here, 1 << 33, "580.1", "13.0", False)
    with pytest.raises(
        EngineError, match=f"for compute capability 8.6, and the NVIDIA Other here has {here}"
    ) as caught:
        compatibility.check_fit(engine(options, compute_capabilities=["8.6"]), gpu, Path("bundles/vit"))
    hint = str(caught.value.hint)
    assert "vitdeploy build-engine bundles/vit --int8" in hint
    wanted = asked(hint[hint.index("vitdeploy") :], flavour)
    assert wanted.profiles == (CAMERA,) and wanted.compute_capabilities == capabilities
