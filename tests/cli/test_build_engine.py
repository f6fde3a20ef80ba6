"""`vitdeploy export` and `vitdeploy build-engine`: each option has its effect, each mistake its message."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.tools.command_line import invoke
from vitdeploy.backends.tensorrt.command import rebuild_command
from vitdeploy.bundle import SCHEMA_VERSION, Bundle
from vitdeploy.cli.app import run


@pytest.mark.parametrize("command", ["export", "build-engine", "demo"])
def test_help_has_an_example(command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0 and "Example" in done.stdout and f"vitdeploy {command}" in done.stdout


def test_export_writes_a_bundle_and_names_the_next_step(one_layer_checkpoint: Path, tmp_path: Path) -> None:
    done = invoke("export", one_layer_checkpoint, "--output", tmp_path / "bundle", "--input-size", "24x40")
    assert done.exit_code == 0, done.stderr
    assert "model.onnx" in done.stdout and "Next: vitdeploy build-engine" in done.stdout
    assert Bundle.open(tmp_path / "bundle").manifest.inputs[0].shape == ("batch", 24, 40, 3)


def test_export_prints_the_manifest_as_json_and_refuses_to_replace(one_layer_checkpoint: Path, tmp_path: Path) -> None:
    done = invoke("export", one_layer_checkpoint, "-o", tmp_path / "bundle", "--json")
    assert json.loads(done.stdout)["schema_version"] == SCHEMA_VERSION
    again = invoke("export", one_layer_checkpoint, "-o", tmp_path / "bundle")
    assert again.exit_code == 1 and "already exists" in again.stderr and "Hint:" in again.stderr
    assert invoke("export", one_layer_checkpoint, "-o", tmp_path / "bundle", "--overwrite").exit_code == 0


def test_export_makes_the_size_and_the_outputs_that_are_asked_for(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output-attention", "--output-scores", "--output-features", "--merge-qkv"]
    arguments = ["export", str(tiny_checkpoint), "-o", str(tmp_path / "bundle"), "--image-size", "48x64", *flags]
    code, shown = run(arguments), capsys.readouterr()
    assert code == 0, shown.err
    manifest = Bundle.open(tmp_path / "bundle").manifest
    tokens = 1 + (48 // 8) * (64 // 8)
    assert {spec.name: spec.shape[1:] for spec in manifest.outputs} == {
        "logits": (10,),
        "scores": (10,),
        "features": (48,),
        "attention": (4, tokens, tokens),
    }
    assert manifest.model["image_size"] == [48, 64]
    assert "merge-qkv 3" in shown.out
    notes = " ".join(shown.err.split())
    for output in ("FP32 graph", "scores", "features", "attention"):
        assert re.search(rf"✓ {output} against PyTorch: \S+ ≤ 0\.0001 of", notes), notes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["./nowhere", "-o", "x"], 1, "there is no checkpoint at ./nowhere"),
        (["model"], 2, "--output"),
        (["model", "-o", "x", "--input-size", "big"], 2, "is not a size"),
        (["model", "-o", "x", "--input-size", "0x5"], 2, "has no pixels"),
    ],
)
def test_export_names_what_is_wrong(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("export", *arguments)
    assert done.exit_code == code and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_no_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    done = invoke("export", tiny_bundle, "-o", tmp_path / "x")
    assert done.exit_code == 1 and "it is a bundle" in done.stderr


def test_build_engine_makes_the_forms_from_a_recipe(tiny_bundle_copy: Path, tiny_images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'dataset = "{tiny_images}"\ncount = 10\nmethod = "minmax"\n')
    done = invoke("build-engine", tiny_bundle_copy, "--int8", "--calibration", recipe, "--target", "onnx", "--json")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["target"] == "onnx"
    assert {artifact["path"] for artifact in data["built"]} == {
        "calibration.json",
        "half.json",
        "model.int8.onnx",
        "model.int8-cpu.onnx",
    }
    cache = json.loads((tiny_bundle_copy / "calibration.json").read_text())
    assert cache["recipe"]["method"] == "minmax" and cache["images"]["count"] == 10


def test_calibration_data_wins_over_the_recipe(tiny_bundle_copy: Path, tiny_images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('dataset = "./nowhere"\ncount = 10\n')
    arguments = ["build-engine", tiny_bundle_copy, "--int8", "--calibration", recipe, "--target", "onnx"]
    assert invoke(*arguments).exit_code == 1
    assert invoke(*arguments, "--calibration-data", tiny_images).exit_code == 0


def test_force_builds_again(tiny_bundle_copy: Path) -> None:
    plain = invoke("build-engine", tiny_bundle_copy, "--fp16", "--target", "onnx")
    assert plain.exit_code == 0 and "up to date" in plain.stdout
    # Bit for bit the same file, so nothing in the bundle has changed; but it was written again.
    before = (tiny_bundle_copy / "model.fp16.onnx").stat().st_mtime_ns
    assert invoke("build-engine", tiny_bundle_copy, "--fp16", "--target", "onnx", "--force").exit_code == 0
    assert (tiny_bundle_copy / "model.fp16.onnx").stat().st_mtime_ns > before


def test_engine_options_reach_the_engine(tiny_bundle_copy: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    arguments = ["--batch", "1:2:4", "--image-size", "8x8:32x48:64x96", "--workspace", "256"]
    arguments += ["--max-aux-streams", "0", "--compute-capability", "8.6,8.9", "--target", "tensorrt-rtx", "--json"]
    done = invoke("build-engine", tiny_bundle_copy, "--fp32", *arguments)
    assert done.exit_code == 0, done.stderr
    (engine,) = json.loads(done.stdout)["built"]
    assert engine["path"] == "engines/tensorrt-rtx-fp32.engine" and engine["precision"] == "fp32"
    request = engine["built_with"]["request"]
    assert request["profiles"] == [{"batch": [1, 2, 4], "height": [8, 32, 64], "width": [8, 48, 96]}]
    assert request["workspace_mib"] == 256 and request["max_aux_streams"] == 0
    assert request["compute_capabilities"] == ["8.6", "8.9"]
    artifact = Bundle.open(tiny_bundle_copy).find(kind="engine")
    assert artifact is not None
    again = invoke(*shlex.split(rebuild_command(artifact, tiny_bundle_copy, "tensorrt-rtx"))[1:])
    assert again.exit_code == 0 and "engines/tensorrt-rtx-fp32.engine  up to date" in again.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch", "1,1:2:4", "--image-size", "48x64,8:32:64x96"],
        ["--batch", "1", "--batch", "1:2:4", "--image-size", "48x64", "--image-size", "8:32:64x96"],
    ],
)
def test_profiles_are_repeated_or_separated_by_commas(tiny_bundle_copy: Path, arguments: list[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    done = invoke("build-engine", tiny_bundle_copy, "--fp16", *arguments, "--target", "tensorrt-rtx", "--json")
    assert done.exit_code == 0, done.stderr
    (engine,) = json.loads(done.stdout)["built"]
    assert engine["built_with"]["profiles"] == [
        {"image": {"min": [1, 48, 64, 3], "opt": [1, 48, 64, 3], "max": [1, 48, 64, 3]}},
        {"image": {"min": [1, 8, 8, 3], "opt": [2, 32, 32, 3], "max": [4, 64, 96, 3]}},
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fp16", "--batch", "1,2", "--image-size", "8,16,32"], 2, "2 of --batch and 3 of --image-size"),
        (["--fp16", "--batch", "1,2,4", "--image-size", "8,16"], 2, "3 of --batch and 2 of --image-size"),
        (["--fp16", "--batch", "1,"], 2, "is not N or N:N:N"),
        (["--fp16", "--batch", "2,2", "--target", "tensorrt-rtx"], 1, "profile 2 is the same as profile 1"),
        ([], 2, "add --fp32, --fp16, --bf16, --int8, --fp8 or more"),
        (["--fp16", "--batch", "4:2:1"], 2, "minimum <= optimum"),
        (["--fp16", "--batch", "1:2"], 2, "is not N or N:N:N"),
        (["--fp16", "--image-size", "1x2x3"], 2, "is not NxN"),
        (["--fp16", "--compute-capability", "8.6,,8.9"], 2, "has an empty part"),
        (["--fp16", "--target", "toaster"], 2, "toaster"),
        (["--fp16", "--target", "tensorrt"], 1, "no tensorrt engine can be built here"),
        (["--int8", "--calibration", "none.toml"], 1, "can't read none.toml"),
        (["--int8", "--calibration-data", "./nowhere", "--target", "onnx"], 1, "nowhere"),
    ],
)
def test_build_engine_names_what_is_wrong(
    arguments: list[str], code: int, message: str, tiny_bundle_copy: Path
) -> None:
    from vitdeploy.core import machine

    if "tensorrt" in arguments and machine.gpus():
        pytest.skip("this machine has a GPU, so TensorRT engines may be possible")
    before = (tiny_bundle_copy / "manifest.json").read_bytes()
    done = invoke("build-engine", tiny_bundle_copy, *arguments)
    assert done.exit_code == code and message in done.stderr and "Traceback" not in done.stderr
    assert (tiny_bundle_copy / "manifest.json").read_bytes() == before
    Bundle.open(tiny_bundle_copy).verify()


def test_what_tensorrt_rtx_cannot_do_is_refused_before_the_build(tiny_bundle_copy: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    for option in (
        "--hardware-compatible",
        "--version-compatible",
        "--timing-cache=cache",
        "--optimization-level=1",
        "--strip-weights",
    ):
        done = invoke("build-engine", tiny_bundle_copy, "--fp16", "--target", "tensorrt-rtx", option)
        assert done.exit_code == 1 and "Hint:" in done.stderr and option.partition("=")[0] in done.stderr


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--compute-capability=8.7", "builds nothing for compute capability 8.7"),
        ("--image-size=1:32:40000", "8 images of 40000x40000 pixels have 38400000000 values"),
        ("--batch=2,2", "profile 2 is the same as profile 1"),
    ],
)
def test_what_no_engine_can_be_is_refused_before_the_calibration(
    tiny_bundle_copy: Path, option: str, says: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    arguments = ["--int8", "--calibration-data", "./nowhere", "--target", "tensorrt-rtx"]
    done = invoke("build-engine", tiny_bundle_copy, *arguments, option)
    assert done.exit_code == 1 and says in " ".join(done.stderr.split()) and "Hint:" in done.stderr
    assert "nowhere" in invoke("build-engine", tiny_bundle_copy, *arguments).stderr


def test_a_folder_that_is_no_bundle_and_a_newer_bundle(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    assert "there is no bundle" in invoke("build-engine", tmp_path / "none", "--fp16").stderr
    (tmp_path / "folder").mkdir()
    assert "is not a bundle" in invoke("build-engine", tmp_path / "folder", "--fp16").stderr
    file = tiny_bundle_copy / "manifest.json"
    file.write_text(file.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'))
    done = invoke("build-engine", tiny_bundle_copy, "--fp16")
    assert done.exit_code == 1 and "newer vitdeploy" in done.stderr
    shutil.rmtree(tiny_bundle_copy)
