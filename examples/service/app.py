"""A web service around one classifier, with a page to try it on.

    python examples/service/app.py bundles/vit

    GET  /          a page: drop an image, see its label, the scores and the latency
    POST /predict   the image file as the body -> JSON
    GET  /health    200 and what is being run, 503 while it closes
    GET  /metrics   Prometheus text
    POST /v2/models/NAME/infer   the Open Inference Protocol, for clients of Triton and KServe (`open_inference.py`)

    curl --data-binary @cat.jpg 'http://127.0.0.1:8000/predict?top_k=3'

Needs `pip install '.[cpu,examples]'`, or the extra of another backend. One process serves all requests with one
classifier: images that arrive together go through the model together. What is too large, too slow or too much is
refused with a 4xx or 503 and a message; clients that hold on to connections or uploads keep nobody out (`guard.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from vitdeploy import (
    Classifier,
    DeadlineError,
    ImageError,
    InputError,
    OutOfMemoryError,
    Prediction,
    QueueFullError,
    RunnerClosedError,
    VitdeployError,
    load,
)
from vitdeploy.data.images import FORMATS

sys.path.insert(0, str(Path(__file__).parent))
from guard import PixelBudget, Uploads, guarded_protocol
from open_inference import add_open_inference

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {  # the page loads nothing from anywhere else
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
STATUS: dict[type[VitdeployError], int] = {  # the first that fits
    ImageError: 422,
    OutOfMemoryError: 413,
    InputError: 400,
    DeadlineError: 504,
    QueueFullError: 503,
    RunnerClosedError: 503,
}


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    max_bytes: int = 10 * 2**20  # of the file
    max_pixels: int = 50_000_000  # of the image: a small file may hold many
    upload_seconds: float = 30.0
    timeout_ms: float = 10_000.0  # from the end of the upload to the answer
    max_waiting: int = 64  # requests that wait or run; the next one is refused
    max_uploading: int = 128 * 2**20  # bytes of all uploads together
    max_decoding: int = 100_000_000  # pixels of all images together, from their decoding to their answer
    head_seconds: float = 10.0  # for the head of a request; an idle connection is closed then
    max_connections: int = 512


class Metrics:
    """What Prometheus reads: a registry of this application's own."""

    def __init__(self, classifier: Classifier) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vitdeploy_requests", "Requests for answers by status code", ["status"], registry=self.registry
        )
        self.predictions = Counter(
            "vitdeploy_predictions", "Answers by their best class", ["label"], registry=self.registry
        )
        self.seconds = Histogram(
            "vitdeploy_predict_seconds",
            "From the end of the upload to the answer",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        waiting = Gauge("vitdeploy_requests_pending", "Requests that wait or run", registry=self.registry)
        waiting.set_function(lambda: classifier.pending)
        model = Gauge(
            "vitdeploy_model", "What is being run", ["backend", "precision", "sha256"], registry=self.registry
        )
        model.labels(classifier.backend, classifier.precision, classifier.describe()["sha256"]).set(1)


def create_app(classifier: Classifier, limits: Limits) -> FastAPI:
    """The application; it closes the classifier when it stops."""
    metrics = Metrics(classifier)
    serving = True

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal serving
        yield
        serving = False
        await asyncio.to_thread(classifier.close)  # answers what was accepted

    # no /docs and /redoc: those pages load their scripts from the internet
    app = FastAPI(title="vitdeploy", lifespan=lifespan, docs_url=None, redoc_url=None)
    uploads = Uploads(2 * limits.max_waiting, limits.max_uploading, limits.max_bytes, limits.upload_seconds)
    pixels = PixelBudget(limits.max_decoding)

    async def classify(image: bytes, top_k: int) -> Prediction:
        began = time.perf_counter()
        size = await asyncio.to_thread(size_of, image)
        async with pixels.take(size, limits.timeout_ms / 1000):
            left = limits.timeout_ms - 1000 * (time.perf_counter() - began)
            answer = await classifier.predict_async(image, top_k, timeout_ms=max(1e-3, left))
        metrics.seconds.observe(time.perf_counter() - began)
        for score in answer.top_k[:1] if answer.labels is None else answer.labels:
            metrics.predictions.labels(score.label.encode("utf-8", "replace").decode()).inc()
        return answer

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html", headers=PAGE_HEADERS)

    @app.post("/predict")
    async def predict(request: Request, top_k: int = Query(default=5, ge=1, le=1000)) -> Response:
        try:
            image = await uploads.receive(request)
        except ClientDisconnect:  # counted as others count it; nobody reads the answer
            return Response(status_code=499)
        began = time.perf_counter()
        answer = await classify(image, top_k)
        facts = {**answer.to_json(), "milliseconds": round(1000 * (time.perf_counter() - began), 3)}
        return Response(json.dumps(facts), media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:  # on the event loop: the threads may be busy
        shown = ("backend", "precision", "device", "sha256", "task", "classes", "threshold")
        about = {name: classifier.describe()[name] for name in shown}
        state = {"status": "ok" if serving else "closing", **about, "max_bytes": limits.max_bytes}
        return JSONResponse(state, 200 if serving else 503)

    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(classifier.describe()["bundle"]).resolve().name)
    add_open_inference(app, name, classifier, uploads.receive, classify, lambda: serving)
    show_metrics(app, metrics)
    answer_errors(app)
    return app


def show_metrics(app: FastAPI, metrics: Metrics) -> None:
    """Count what is asked, and say it at /metrics."""

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        if request.url.path == "/predict" or request.url.path.endswith("/infer"):
            metrics.requests.labels(response.status_code).inc()
        return response


def answer_errors(app: FastAPI) -> None:
    """Every error has a status and the same body: `error`, what failed, and `hint`, what to do."""

    @app.exception_handler(VitdeployError)
    async def failed(_: Request, error: VitdeployError) -> JSONResponse:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"error": error.message, "hint": error.hint}, status, headers)

    @app.exception_handler(StarletteHTTPException)  # FastAPI's own, and that of a path that is not there
    async def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail, "hint": None}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def misread(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{wrong['loc'][-1]}: {wrong['msg']}" for wrong in error.errors())
        return JSONResponse({"error": said, "hint": None}, 400)


def size_of(image: bytes) -> int:
    """Pixels of an image by its header; 0 where it can't be read: then it can't be decoded either."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            return opened.width * opened.height
    except Exception:  # whatever a damaged header causes: the decoder says what is wrong
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a bundle over HTTP.")
    parser.add_argument("bundle")
    add_options(parser)
    parser.add_argument("--max-batch", type=int, default=8, help="images of one call of the model (default: 8)")
    parser.add_argument("--max-waiting", type=int, default=Limits.max_waiting, help="requests (default: %(default)s)")
    given = parser.parse_args()
    limits = Limits(max_bytes=given.max_bytes, max_waiting=given.max_waiting)
    try:
        classifier = load(
            given.bundle,
            given.backend,
            given.precision,
            threads=given.threads,
            max_batch=given.max_batch,
            max_queue=limits.max_waiting,
            when_full="raise",
            max_pixels=limits.max_pixels,
        )
        classifier.predict(np.zeros((480, 640, 3), np.uint8))  # the first call is slow: nobody shall wait for it
    except VitdeployError as error:
        raise SystemExit(f"Error: {error.message}\nHint: {error.hint}") from error
    print(f"{classifier.precision} on {classifier.backend}: http://{given.host}:{given.port}", flush=True)
    uvicorn.Server(server_config(create_app(classifier, limits), limits, given.host, given.port)).run()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of every service of a bundle: where it listens, how the model runs, what an upload may weigh."""
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: also from other machines (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of the model")
    parser.add_argument("--max-bytes", type=int, default=Limits.max_bytes, help="of an upload (default: %(default)s)")


def server_config(app: FastAPI, limits: Limits, host: str, port: int) -> uvicorn.Config:
    """How uvicorn runs an application."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=guarded_protocol(limits.max_connections, limits.head_seconds),
        log_level="error",  # a client's broken request is no news
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
