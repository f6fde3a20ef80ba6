"""The Open Inference Protocol (v2) over HTTP, which the clients of NVIDIA Triton and KServe speak.

The model takes IMAGE, encoded images (BYTES, [n, 1]), and gives LABEL, SCORE and INDEX of the best classes, [n, k], as
the repository of `vitdeploy deploy triton` does: one client for both. Of several labels an image LABELS, [n, 1], are
those that it has, a list in JSON. Tensors come as binary data behind the JSON, or in it: BYTES are then base64.

    POST /v2/models/NAME/infer        also GET /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME[/ready]
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.requests import ClientDisconnect

from vitdeploy import Classifier, Prediction, __version__

MOST_IMAGES = 64  # of one request
HEAD = "inference-header-content-length"


def add_open_inference(
    app: FastAPI,
    name: str,
    classifier: Classifier,
    receive: Callable[[Request], Awaitable[bytes]],
    answer: Callable[[bytes, int], Awaitable[Prediction]],
    is_serving: Callable[[], bool],
    top_k: int = 5,
) -> None:
    """Add the protocol's paths to an application.

    Args:
        name: of the model.
        receive: the body of a request, within the service's limits.
        answer: the prediction of one encoded image and so many best classes, within the service's limits.
        is_serving: whether the service takes requests.
    """
    model = f"/v2/models/{name}"
    top_k = min(top_k, len(classifier.labels))

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "vitdeploy", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    @app.get(f"{model}/ready")
    async def ready() -> Response:
        return Response(status_code=200 if is_serving() else 503)

    @app.get(model)
    async def about() -> dict[str, Any]:
        outputs = [("LABEL", "BYTES", top_k), ("SCORE", "FP32", top_k), ("INDEX", "INT32", top_k)]
        if classifier.task.several:
            outputs.append(("LABELS", "BYTES", 1))
        return {
            "name": name,
            "versions": ["1"],
            "platform": f"vitdeploy_{classifier.backend}",
            "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [-1, 1]}],
            "outputs": [{"name": output, "datatype": kind, "shape": [-1, most]} for output, kind, most in outputs],
        }

    @app.post(f"{model}/infer")
    async def infer(request: Request) -> Response:
        try:
            body = await receive(request)
        except ClientDisconnect:  # nobody reads the answer
            return Response(status_code=499)
        asked, images = read_request(body, request.headers.get(HEAD))
        answers = [await answer(image, top_k) for image in images]
        return write_answer(name, asked, answers)


def read_request(body: bytes, head_length: str | None) -> tuple[dict[str, Any], list[bytes]]:
    """What the JSON asks for ("id", "outputs" as of `_outputs`, "binary": of all outputs), and the images.

    Raises:
        HTTPException: 400, it is not a request for this model.
    """
    size = len(body) if head_length is None else int(head_length) if head_length.isdecimal() else -1
    if not 0 <= size <= len(body):
        raise HTTPException(400, f"the header {HEAD} is {head_length}, of {len(body)} bytes")
    try:
        asked = json.loads(body[:size])
        (tensor,) = asked["inputs"]
        asked = {"id": asked.get("id"), "outputs": _outputs(asked), "binary": _is_set(asked, "binary_data_output")}
        if (tensor["name"], tensor["datatype"]) != ("IMAGE", "BYTES"):
            raise ValueError("its input is not IMAGE of BYTES")
        if "data" in tensor:
            images = [base64.b64decode(text, validate=True) for text in _flat(tensor["data"])]
        else:
            images = _unpacked(body[size:][: int(tensor["parameters"]["binary_data_size"])])
        if [len(images), 1] != list(tensor["shape"]) and [len(images)] != list(tensor["shape"]):
            raise ValueError(f"its shape is {tensor['shape']}, of {len(images)} images")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise HTTPException(400, f"not an inference request: {type(error).__name__}: {error}") from error
    if not 1 <= len(images) <= MOST_IMAGES:
        raise HTTPException(400, f"{len(images)} images: send 1 to {MOST_IMAGES} at a time")
    return asked, images


def write_answer(name: str, asked: dict[str, Any], answers: list[Prediction]) -> Response:
    """The response, with binary tensors where the request asks for them."""
    tops = [answer.top_k for answer in answers]
    scores = [score.value if score.score is None else score.score for top in tops for score in top]
    tensors: list[tuple[str, str, list[Any]]] = [
        ("LABEL", "BYTES", [score.label for top in tops for score in top]),
        ("SCORE", "FP32", scores),
        ("INDEX", "INT32", [score.index for top in tops for score in top]),
    ]
    has = [answer.to_json().get("labels") for answer in answers]
    if None not in has:
        tensors.append(("LABELS", "BYTES", [json.dumps(labels) for labels in has]))
    wanted, everything = asked["outputs"], asked["binary"]
    head: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": []}
    if asked["id"] is not None:
        head["id"] = str(asked["id"])
    raw = b""
    for output, kind, values in tensors:
        if wanted and output not in wanted:
            continue
        tensor: dict[str, Any] = {"name": output, "datatype": kind, "shape": [len(tops), len(values) // len(tops)]}
        if everything if wanted.get(output) is None else wanted[output]:
            content = _packed(kind, values)
            tensor["parameters"] = {"binary_data_size": len(content)}
            raw += content
        else:
            tensor["data"] = values
        head["outputs"].append(tensor)
    text = json.dumps(head).encode()
    if not raw:
        return Response(text, media_type="application/json")
    return Response(text + raw, media_type="application/octet-stream", headers={HEAD: str(len(text))})


def _outputs(asked: dict[str, Any]) -> dict[str, bool | None]:
    """{name: whether its data shall be binary, None: as the request says for all} of the outputs that are asked for."""
    return {output["name"]: _is_set(output, "binary_data") for output in asked.get("outputs") or []}


def _is_set(item: dict[str, Any], parameter: str) -> bool | None:
    value = (item.get("parameters") or {}).get(parameter)
    return None if value is None else bool(value)


def _flat(data: Any) -> list[Any]:
    return [item for part in data for item in (part if isinstance(part, list) else [part])]


def _unpacked(raw: bytes) -> list[bytes]:
    """BYTES as the protocol packs them: each behind its length, four bytes, little-endian."""
    found, place = [], 0
    while place < len(raw):
        size = int.from_bytes(raw[place : place + 4], "little")
        if place + 4 + size > len(raw) or len(found) > MOST_IMAGES:
            raise ValueError("the binary data do not hold what they say")
        found.append(raw[place + 4 : place + 4 + size])
        place += 4 + size
    return found


def _packed(kind: str, values: list[Any]) -> bytes:
    import numpy as np

    if kind == "BYTES":
        texts = [value.encode("utf-8", "replace") for value in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.array(values, {"FP32": "<f4", "INT32": "<i4"}[kind]).tobytes()
