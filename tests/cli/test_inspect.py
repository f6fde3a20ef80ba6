"""Inspecting a real bundle and its graphs: what is said is what is there, and what is wrong is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.tiny import LABELS
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.measurements import SCHEMA_VERSION
from vitdeploy.core.errors import BundleError
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec
from vitdeploy.core.storage import sha256
from vitdeploy.inspection.bundle import describe_preprocessing, inspect

Cli = Callable[..., Any]
ENGINE = "engines/tensorrt-rtx-int8.engine"
LAYERS, HIDDEN, MLP = 3, 48, 96


def data_of(cli: Cli, path: Path, exit_code: int = 0) -> Any:
    outcome = cli("inspect", path, "--json")
    assert outcome.exit_code == exit_code, outcome.stderr
    return json.loads(outcome.stdout)


def words_of(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The output for people, which must fit in 80 columns, without its line breaks."""
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli("inspect", path)
    assert outcome.exit_code == 0, outcome.stderr
    assert [line for line in outcome.stdout.splitlines() if len(line) > 80] == []
    return " ".join(outcome.stdout.split())


def add_engine(path: Path) -> None:
    """A file in the place of an engine, described as the builder does; a file's content is never looked at here."""
    from vitdeploy.compiler.engine import EngineInfo

    bundle = Bundle.open(path)
    source = bundle.find(kind="onnx", precision="int8", target="tensorrt")
    assert source is not None
    shapes = {"min": [1, 1, 1, 3], "opt": [1, 32, 32, 3], "max": [8, 1080, 1920, 3]}
    info = EngineInfo(
        flavour="tensorrt-rtx",
        version="1.7.1",
        precision="int8",
        profiles=({"image": shapes},),
        flags={"optimization_level": 4},
        build_seconds=3.25,
        source_onnx_sha256=source.sha256,
        size_bytes=9,
        layers={},
        products=20,
        int8_products=("q", "k"),
        compute_capabilities=("8.6", "12.0+"),
    )
    with bundle.edit() as editor:
        editor.path_for(ENGINE).write_bytes(b"no engine")
        editor.add(
            ENGINE,
            kind="engine",
            precision="int8",
            target="tensorrt-rtx",
            built_from=source.sha256,
            built_with=info.to_json(),
        )


def test_a_bundle_in_json(cli: Cli, tiny_bundle: Path) -> None:
    data = data_of(cli, tiny_bundle)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert data["schema_version"] == 1 and data["type"] == "bundle" and data["sound"] is True
    assert data["labels"] == list(LABELS)
    assert [item["path"] for item in data["artifacts"]] == [item["path"] for item in manifest["artifacts"]]
    for item in data["artifacts"]:
        assert item["state"] == "ok" and item["stale"] is None
        assert item["sha256"] == sha256(tiny_bundle / item["path"])
        assert item["size_bytes"] == (tiny_bundle / item["path"]).stat().st_size
    assert data["calibration"]["recipe"]["count"] == data["calibration"]["images"]["count"] == 24
    assert {check["name"] for check in data["checks"]} >= {"FP32 graph against PyTorch", "FP16 graph against FP32"}
    assert all(check["value"] <= check["tolerance"] for check in data["checks"])
    assert data["bench"] is None


def test_a_bundle_in_words(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = words_of(cli, tiny_bundle, monkeypatch)
    assert "10: zero, one, two" in text
    assert "resize to 32x32 (height x width), bicubic as Pillow does" in text
    assert "mean 0.485 0.456 0.406 and deviation 0.229 0.224 0.225" in text
    assert "image: uint8 (batch, height, width, 3)" in text and "logits: float32 (batch, 10)" in text
    assert re.search(r"24 images of images\d+ \(train\), method mse, smoothing, bias correction", text)
    assert "✓ FP32 graph against PyTorch" in text
    assert "out of date" not in text and "CHANGED" not in text


def test_the_manifest_stands_for_its_bundle(tiny_bundle: Path) -> None:
    assert inspect(tiny_bundle / "manifest.json").to_json() == inspect(tiny_bundle).to_json()


@pytest.mark.parametrize(("name", "int8"), [("model.onnx", False), ("model.int8.onnx", True)])
def test_a_graph_is_counted(cli: Cli, tiny_bundle: Path, name: str, int8: bool) -> None:
    import onnx

    data = data_of(cli, tiny_bundle / name)
    graph, model = data["graph"], onnx.load(tiny_bundle / name)
    assert data["type"] == "onnx" and data["artifact"]["state"] == "ok"
    assert data["size_bytes"] == (tiny_bundle / name).stat().st_size
    assert graph["opsets"]["ai.onnx"] == model.opset_import[0].version == 20
    assert graph["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["batch", "height", "width", 3]}]
    assert graph["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    # In every layer: Q, K, V, the attention's output, FC1 and FC2.
    linear = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * MLP)
    if int8:
        assert graph["int8_products"] == 6 * LAYERS < graph["products"]
        assert graph["operators"]["QuantizeLinear"] == graph["quantize_nodes"] > 0
        assert graph["operators"]["DequantizeLinear"] == graph["dequantize_nodes"] >= 6 * LAYERS
        assert linear <= graph["weights"]["int8"]["elements"] == graph["weights"]["int8"]["size_bytes"] < 1.1 * linear
        assert graph["weights"]["float16"]["size_bytes"] == 2 * graph["weights"]["float16"]["elements"]
    else:
        assert graph["quantize_nodes"] == graph["dequantize_nodes"] == graph["int8_products"] == 0
        sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
        stored = sum(sizes.values())
        front = sum(size for name, size in sizes.items() if name.startswith("preprocess/"))
        parameters = Bundle.open(tiny_bundle).manifest.model["parameters"]
        assert stored <= graph["parameters"]
        # Equal vectors of this untrained model are stored once (2 %); the constants of reshapes come on top.
        assert 0.97 * parameters <= graph["parameters"] - front < parameters + 5000
        assert set(graph["weights"]) <= {"float32", "int64", "bool"}


def test_int8_keeps_the_parameters_of_the_model(tiny_bundle: Path) -> None:
    """Scales and zero points, 3 % here, are no parameters. Equal vectors of this untrained model are stored once until
    INT8 makes them differ, which adds 2 %; counting both would leave the tolerance."""
    single, int8 = (inspect(tiny_bundle / name).to_json()["graph"] for name in ("model.onnx", "model.int8-cpu.onnx"))
    assert abs(single["parameters"] - int8["parameters"]) <= 0.03 * single["parameters"]


def test_a_graph_in_words(cli: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = words_of(cli, tiny_bundle / "model.int8.onnx", monkeypatch)
    assert "ai.onnx 20" in text and "QuantizeLinear" in text and "matches its SHA-256" in text
    assert f"{6 * LAYERS} of " in text


def test_a_graph_outside_a_bundle(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_bundle / "model.onnx", tmp_path / "alone.onnx")
    data = data_of(cli, tmp_path / "alone.onnx")
    assert data["artifact"] is None and data["graph"]["operators"]["LayerNormalization"] == 2 * LAYERS + 1


def test_an_engine_speaks_through_its_manifest(
    cli: Cli, tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engine(tiny_bundle_copy)
    data = data_of(cli, tiny_bundle_copy / ENGINE)
    assert data["type"] == "engine" and data["graph"] is None and data["artifact"]["state"] == "ok"
    asked = {"precision": "int8", "products": 20, "int8_products": ["q", "k"], "layers": {}}
    assert data["engine"]["asked"] == asked
    assert data["engine"]["found"] is None and data["engine"]["reason"]
    assert data["artifact"]["built_with"]["compute_capabilities"] == ["8.6", "12.0+"]
    text = words_of(cli, tiny_bundle_copy / ENGINE, monkeypatch)
    assert "TensorRT-RTX 1.7.1, for compute capability 8.6, 12.0+" in text
    assert "image 1x1x1x3 to 8x1080x1920x3, fastest at 1x32x32x3" in text
    assert "optimization level 4, built in 3.2 s" in text
    assert "2 of 20 products on INT8 factors" in text and "not read: " in text
    assert "TensorRT-RTX 1.7.1" in words_of(cli, tiny_bundle_copy, monkeypatch)


@pytest.mark.parametrize("json_too", [False, True])
def test_a_changed_file_is_shown_and_exits_1(cli: Cli, tiny_bundle_copy: Path, json_too: bool) -> None:
    path = tiny_bundle_copy / "model.fp16.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, the size stays
    path.write_bytes(content)
    outcome = cli("inspect", tiny_bundle_copy, *(["--json"] if json_too else []))
    assert outcome.exit_code == 1
    assert "model.fp16.onnx is changed" in outcome.stderr and "Hint:" in outcome.stderr
    if json_too:
        data = json.loads(outcome.stdout)
        assert data["sound"] is False
        states = {item["path"]: item["state"] for item in data["artifacts"]}
        assert states.pop("model.fp16.onnx") == "changed" and set(states.values()) == {"ok"}
    else:
        (line,) = (line for line in outcome.stdout.splitlines() if "CHANGED" in line)
        assert line.split()[0] == "model.fp16.onnx"
    assert cli("inspect", tiny_bundle_copy / "model.onnx").exit_code == 0  # that one is sound


def test_a_missing_file_is_shown_and_exits_1(cli: Cli, tiny_bundle_copy: Path) -> None:
    (tiny_bundle_copy / "model.int8.onnx").unlink()
    outcome = cli("inspect", tiny_bundle_copy)
    assert outcome.exit_code == 1 and "MISSING" in outcome.stdout and "model.int8.onnx is missing" in outcome.stderr
    with pytest.raises(BundleError):
        inspect(tiny_bundle_copy).require_sound()


def test_what_was_made_from_an_older_graph_is_out_of_date(cli: Cli, tiny_bundle_copy: Path) -> None:
    add_engine(tiny_bundle_copy)
    bundle = Bundle.open(tiny_bundle_copy)
    with bundle.edit() as editor:
        content = editor.read_path("model.onnx").read_bytes()
        editor.path_for("model.onnx").write_bytes(content + b"\x42\x00")  # an empty opset entry: another file
        editor.add("model.onnx", kind="onnx", precision="fp32")
    stale = {item["path"]: item["stale"] for item in data_of(cli, tiny_bundle_copy)["artifacts"]}
    assert stale["model.onnx"] is None
    for name in ("model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx", "calibration.json"):
        assert "another model.onnx" in stale[name]
    assert "model.int8.onnx" in stale[ENGINE]
    text = " ".join(cli("inspect", tiny_bundle_copy).stdout.split())
    assert f"vitdeploy build-engine {tiny_bundle_copy} --fp16 --int8 --calibration-data DATASET" in text


def test_another_calibration_makes_int8_out_of_date(cli: Cli, tiny_bundle_copy: Path) -> None:
    add_engine(tiny_bundle_copy)
    bundle = Bundle.open(tiny_bundle_copy)
    old = bundle.find(kind="calibration")
    assert old is not None
    with bundle.edit() as editor:
        editor.path_for("calibration.json").write_bytes(editor.read_path("calibration.json").read_bytes() + b"\n")
        editor.add("calibration.json", kind="calibration", built_from=old.built_from, built_with=old.built_with)
    stale = {item["path"] for item in data_of(cli, tiny_bundle_copy)["artifacts"] if item["stale"]}
    assert stale == {"model.int8.onnx", "model.int8-cpu.onnx", ENGINE}


def bench_report(bundle: Bundle) -> dict[str, Any]:
    """As much of a benchmark report as is read here."""
    graph = bundle.find(kind="onnx", precision="fp32")
    assert graph is not None
    row = {"key": "fp32/openvino", "backend": "openvino", "status": "ok"}
    return {
        "schema_version": SCHEMA_VERSION,
        "created": "2026-11-01T10:00:00+00:00",
        "settings": {"max_drop_points": 1.0},
        "machine": {},
        "recommendation": {"key": "fp32/openvino", "sentence": "FP32 on OpenVINO is the fastest form."},
        "dataset": {"count": 360},
        "rows": [{**row, "artifact": {"path": graph.path, "sha256": graph.sha256}}],
    }


@pytest.mark.parametrize(
    ("change", "current", "words"),
    [
        (lambda text: text, True, "FP32 on OpenVINO is the fastest form. (360 images, 2026-11-01"),
        (lambda text: text.replace('"sha256": "', '"sha256": "0'), False, "has changed since: measure again"),
        (lambda text: text[:50], None, "can't be read"),
        (lambda text: "[]", None, "can't be read"),
    ],
)
def test_the_last_benchmark(
    cli: Cli, tiny_bundle_copy: Path, change: Callable[[str], str], current: bool | None, words: str
) -> None:
    bundle = Bundle.open(tiny_bundle_copy)
    with bundle.edit() as editor:
        editor.path_for("bench/report.json").write_text(change(json.dumps(bench_report(bundle))))
        editor.add("bench/report.json", kind="bench", built_with={"created": "2026-11-01T10:00:00+00:00"})
    bench = data_of(cli, tiny_bundle_copy)["bench"]
    assert bench["path"] == "bench/report.json" and bench.get("current") is current
    assert words in " ".join(cli("inspect", tiny_bundle_copy).stdout.split())


def test_a_damaged_manifest(cli: Cli, tiny_bundle_copy: Path) -> None:
    path = tiny_bundle_copy / "manifest.json"
    path.write_text(path.read_text()[:200])
    outcome = cli("inspect", tiny_bundle_copy)
    assert outcome.exit_code == 1 and "is damaged" in outcome.stderr and outcome.stdout == ""


def test_what_can_not_be_inspected_says_what_to_do(
    cli: Cli, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "lonely.engine").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes((tiny_bundle / "model.onnx").read_bytes()[:5000])
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "bundle").symlink_to(tiny_bundle)
    for path, said, hint in (
        (tmp_path / "none", "there is nothing at", "bundle"),
        (tmp_path, "is not a bundle", "vitdeploy export"),
        (tmp_path / "outer", "is not a bundle", f"vitdeploy inspect {tmp_path / 'outer' / 'bundle'}"),
        (tiny_checkpoint, "is a checkpoint", f"vitdeploy export {tiny_checkpoint}"),
        (tiny_checkpoint / "model.safetensors", "part of a checkpoint", f"vitdeploy export {tiny_checkpoint}"),
        (tmp_path / "lonely.engine", "outside a bundle", "build-engine"),
        (tmp_path / "notes.txt", "neither an ONNX file nor", "bundle"),
        (tmp_path / "empty.onnx", "holds no graph", "export"),
        (tmp_path / "cut.onnx", "can't be read as ONNX", "export"),
    ):
        outcome = cli("inspect", path)
        assert outcome.exit_code == 1 and outcome.stdout == "", path
        assert said in outcome.stderr and hint in outcome.stderr.partition("Hint:")[2], (path, outcome.stderr)


def test_a_bundle_needs_no_package_of_the_extras(tiny_bundle: Path) -> None:
    """With onnx and the rest made impossible to import, bundles are inspected and graphs say what is missing."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'torch', 'onnxruntime', 'transformers', 'numpy']));"
        "from vitdeploy.cli.app import run; sys.exit(run(['--quiet', 'inspect', sys.argv[1]]))"
    )

    def call(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})

    assert call(tiny_bundle).returncode == 0
    graph = call(tiny_bundle / "model.onnx")
    assert graph.returncode == 1 and "pip install" in graph.stderr and "[build]" not in graph.stderr


@pytest.mark.parametrize(
    ("spec", "lines"),
    [
        (PreprocessSpec(None, None, None, None, None), ["none: the pixels go in as they are"]),
        (
            PreprocessSpec(ResizeSpec("bilinear", shortest_edge=256), (224, 192), 2 / 255, None, None),
            [
                "resize so that the shorter side is 256, bilinear as Pillow does",
                "cut 224x192 (height x width) from the centre",
                "scale 0..255 to 0..2",
            ],
        ),
        (
            PreprocessSpec(
                ResizeSpec("lanczos", shortest_edge=256, longest_edge=400), None, None, (0.5, 0.5, 0.5), None
            ),
            [
                "resize so that the shorter side is 256 and the longer at most 400, lanczos as Pillow does",
                "normalise by mean 0.5 0.5 0.5 (red green blue)",
            ],
        ),
        (
            PreprocessSpec(None, None, 1 / 255, None, None, channels="bgr"),
            ["scale 0..255 to 0..1", "put the channels in the order blue green red"],
        ),
    ],
)
def test_preprocessing_in_words(spec: PreprocessSpec, lines: list[str]) -> None:
    assert describe_preprocessing(spec) == lines


def test_help_has_an_example(cli: Cli) -> None:
    outcome = cli("inspect", "--help")
    assert outcome.exit_code == 0 and "vitdeploy inspect bundles/vit/model.int8.onnx" in outcome.stdout
    assert cli("inspect").exit_code == 2
