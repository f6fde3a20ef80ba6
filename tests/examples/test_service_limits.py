"""examples/service without sockets: slow uploads, a full queue, a deadline, a classifier that closes."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.running import load_service
from vitdeploy import load

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'vitdeploy[examples]'")


@pytest.fixture(scope="module")
def service() -> Any:
    return load_service()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


async def ask(app: Any, chunks: list[bytes], pause: float = 0.0) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
    """POST /predict with a body in chunks: status, answer, headers."""
    left, sent = list(chunks), []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b""}
    scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "root_path": "", "asgi": {"version": "3.0"}}
    scope |= {"server": ("127.0.0.1", 80), "client": ("127.0.0.1", 9)}
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body), dict(sent[0]["headers"])


def test_a_slow_upload(service: Any, tiny_bundle: Path) -> None:
    with load(tiny_bundle, "onnxruntime", "fp32", threads=1) as classifier:
        app = service.create_app(classifier, service.Limits(upload_seconds=0.3))
        status, answer, _ = asyncio.run(ask(app, [b"x"] * 50, pause=0.1))
        assert status == 408 and "0.3 seconds" in answer["error"]
        assert asyncio.run(ask(app, [png()]))[0] == 200


def test_a_full_queue(service: Any, tiny_bundle: Path) -> None:
    async def crowd(app: Any) -> list[Any]:
        return await asyncio.gather(*(ask(app, [png()]) for _ in range(30)))

    with load(tiny_bundle, "onnxruntime", "fp32", threads=1, max_queue=1, when_full="raise") as classifier:
        app = service.create_app(classifier, service.Limits())
        answers = asyncio.run(crowd(app))
        assert {status for status, *_ in answers} == {200, 503}
        refused = next(answer for answer in answers if answer[0] == 503)
        assert "under way" in refused[1]["error"] and refused[2][b"retry-after"] == b"1"
        assert asyncio.run(ask(app, [png()]))[0] == 200


def test_a_deadline_and_a_closed_classifier(service: Any, tiny_bundle: Path) -> None:
    classifier = load(tiny_bundle, "onnxruntime", "fp32", threads=1)
    app = service.create_app(classifier, service.Limits(timeout_ms=1e-6))
    status, answer, _ = asyncio.run(ask(app, [png()]))
    assert status == 504 and "deadline" in answer["error"]
    classifier.close()
    status, answer, _ = asyncio.run(ask(app, [png()]))
    assert status == 503 and "closed" in answer["error"]
