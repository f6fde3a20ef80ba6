"""examples/service over real sockets, and its page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.browser import Browser, find_chromium
from tests.tools.running import ENVIRONMENT, EXAMPLES
from tests.tools.serving import Service, serving
from vitdeploy import load

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'vitdeploy[examples]'")

MAX_BYTES = 200_000


@pytest.fixture(scope="module")
def service(tiny_bundle: Path) -> Iterator[Service]:
    form = ("--threads", 1, "--backend", "onnxruntime", "--precision", "fp32")
    with serving("service/app.py", tiny_bundle, "--max-bytes", MAX_BYTES, *form) as running:
        yield running


def png(size: tuple[int, int] = (40, 60), seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_it_answers_as_the_library_does(service: Service, tiny_bundle: Path) -> None:
    status, answer = service.predict(png(), "?top_k=3")
    assert status == 200
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1) as classifier:
        expected = classifier.predict(png(), 3).to_json()
    assert answer["milliseconds"] > 0
    assert (answer["label"], answer["index"]) == (expected["label"], expected["index"])
    assert [s["label"] for s in answer["top_k"]] == [s["label"] for s in expected["top_k"]]
    assert [s["score"] for s in answer["top_k"]] == pytest.approx([s["score"] for s in expected["top_k"]], abs=1e-5)


def test_many_at_once(service: Service) -> None:
    alone = [service.predict(png(seed=seed))[1] for seed in range(6)]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda number: service.predict(png(seed=number % 6)), range(96)))
    assert {status for status, _ in answers} == {200}
    for number, (_, answer) in enumerate(answers):
        assert answer["label"] == alone[number % 6]["label"]
        assert answer["score"] == pytest.approx(alone[number % 6]["score"], abs=1e-5)


def bomb() -> bytes:
    """A PNG of 3 kB that would be 100 million pixels."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG", optimize=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"oops", 422, "not an image that can be read"),
        (png()[:1000], 422, "damaged or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "SVG drawing"),
        (bomb(), 422, "too large"),
        (b"", 400, "empty"),
        (b"x" * (MAX_BYTES + 1), 413, f"larger than {MAX_BYTES} bytes"),
    ],
    ids=["text", "truncated", "postscript", "svg", "bomb", "nothing", "large"],
)
def test_what_is_no_image_is_refused_with_a_message(service: Service, body: bytes, status: int, said: str) -> None:
    before = service.metric(f'vitdeploy_requests_total{{status="{status}"}}')
    found, answer = service.predict(body)
    assert found == status
    assert said in answer["error"]
    assert service.metric(f'vitdeploy_requests_total{{status="{status}"}}') == before + 1
    assert service.predict(png())[0] == 200


def test_a_body_of_no_announced_length_is_cut_off(service: Service) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(40):
            sent += 10_000
            yield b"x" * 10_000

    try:
        status, answer = service.predict(chunks(), **{"Transfer-Encoding": "chunked"})
        assert status == 413 and "larger" in answer["error"]
    except (BrokenPipeError, ConnectionResetError):  # refused while it was still being sent
        assert sent > MAX_BYTES
    assert service.predict(png())[0] == 200


def test_forms_and_wrong_options(service: Service) -> None:
    status, answer = service.predict(b"--x", **{"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 415 and "--data-binary" in answer["error"]
    for query in ("?top_k=0", "?top_k=many", "?top_k=100000"):
        status, answer = service.predict(png(), query)
        assert status == 400 and "top_k" in answer["error"]
    assert service.ask("GET", "/predict")[0] == 405
    assert service.ask("GET", "/docs")[0] == 404


def test_health(service: Service, tiny_bundle: Path) -> None:
    status, _, body = service.ask("GET", "/health")
    health = json.loads(body)
    assert (status, health["status"], health["backend"], health["precision"]) == (200, "ok", "onnxruntime", "fp32")
    assert health["max_bytes"] == MAX_BYTES and health["classes"] == 10
    assert str(tiny_bundle.parent) not in body.decode()  # paths are nobody's business


def test_metrics(service: Service) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    label = service.predict(png())[1]["label"]
    before = service.metric("vitdeploy_predict_seconds_count")
    answers = service.metric(f'vitdeploy_predictions_total{{label="{label}"}}')
    for _ in range(3):
        service.predict(png())
    assert service.metric("vitdeploy_predict_seconds_count") == before + 3
    assert service.metric(f'vitdeploy_predictions_total{{label="{label}"}}') == answers + 3
    assert service.metric("vitdeploy_requests_pending") == 0
    _, headers, body = service.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"vitdeploy_requests", "vitdeploy_predictions", "vitdeploy_predict_seconds", "vitdeploy_model"} <= names


def test_the_page_is_one_file_that_loads_nothing_else(service: Service) -> None:
    status, headers, body = service.ask("GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(rb"""(?:src|href)=["'](?!data:)""", body) and b"http" not in body.replace(b"http-equiv", b"")


def test_a_bundle_that_is_not_there() -> None:
    command = [sys.executable, str(EXAMPLES / "service" / "app.py"), "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 1
    assert "no bundle" in done.stderr and "Hint:" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def shown(browser: Browser, selector: str) -> str:
    value: str = browser.evaluate(f"document.querySelector({selector!r}).innerText")
    return value


def visible(selector: str) -> str:
    return f"document.querySelector({selector!r}).checkVisibility()"


def test_dropping_an_image_on_the_page(service: Service, browser: Browser, tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    image.write_bytes(png())
    expected = service.predict(png())[1]
    browser.resize(1100, 700)
    browser.open(f"http://127.0.0.1:{service.port}/")
    browser.wait("document.querySelector('#model').textContent.includes('classes')")
    assert shown(browser, "#model") == "FP32 on onnxruntime, 10 classes"
    assert not browser.evaluate(visible("#answer"))
    browser.drop("#drop", image)
    browser.wait(visible("#answer"))
    assert shown(browser, "#label") == expected["label"]
    assert shown(browser, "#sure") == f"{100 * expected['score']:.1f} % sure"
    lines = browser.evaluate(
        "[...document.querySelectorAll('#scores li')].map(line => [...line.children].map(c => c.innerText))"
    )
    assert lines == [[score["label"], f"{100 * score['score']:.1f} %"] for score in expected["top_k"]]
    assert re.fullmatch(r"[\d.]+ ms on the server: decoding, waiting and the model", shown(browser, "#latency"))
    browser.wait("document.querySelector('#preview').naturalWidth === 60")
    wrong = tmp_path / "notes.txt"
    wrong.write_text("no image")
    browser.drop("#drop", wrong)
    browser.wait(visible("#error"))
    assert "not an image that can be read" in shown(browser, "#error")
    assert not browser.evaluate(visible("#answer"))
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * (MAX_BYTES + 1))
    browser.choose("#file", large)
    browser.wait(f"document.querySelector('#error').innerText.includes('{MAX_BYTES}')")
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    outside = [url for url in asked if not url.startswith((f"http://127.0.0.1:{service.port}/", "blob:", "data:"))]
    assert outside == []
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]


def test_the_page_on_a_phone(service: Service, browser: Browser, tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    Image.new("RGB", (1200, 300), (200, 40, 40)).save(image)
    browser.resize(360, 740, mobile=True, dark=True)
    browser.open(f"http://127.0.0.1:{service.port}/")
    browser.choose("#file", image)
    browser.wait(visible("#answer"))
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out
    box = "document.querySelector({!r}).getBoundingClientRect()"
    assert browser.evaluate(f"{box.format('#result')}.top >= {box.format('#drop')}.bottom")  # one below the other


def infer(
    service: Service, name: str, head: dict[str, Any], raw: bytes | None = None
) -> tuple[int, dict[str, Any], bytes]:
    """Status, JSON and binary data of an answer of the Open Inference Protocol."""
    text = json.dumps(head).encode()
    headers = {} if raw is None else {"Inference-Header-Content-Length": str(len(text))}
    status, found, answer = service.ask("POST", f"/v2/models/{name}/infer", text + (raw or b""), headers)
    size = int(found.get("inference-header-content-length", len(answer)))
    return status, json.loads(answer[:size]), answer[size:]


def test_it_speaks_the_open_inference_protocol(service: Service, tiny_bundle: Path) -> None:
    name, images = tiny_bundle.name, [png((40, 30)), png((32, 32))]
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1) as classifier:
        expected = [answer.top_k for answer in classifier.predict(images, 5)]
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{name}", f"/v2/models/{name}/ready"):
        assert service.ask("GET", path)[0] == 200, path
    packed = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [2, 1]}
    binary = {**tensor, "parameters": {"binary_data_size": len(packed)}}
    status, answer, _ = infer(service, name, {"id": "7", "inputs": [binary]}, packed)
    assert status == 200 and answer["id"] == "7"
    label, score, index = answer["outputs"]
    assert label["shape"] == [2, 5] and label["data"] == [s.label for top in expected for s in top]
    assert index["data"] == [s.index for top in expected for s in top]
    np.testing.assert_allclose(score["data"], [s.score for top in expected for s in top], rtol=1e-6)
    inline = {**tensor, "data": [base64.b64encode(image).decode() for image in images]}
    asked = {"inputs": [inline], "outputs": [{"name": "INDEX", "parameters": {"binary_data": True}}]}
    status, answer, raw = infer(service, name, asked)
    assert status == 200 and [output["name"] for output in answer["outputs"]] == ["INDEX"]
    assert np.frombuffer(raw, "<i4").tolist() == index["data"]


IMAGE = {"name": "IMAGE", "datatype": "BYTES", "shape": [1, 1]}
HI = base64.b64encode(b"hi").decode()
MISREAD: list[tuple[Any, bytes | None, int]] = [
    ([], None, 400),
    ({"inputs": []}, None, 400),
    ({"inputs": [{**IMAGE, "data": ["?"]}]}, None, 400),
    ({"inputs": [{**IMAGE, "datatype": "FP32", "data": [1.0]}]}, None, 400),
    ({"inputs": [{**IMAGE, "shape": [2, 1], "data": [HI]}]}, None, 400),
    ({"inputs": [{**IMAGE, "data": [HI]}], "outputs": [1]}, None, 400),
    ({"inputs": [{**IMAGE, "parameters": {"binary_data_size": 9}}]}, b"\xff\xff\xff\xffabcde", 400),
    ({"inputs": [{**IMAGE, "data": [HI]}]}, None, 422),  # it is one, of what is no image
]


@pytest.mark.parametrize(("head", "raw", "status"), MISREAD)
def test_requests_of_the_protocol_that_say_something_else_are_refused(
    head: Any, raw: bytes | None, status: int, service: Service, tiny_bundle: Path
) -> None:
    found, answer, _ = infer(service, tiny_bundle.name, head, raw)
    assert found == status and answer["error"]


def test_the_client_of_triton_gets_the_same_answers(service: Service, tiny_bundle: Path) -> None:
    client_module = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    image = png((40, 30))
    with client_module.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(tiny_bundle.name)
        tensor = client_module.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], object))
        answer = client.infer(tiny_bundle.name, [tensor])
    assert answer.as_numpy("LABEL")[0, 0].decode() == service.predict(image)[1]["label"]
