"""The model repository that is written for NVIDIA Triton, read back with Triton's own messages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.small_bundle import write_small_bundle
from tests.tools.tiny import LABELS
from vitdeploy import BundleError, InputError, OutputExistsError
from vitdeploy.bundle import Bundle
from vitdeploy.core.storage import sha256
from vitdeploy.deploy.triton.repository import triton
from vitdeploy.deploy.triton.settings import TritonSettings

messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
text_format = pytest.importorskip("google.protobuf.text_format")


def config(repository: Path, model: str) -> Any:
    """Of a model; a field that there is not fails to parse."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), messages.ModelConfig())


@pytest.fixture
def with_engine(tiny_bundle_copy: Path) -> Path:
    """A bundle that lists a TensorRT engine of two profiles; its content is no matter to what is written."""
    bundle = Bundle.open(tiny_bundle_copy)
    profiles = [
        {"image": {"min": [1, 32, 32, 3], "opt": [4, 48, 64, 3], "max": [8, 64, 64, 3]}},
        {"image": {"min": [1, 64, 64, 3], "opt": [1, 64, 96, 3], "max": [2, 96, 96, 3]}},
    ]
    with bundle.edit() as editor:
        editor.path_for("engines/e.engine").write_bytes(b"plan")
        editor.add(
            "engines/e.engine", kind="engine", precision="fp16", target="tensorrt", built_with={"profiles": profiles}
        )
    return tiny_bundle_copy


def test_the_front_takes_encoded_images_and_carries_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    written = triton(tiny_bundle, tmp_path / "models", TritonSettings(name="vit", max_batch=16, instances=2, top_k=3))
    front = config(tmp_path / "models", "vit")
    assert (front.name, front.backend, front.max_batch_size) == ("vit", "python", 16)
    assert [(i.name, i.data_type, list(i.dims)) for i in front.input] == [("IMAGE", messages.TYPE_STRING, [1])]
    assert [(o.name, list(o.dims)) for o in front.output] == [("LABEL", [3]), ("SCORE", [3]), ("INDEX", [3])]
    assert front.instance_group[0].count == 2 and front.dynamic_batching.max_queue_delay_microseconds > 0
    assert front.parameters["manifest_sha256"].string_value == sha256(tiny_bundle / "manifest.json")
    copied = Bundle.open(tmp_path / "models" / "vit" / "1" / "bundle")
    copied.verify()
    assert copied.manifest == Bundle.open(tiny_bundle).manifest
    assert set(written.files) >= {"vit/1/model.py", "vit_pixels/1/model.onnx", "vit_pixels/config.pbtxt"}


@pytest.mark.parametrize(
    ("device", "precision", "file", "kind"),
    [
        ("cpu", "auto", "model.int8-cpu.onnx", messages.ModelInstanceGroup.KIND_CPU),
        ("cpu", "fp32", "model.onnx", messages.ModelInstanceGroup.KIND_CPU),
        ("gpu", "auto", "model.fp16.onnx", messages.ModelInstanceGroup.KIND_GPU),
    ],
)
def test_the_pixels_are_served_by_the_form_for_the_device(
    device: str, precision: str, file: str, kind: int, tiny_bundle: Path, tmp_path: Path
) -> None:
    triton(tiny_bundle, tmp_path / "models", TritonSettings(name="vit", device=device, precision=precision))
    pixels = config(tmp_path / "models", "vit_pixels")
    assert (pixels.platform, pixels.backend, pixels.max_batch_size) == ("onnxruntime_onnx", "onnxruntime", 32)
    assert [(i.name, i.data_type, list(i.dims)) for i in pixels.input] == [("image", messages.TYPE_UINT8, [-1, -1, 3])]
    assert [(o.name, o.data_type, list(o.dims)) for o in pixels.output] == [("logits", messages.TYPE_FP32, [10])]
    assert pixels.instance_group[0].kind == kind
    served = (tmp_path / "models" / "vit_pixels" / "1" / "model.onnx").read_bytes()
    assert served == (tiny_bundle / file).read_bytes()
    assert [(warm.batch_size, list(warm.inputs["image"].dims)) for warm in pixels.model_warmup] == [
        (1, [32, 32, 3]),
        (32, [32, 32, 3]),
    ]


def test_an_engine_is_served_in_its_own_ranges(with_engine: Path, tmp_path: Path) -> None:
    triton(with_engine, tmp_path / "models", TritonSettings(name="vit", device="gpu"))
    pixels = config(tmp_path / "models", "vit_pixels")
    assert (pixels.platform, pixels.backend, pixels.max_batch_size) == ("tensorrt_plan", "tensorrt", 8)
    assert list(pixels.input[0].dims) == [-1, -1, 3]
    assert list(pixels.model_warmup[0].inputs["image"].dims) == [48, 64, 3]
    assert (tmp_path / "models" / "vit_pixels" / "1" / "model.plan").read_bytes() == b"plan"


def test_an_embedding_is_served_as_vectors(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", embedding=True)
    triton(bundle, tmp_path / "models", TritonSettings(name="vectors"))
    front, pixels = (config(tmp_path / "models", name) for name in ("vectors", "vectors_pixels"))
    (vector,) = front.output
    assert (vector.name, vector.data_type, list(vector.dims)) == ("EMBEDDING", messages.TYPE_FP32, [len(LABELS)])
    assert [(output.name, list(output.dims)) for output in pixels.output] == [("embedding", [len(LABELS)])]


def test_what_can_not_be_served_is_refused(tiny_bundle: Path, tiny_bundle_copy: Path, tmp_path: Path) -> None:
    output = tmp_path / "models"
    for wrong, message in (
        ({"name": "a/b"}, "can't be the name"),
        ({"max_batch": 0}, "max_batch must be at least 1, not 0"),
        ({"instances": 0}, "instances must be at least 1, not 0"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"via": "mail"}, "no route 'mail'"),
    ):
        with pytest.raises(InputError, match=message):
            triton(tiny_bundle, output, TritonSettings(**wrong))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="no bf16 form that Triton can run on a CPU") as error:
        triton(tiny_bundle, output, TritonSettings(precision="bf16"))
    assert "build-engine" in str(error.value.hint)
    (tiny_bundle_copy / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="is not the file"):
        triton(tiny_bundle_copy, output)
    assert not output.exists()


def test_only_a_repository_of_ours_is_replaced(tiny_bundle: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    output = tmp_path / "models"
    arguments = ("deploy", "triton", tiny_bundle, "--output", output, "--name", "vit")
    assert cli(*arguments).exit_code == 0
    again = cli(*arguments)
    assert again.exit_code == 1 and "already exists" in again.stderr
    shown = cli(*arguments, "--overwrite", "--json")
    assert shown.exit_code == 0 and json.loads(shown.stdout)["models"] == ["vit", "vit_pixels"]
    shutil.copytree(output / "vit", output / "other")  # a second model beside ours, without its pixels: not ours
    with pytest.raises(OutputExistsError, match="holds other files too"):
        triton(tiny_bundle, output, TritonSettings(name="vit"), overwrite=True)
    shutil.rmtree(output / "other")
    (output / "vit" / "1" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds other files too"):
        triton(tiny_bundle, output, TritonSettings(name="vit"), overwrite=True)
    assert (output / "vit" / "1" / "notes.txt").read_text() == "mine"
