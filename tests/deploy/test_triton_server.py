"""The repository in a real tritonserver, by HTTP and gRPC; `make test-triton` makes its environment."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.small_bundle import write_small_bundle
from tests.tools.triton_server import TritonServer, environment, run_there, triton_server
from vitdeploy.deploy.triton.alive import is_alive
from vitdeploy.deploy.triton.repository import triton
from vitdeploy.deploy.triton.settings import TritonSettings

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(environment() is None, reason="no environment with nvidia-pytriton: make test-triton"),
]
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
SIZES = [(32, 32), (40, 50), (31, 97), (200, 130), (64, 64), (1, 1)]
ANSWERS = """
import json, sys
import vitdeploy
with vitdeploy.load(sys.argv[1], precision="fp32", device="cpu") as classifier:
    found = [classifier.predict(path, 10) for path in sys.argv[2:]]
print(json.dumps([[[s.label, s.score, s.index] for s in answer.top_k] for answer in found]))
"""
VECTORS = """
import json, sys
import vitdeploy
with vitdeploy.load(sys.argv[1], precision="fp32", device="cpu") as embedder:
    print(json.dumps(embedder.embed(sys.argv[2:]).tolist()))
"""
IN_PYTHON = '''
import os, sys
sys.path[:0] = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if path not in sys.path]
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What the backend for ONNX Runtime does, which this server has not."""

    def initialize(self, args):
        self.session = onnxruntime.InferenceSession(Path(args["model_repository"], "1", "model.onnx"))

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(output.name, value)
                    for output, value in zip(self.session.get_outputs(), self.session.run(None, {"image": image}))
                ]
            )
            for request in requests
            for image in [pb_utils.get_input_tensor_by_name(request, "image").as_numpy()]
        ]
'''


@pytest.fixture(scope="module")
def venv() -> Path:
    found = environment()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draw, paths = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for index in range(24):
        height, width = SIZES[index % len(SIZES)]
        paths.append(folder / f"{index}.png")
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def expected(venv: Path, tiny_bundle: Path, images: list[Path]) -> list[list[tuple[bytes, np.float32, int]]]:
    """What `load` answers in the environment of the server, with its versions of all packages."""
    answers = json.loads(run_there(venv, ANSWERS, tiny_bundle, *images))
    return [[(label.encode(), np.float32(score), index) for label, score, index in top] for top in answers]


def write(bundle: Path, repository: Path, via: str, code: str = IN_PYTHON) -> list[str]:
    """A repository, whose model of pixels runs in Python; the models to load."""
    triton(bundle, repository, TritonSettings(name="vit", precision="fp32", via=via, top_k=10, max_batch=8))
    if via == "load":
        return ["vit"]
    config = repository / "vit_pixels" / "config.pbtxt"
    config.write_text(
        config.read_text().replace('"onnxruntime"', '"python"').replace('platform: "onnxruntime_onnx"\n', "")
    )
    (repository / "vit_pixels" / "1" / "model.py").write_text(code)
    return ["vit_pixels", "vit"]


@pytest.fixture(scope="module", params=["load", "pixels"])
def server(
    request: pytest.FixtureRequest, venv: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    scratch = tmp_path_factory.mktemp("triton")
    models = write(tiny_bundle, scratch / "models", request.param)
    with triton_server(venv, scratch / "models", scratch, *models) as running:
        yield running


def asked(server: TritonServer, *images: bytes) -> Any:
    """The answer by gRPC."""
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        tensor = grpc.InferInput("IMAGE", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image] for image in images], object))
        return client.infer("vit", [tensor])


def ask(server: TritonServer, *images: bytes) -> list[list[tuple[bytes, np.float32, int]]]:
    """Label, score and index of each image's best classes, by gRPC."""
    answer = asked(server, *images)
    columns = [answer.as_numpy(name) for name in ("LABEL", "SCORE", "INDEX")]
    return [list(zip(*(column[row] for column in columns), strict=True)) for row in range(len(images))]


def test_answers_are_those_of_load_bit_for_bit(server: TritonServer, images: list[Path], expected: Any) -> None:
    for path, answer in zip(images, expected, strict=True):
        assert ask(server, path.read_bytes()) == [answer]
    several = images[:8]
    assert ask(server, *(path.read_bytes() for path in several)) == expected[:8]


def test_many_callers_at_once_get_their_own_answers(server: TritonServer, images: list[Path], expected: Any) -> None:
    work = [(path.read_bytes(), answer) for path, answer in zip(images, expected, strict=True)] * 8
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda item: ask(server, item[0]), work))
    for (answer,), (_, wanted) in zip(found, work, strict=True):
        assert [(label, index) for label, _, index in answer] == [(label, index) for label, _, index in wanted]
        np.testing.assert_allclose([s for _, s, _ in answer], [s for _, s, _ in wanted], rtol=1e-5)


def test_it_answers_over_http(server: TritonServer, images: list[Path], expected: Any) -> None:
    image = images[1].read_bytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "IMAGE",
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": 4 + len(image)},
                }
            ]
        }
    ).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.http}/v2/models/vit/infer",
        head + len(image).to_bytes(4, "little") + image,
        {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    assert [label.encode() for label in outputs["LABEL"]] == [label for label, *_ in expected[1]]


@pytest.mark.parametrize("via", ["load", "pixels"])
def test_an_embedding_answers_with_the_vectors_of_load(
    venv: Path, images: list[Path], tmp_path: Path, via: str
) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", embedding=True, engine=False)
    models, some = write(bundle, tmp_path / "models", via), images[:8]
    expected = np.array(json.loads(run_there(venv, VECTORS, bundle, *some)), np.float32)
    with triton_server(venv, tmp_path / "models", tmp_path, *models) as server:
        answer = asked(server, *(path.read_bytes() for path in some))
    np.testing.assert_array_equal(answer.as_numpy("EMBEDDING"), expected)


def test_a_damaged_image_is_an_error_of_its_own_request(
    server: TritonServer, images: list[Path], expected: Any
) -> None:
    good = images[0].read_bytes()
    damaged = [b"", b"nothing", good[: len(good) // 2]]

    def attempt(image: bytes) -> Any:
        try:
            return ask(server, image)
        except grpc.InferenceServerException as error:
            return error

    work = [good, *damaged] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(attempt, work))
    for image, answer in zip(work, answers, strict=True):
        if image == good:
            assert answer[0][0][0] == expected[0][0][0]
        else:
            assert isinstance(answer, grpc.InferenceServerException) and "image" in str(answer)
    with pytest.raises(grpc.InferenceServerException, match="image 1 of the request"):
        ask(server, good, b"nothing")


def test_a_killed_process_of_the_model_is_an_error_until_the_model_is_loaded_again(
    server: TritonServer, images: list[Path], expected: Any
) -> None:
    """Triton does not start it again by itself; requests get an error at once, and loading it again cures it."""
    image = images[0].read_bytes()
    assert ask(server, image) == [expected[0]]
    assert is_alive("vit", server.http)
    stubs = server.stubs()
    assert stubs
    for process in stubs:
        os.kill(process, signal.SIGKILL)
    with pytest.raises(grpc.InferenceServerException, match="is not healthy"):
        for _ in range(100):  # one that was under way may still be answered
            ask(server, image)
    assert server.is_ready("vit") and not is_alive("vit", server.http), "only a real request shows it"
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        for name in (name for name in ("vit_pixels", "vit") if server.is_ready(name)):
            client.unload_model(name)
            until = time.monotonic() + 120
            while server.is_ready(name):
                assert time.monotonic() < until
                time.sleep(0.1)
            client.load_model(name)
    assert ask(server, image) == [expected[0]]


def test_a_model_of_pixels_that_fails_the_self_test_answers_nothing(
    venv: Path, tiny_bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    models = write(
        tiny_bundle, tmp_path / "models", "pixels", IN_PYTHON.replace('{"image": image}', '{"image": 255 - image}')
    )
    with triton_server(venv, tmp_path / "models", tmp_path, *models) as running:
        for _ in range(3):
            with pytest.raises(grpc.InferenceServerException, match="fails the self-test"):
                ask(running, images[0].read_bytes())


def test_another_bundle_than_the_configurations_is_not_served(venv: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    triton(tiny_bundle, tmp_path / "models", TritonSettings(name="vit"))
    manifest = tmp_path / "models" / "vit" / "1" / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with (
        pytest.raises(RuntimeError, match="is not the bundle that config.pbtxt was written for"),
        triton_server(venv, tmp_path / "models", tmp_path, "vit"),
    ):
        pass


def test_a_damaged_file_of_the_bundle_is_not_served(venv: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    triton(tiny_bundle, tmp_path / "models", TritonSettings(name="vit"))
    (tmp_path / "models" / "vit" / "1" / "bundle" / "model.onnx").write_bytes(b"other")
    with (
        pytest.raises(RuntimeError, match="is not the file that the manifest describes"),
        triton_server(venv, tmp_path / "models", tmp_path, "vit"),
    ):
        pass


@pytest.mark.parametrize("wrong", [False, True])
def test_the_server_reads_the_configuration_of_the_pixels(
    wrong: bool, venv: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """It has no such backend, which it says after it has read the file; of a field that there is not it says so."""
    triton(tiny_bundle, tmp_path / "models", TritonSettings(name="vit"))
    config = tmp_path / "models" / "vit_pixels" / "config.pbtxt"
    if wrong:
        config.write_text(config.read_text().replace("max_batch_size", "most_images"))
    message = "most_images" if wrong else "unable to find backend library for backend 'onnxruntime'"
    with pytest.raises(RuntimeError, match=message), triton_server(venv, tmp_path / "models", tmp_path, "vit_pixels"):
        pass
