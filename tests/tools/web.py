"""Sites of `deploy web`, run in Node and in Chromium; `make test-web` installs what that takes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.deploy.web.serve import server

__all__ = ["FOLDER", "encoded", "onnxruntime_web", "predict_in_node", "served", "stand_in_package"]

FOLDER = Path(__file__).parents[1] / "web"


def onnxruntime_web() -> Path | None:
    """The npm package that VITDEPLOY_ONNXRUNTIME_WEB names; None where it names none."""
    value = os.environ.get("VITDEPLOY_ONNXRUNTIME_WEB")
    return Path(value).absolute() if value else None


def encoded(image: np.ndarray) -> dict[str, Any]:
    """uint8 (height, width, 3 or 4) for JavaScript."""
    data = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()
    return {"data": data, "width": image.shape[1], "height": image.shape[0]}


def predict_in_node(
    site: Path,
    images: Sequence[np.ndarray],
    options: dict[str, Any] | None = None,
    *,
    top_k: int = 5,
    own: bool = False,
) -> Any:
    """What tests/web/predict.mjs answers; `own`: by the npm package itself."""
    node = shutil.which("node")
    assert node is not None
    request = {"options": options or {}, "own": own, "topK": top_k, "images": [encoded(image) for image in images]}
    done = subprocess.run(
        [node, FOLDER / "predict.mjs", site], input=json.dumps(request), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a site, by the server that comes with it."""
    with server(site) as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.server_address[1]}/"
        finally:
            opened.shutdown()
            thread.join()


def stand_in_package(folder: Path) -> Path:
    """A folder with the names of onnxruntime-web's files, for tests in which nothing runs it."""
    from vitdeploy.deploy.web.onnxruntime_web import FILES, NAME, TESTED

    package = folder / "node_modules" / NAME
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"name": NAME, "version": TESTED}))
    for name in FILES:
        (package / "dist" / name).write_text(f"// {name}")
    return package
