"""The Hub's door: a cached copy is used without a network, and each way to fail says so soon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from vitdeploy.models.hub import looks_like_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.data import load_dataset
from vitdeploy.core.errors import VitdeployError
for argument in sys.argv[1:]:
    kind, name, revision = argument.split(":")
    try:
        if kind == "model":
            checkpoint = load_checkpoint(name, revision=revision or None)
            print(checkpoint.source, checkpoint.revision, checkpoint.is_local, len(checkpoint.labels))
        else:
            print(len(load_dataset(name, "train")))
    except VitdeployError as error:
        print(f"{type(error).__name__}: {error.message} | {error.hint}")
"""


def load(home: Path, endpoint: str, *wanted: str) -> list[str]:
    """What a fresh process says of each KIND:NAME:REVISION."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *wanted],
        capture_output=True,
        text=True,
        timeout=90,
        env=environment,
        check=False,
    )
    assert done.stderr == "" and done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def not_found() -> Iterator[str]:
    """A Hub that knows no repository, as the real one says it."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("X-Error-Message", "Repository not found")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_cached_copy_is_used_where_nobody_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--vit"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    nobody = "http://127.0.0.1:9"
    names = ("model:someone/vit:", f"model:someone/vit:{COMMIT}", "model:someone/other:")
    *found, missing = load(tmp_path, nobody, *names)
    assert found == [f"someone/vit {COMMIT} False 10"] * 2
    assert missing.startswith("ModelError") and "can't be reached" in missing and "local folder" in missing


def test_a_hub_that_does_not_know_the_name(tmp_path: Path, not_found: str) -> None:
    model, dataset = load(tmp_path, not_found, "model:someone/vit:", "dataset:someone/photos:")
    assert model.startswith("ModelError") and "Hub has no such model" in model and "spelling" in model
    assert dataset.startswith("DatasetError") and "someone/photos" in dataset and "--dataset PATH" in dataset


def test_what_can_only_be_a_path() -> None:
    paths = ["/a", "./a", "../a", "~/a", "a/b/c", "a\\b", "a/", "", "."]
    assert all(map(looks_like_path, paths))
    assert not any(map(looks_like_path, ["vit", "google/vit-base"]))
