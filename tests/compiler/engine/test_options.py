"""Options that can't be fulfilled are refused with the next step; what is built on which machine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tools.engines import FORMS, IDENTITY, Recorder, fixed, graph, needs_rtx, square
from tests.tools.plain_bundle import MANIFEST
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine, check_options, choose_target
from vitdeploy.core import machine
from vitdeploy.core.errors import EngineError, InputError
from vitdeploy.core.specs import ResizeSpec


@needs_rtx
def test_sizes_are_needed_and_checked_before_the_build(tmp_path: Path) -> None:
    path = graph(IDENTITY, tmp_path / "any.onnx")
    with pytest.raises(InputError, match="images of any height"):
        build_engine(path, tmp_path / "e", EngineOptions())
    huge = fixed(1, 224, 40_000)
    with pytest.raises(InputError, match="8 images of 40000x40000 pixels have 38400000000 values"):
        build_engine(path, tmp_path / "e", EngineOptions(profiles=(Profile(height=huge, width=huge),)))


@needs_rtx
def test_options_are_checked_against_a_bundle_before_anything_is_made(
    tiny_bundle: Path, options: EngineOptions
) -> None:
    image = Bundle.open(tiny_bundle).manifest.inputs[0]
    check_options(options, image)
    huge = fixed(1, 224, 40_000)
    with pytest.raises(InputError, match="38400000000 values"):
        check_options(EngineOptions(profiles=(Profile(height=huge, width=huge),)), image)
    with pytest.raises(InputError, match="a height of 32 only, not 32 to 64"):
        check_options(
            EngineOptions(profiles=(Profile(height=fixed(32, 32, 64)),)), replace(image, shape=("batch", 32, 32, 3))
        )
    with pytest.raises(InputError, match=r"nothing for compute capability 8\.7"):
        check_options(replace(options, compute_capabilities=("8.7",)), image)


@needs_rtx
def test_a_compute_capability_it_does_not_know(tmp_path: Path) -> None:
    path = graph(IDENTITY, tmp_path / "any.onnx")
    with pytest.raises(InputError, match=r"nothing for compute capability 8\.7") as raised:
        build_engine(path, tmp_path / "e", square(8, compute_capabilities=("8.7",)))
    assert "8.6" in str(raised.value.hint) and "Jetson" in str(raised.value.hint)


@needs_rtx
@pytest.mark.parametrize(
    ("form", "capabilities"), [("fp32", ("7.5",)), ("fp16", ("7.5",)), ("int8", ("7.5", "8.6")), ("int8", ("7.5",))]
)
def test_turing_has_no_fp32_products(
    tiny_bundle: Path,
    tmp_path: Path,
    options: EngineOptions,
    recorder: Recorder,
    form: str,
    capabilities: tuple[str, ...],
) -> None:
    turing = replace(options, compute_capabilities=capabilities)
    with pytest.raises(EngineError, match=r"7\.5 \(Turing\).*resizing the images is FP32 in every form") as raised:
        build_engine(tiny_bundle / FORMS[form], tmp_path / "e", turing)
    assert "leave 7.5 out of --compute-capability" in str(raised.value.hint)
    assert max(recorder.completed) < 100 and not (tmp_path / "e").exists()


@needs_rtx
def test_a_workspace_that_is_too_small_is_named(tiny_bundle: Path, tmp_path: Path, options: EngineOptions) -> None:
    with pytest.raises(EngineError) as raised:
        build_engine(tiny_bundle / "model.onnx", tmp_path / "e", replace(options, workspace_mib=1))
    assert "--workspace" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"hardware_compatible": True}, "--hardware-compatible: every TensorRT-RTX engine already runs on all GPUs"),
        ({"version_compatible": True}, "--version-compatible: TensorRT-RTX has no lean runtime"),
        ({"timing_cache": Path("c")}, "--timing-cache"),
        ({"optimization_level": 0}, "--optimization-level"),
        (
            {"flavour": "tensorrt", "compute_capabilities": ("8.6",)},
            "--compute-capability: TensorRT builds for the GPU",
        ),
        ({"flavour": "tensorrt", "optimization_level": 6}, "optimization_level must be from 0 to 5, not 6"),
        ({"workspace_mib": 0}, "workspace_mib must be at least 1, not 0"),
        ({"max_aux_streams": -1}, "max_aux_streams must be 0 or more, not -1"),
        ({"compute_capabilities": ("ampere",)}, "'ampere' is not a compute capability"),
        ({"compute_capabilities": ("8.6", "8.6")}, "compute_capabilities has a value twice"),
        ({"strip_weights": True}, "--strip-weights: TensorRT-RTX makes refittable engines on a GPU only"),
        ({"profiles": ()}, "at least one profile"),
        ({"flavour": "rtx"}, "no TensorRT flavour 'rtx'"),
    ],
)
def test_refused_before_anything_is_read(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as raised:
        EngineOptions(**wrong)
    assert reason in raised.value.message
    assert raised.value.hint


def test_the_other_flavour_takes_what_one_refuses() -> None:
    options = EngineOptions(
        flavour="tensorrt",
        hardware_compatible=True,
        optimization_level=5,
        timing_cache=Path("a/b"),
        strip_weights=True,
    )
    assert options.to_json() == {
        "strip_weights": True,
        "hardware_compatible": True,
        "optimization_level": 5,
        "timing_cache": "b",
    }


def test_sizes_come_from_the_bundle_and_given_ones_stay(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    two = EngineOptions(profiles=(Profile(height=fixed(4, 5, 6)), Profile(batch=fixed(2))))
    filled = two.for_manifest(manifest, "tensorrt")
    assert filled.flavour == "tensorrt"
    assert filled.profiles == (
        Profile(None, fixed(4, 5, 6), fixed(1, 32, 1920)),
        Profile(fixed(2), fixed(1, 32, 1080), fixed(1, 32, 1920)),
    )


def test_choose_target_by_what_is_here(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    gpu = machine.Gpu("Orin", "8.7", 8 << 30, "540.3", "12.6", True)

    def here(modules: set[str], gpus: tuple[machine.Gpu, ...], processor: str) -> str:
        monkeypatch.setattr(machine, "has_module", lambda name: name in modules)
        monkeypatch.setattr(machine, "gpus", lambda: gpus)
        monkeypatch.setattr("platform.machine", lambda: processor)
        return choose_target("auto")

    assert here({"tensorrt", "tensorrt_rtx"}, (gpu,), "x86_64") == "tensorrt"
    assert here({"tensorrt", "tensorrt_rtx"}, (), "x86_64") == "tensorrt-rtx"
    for capability in ("7.5", "8.6", "8.9", "12.0", "12.1"):
        assert here({"tensorrt_rtx"}, (replace(gpu, compute_capability=capability),), "AMD64") == "tensorrt-rtx"
    assert recorder.notes == []
    assert here({"tensorrt_rtx"}, (gpu,), "aarch64") == "onnx"
    assert "[gpu]" in recorder.notes[0] and "the Orin here has 8.7" in recorder.notes[0]
    assert here(set(), (), "x86_64") == "onnx"
    assert "[rtx]" in recorder.notes[1]
    for number, capability in enumerate(("8.0", "8.7", "9.0", "10.0", "11.0"), start=2):  # none of TensorRT-RTX's
        other = replace(gpu, name="server's", compute_capability=capability)
        assert here({"tensorrt_rtx"}, (other,), "x86_64") == "onnx"
        assert f"the server's here has {capability}" in recorder.notes[number]
    assert choose_target("tensorrt-rtx") == "tensorrt-rtx"  # asked for by name it is built, for other machines
    assert "for other machines" in recorder.notes[-1] and "has 11.0" in recorder.notes[-1]
    assert here(set(), (), "x86_64") == "onnx"
    assert choose_target("onnx") == "onnx"
    with pytest.raises(EngineError, match="no NVIDIA GPU here") as raised:
        choose_target("tensorrt")
    assert "--target tensorrt-rtx" in str(raised.value.hint)
    with pytest.raises(EngineError, match="tensorrt-rtx is not installed"):
        choose_target("tensorrt-rtx")
    with pytest.raises(InputError, match="'cuda' is not known"):
        choose_target("cuda")


def test_a_flavour_that_can_not_be_built_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    if machine.gpus():
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="no NVIDIA GPU here"):
        build_engine(tiny_bundle / "model.onnx", tmp_path / "e", EngineOptions(flavour="tensorrt"))
    assert list(tmp_path.iterdir()) == []


def test_the_options_load_no_heavy_package() -> None:
    """The command line reads them before anything is built."""
    code = (
        "import sys, vitdeploy.compiler.engine; print({'tensorrt', 'tensorrt_rtx', 'onnx', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("resize", "crop", "tuned"),
    [
        (ResizeSpec("bicubic", shortest_edge=256), (224, 192), (224, 192)),
        (ResizeSpec("bicubic", height=48, width=64), None, (48, 64)),
        (ResizeSpec("bicubic", shortest_edge=40, longest_edge=90), None, (40, 40)),
        (ResizeSpec("bicubic", height=1500, width=2500), None, (1500, 2500)),
        (None, None, (224, 224)),
    ],
    ids=["crop", "both sides", "shortest edge", "larger than a camera's", "any size"],
)
def test_an_engine_is_tuned_for_the_size_that_the_model_works_on(
    resize: ResizeSpec | None, crop: tuple[int, int] | None, tuned: tuple[int, int]
) -> None:
    """Not for what lies between resizing and the crop; and it takes every picture up to full HD, larger if need be."""
    preprocess = replace(MANIFEST.preprocess, resize=resize, crop=crop)
    (profile,) = EngineOptions().for_manifest(replace(MANIFEST, preprocess=preprocess)).profiles
    height, width = tuned
    assert profile.height == fixed(1, height, max(height, 1080)) and profile.width == fixed(1, width, max(width, 1920))
