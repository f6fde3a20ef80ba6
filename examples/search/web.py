"""Search by an image on a page: what `search.py` indexed, behind a web service.

    python examples/search/web.py photos.index bundles/vectors

    GET  /              a page: drop an image, or click one that was found, and see those most like it
    POST /search        the image file as the body -> JSON
    GET  /like/NUMBER   the images most like one of the index -> JSON
    GET  /images/NUMBER one of them, as a small JPEG
    GET  /health        200 and what is being asked by what

    curl --data-binary @cat.jpg 'http://127.0.0.1:8000/search?count=5'

Needs `pip install '.[cpu,search,examples]'`. Limits, errors and the guard against clients that hold on are those of
`../service`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from vitdeploy import VitdeployError, load
from vitdeploy.data.images import decode

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).parent))
from app import PAGE_HEADERS, Limits, add_options, answer_errors, server_config, size_of
from guard import BUSY, PixelBudget, Uploads
from search import Hit, Index

PAGE = Path(__file__).with_name("page.html")
POLICY = "Content-Security-Policy"
THUMBNAIL = 256  # pixels of the longer side


def create_app(index: Index, limits: Limits) -> FastAPI:
    """The application; the model of the index is the caller's to close."""
    app = FastAPI(title="vitdeploy search", docs_url=None, redoc_url=None)  # these load their scripts from elsewhere
    uploads = Uploads(2 * limits.max_waiting, limits.max_uploading, limits.max_bytes, limits.upload_seconds)
    pixels = PixelBudget(limits.max_decoding)
    waiting = 0

    def answer(hits: list[Hit], began: float) -> Response:
        facts = {"hits": [asdict(hit) for hit in hits], "milliseconds": round(1000 * (time.perf_counter() - began), 3)}
        return Response(json.dumps(facts), media_type="application/json")

    def existing(number: int) -> int:
        if not 0 <= number < len(index.images):
            raise HTTPException(404, f"there is no image {number}: the index has {len(index.images)}")
        return number

    @app.get("/")
    def page() -> FileResponse:
        headers = {**PAGE_HEADERS, POLICY: PAGE_HEADERS[POLICY].replace("img-src", "img-src 'self'")}
        return FileResponse(PAGE, media_type="text/html", headers=headers)

    @app.post("/search")
    async def search(request: Request, count: int = Query(default=12, ge=1, le=100)) -> Response:
        nonlocal waiting
        try:
            image = await uploads.receive(request)
        except ClientDisconnect:  # nobody reads the answer
            return Response(status_code=499)
        began = time.perf_counter()
        if waiting >= limits.max_waiting:
            raise HTTPException(503, "too many searches at a time: try again soon", headers=BUSY)
        waiting += 1
        try:
            size = await asyncio.to_thread(size_of, image)
            async with pixels.take(size, limits.timeout_ms / 1000):
                return answer(await asyncio.to_thread(index.like, image, count), began)
        finally:
            waiting -= 1

    @app.get("/like/{number}")
    def like(number: int, count: int = Query(default=12, ge=1, le=100)) -> Response:
        began = time.perf_counter()
        return answer(index.like_number(existing(number), count), began)

    @app.get("/images/{number}")
    def image(number: int) -> Response:  # by its number: a path from outside is never opened
        small = Image.fromarray(decode(index.path(existing(number))))
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        small.save(file, "JPEG")
        return Response(file.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    @app.get("/health")
    async def health() -> JSONResponse:
        facts: dict[str, Any] = {"status": "ok", "images": len(index.images), "note": index.note}
        made, asks = (f"{maker.precision} on {maker.backend}" for maker in (index.made_by, index.asked_by))
        return JSONResponse({**facts, "made_by": made, "asked_by": asks, "max_bytes": limits.max_bytes})

    answer_errors(app)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Search an index by an image, on a page.")
    parser.add_argument("index", type=Path)
    parser.add_argument("bundle")
    add_options(parser)
    given = parser.parse_args()
    limits = Limits(max_bytes=given.max_bytes)
    try:
        form = {"threads": given.threads, "max_pixels": limits.max_pixels}
        with load(given.bundle, given.backend, given.precision, **form) as model:
            index = Index(given.index, model)
            if index.note is not None:
                print(f"Note: {index.note}.", file=sys.stderr)
            print(f"{len(index.images)} images: http://{given.host}:{given.port}", flush=True)
            uvicorn.Server(server_config(create_app(index, limits), limits, given.host, given.port)).run()
    except VitdeployError as error:
        raise SystemExit(f"Error: {error.message}\nHint: {error.hint}") from error


if __name__ == "__main__":
    main()
