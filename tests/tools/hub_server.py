"""A server on the loopback address that speaks the Hugging Face Hub's protocol as far as its client needs it here:
making a repository, committing files (small ones in the commit, large ones by LFS), listing and fetching them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["Hub", "hub_server"]

_LARGE = 4096  # bytes from which on a file goes by LFS


class Hub:
    """Repositories and their commits.

    Attributes:
        url: of the server.
        commits: repository -> its commits, oldest first: (hash, {path: content}).
        private: names of the repositories that were made private.
        broken: files that arrive by half, the connection being closed then.
        requests: what was asked: (method, path).
    """

    def __init__(self) -> None:
        self.url = ""
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.broken: set[str] = set()
        self.read_only = False
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        """A commit with exactly these files; its hash."""
        commits = self.commits.setdefault(repository, [])
        sha = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits.append((sha, dict(files)))
        return sha

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits[repository]
        if revision == "main":
            return commits[-1]
        return next((commit for commit in commits if commit[0] == revision), None)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running server; point the client at it by HF_ENDPOINT."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


class _Refusal(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, path))
        try:
            for method, pattern, name in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method:
                    getattr(self, name)(body, **found.groupdict())
                    return
            self._send(200 if path == "/" else 404, b"")
        except _Refusal as refusal:
            self._send(refusal.status, b"{}", **{"X-Error-Code": refusal.code})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _commit(self, repository: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        if repository not in self.hub.commits:
            raise _Refusal(404, "RepoNotFound")
        found = self.hub.find(repository, revision or "main")
        if found is None:
            raise _Refusal(404, "RevisionNotFound")
        return found

    def create(self, body: bytes) -> None:
        self._may_write()
        asked = json.loads(body)
        owner = asked.get("organization") or "someone"
        repository = asked["name"] if "/" in asked["name"] else f"{owner}/{asked['name']}"
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repository)
        if repository not in self.hub.commits:
            self.hub.add(repository, {".gitattributes": b"*.onnx filter=lfs\n"})
        self._json({"url": f"{self.hub.url}/{repository}", "name": repository})

    def _may_write(self) -> None:
        if self.hub.read_only:
            raise _Refusal(403, "Forbidden")

    def validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def info(self, body: bytes, repository: str, revision: str | None = None) -> None:
        sha, files = self._commit(repository, revision)
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": repository, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def tree(self, body: bytes, repository: str, revision: str) -> None:
        _, files = self._commit(repository, revision)
        entries = []
        for name, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _git(content)}
            if len(content) >= _LARGE:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def file(self, body: bytes, repository: str, revision: str, name: str) -> None:
        sha, files = self._commit(repository, revision)
        if name not in files:
            raise _Refusal(404, "EntryNotFound")
        content = files[name]
        etag = hashlib.sha256(content).hexdigest() if len(content) >= _LARGE else _git(content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if self.command == "GET" and name in self.hub.broken:
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif start:
            first = int(start[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self._send(206, content[first:], **headers)
        else:
            self._send(200, content, **headers, **{"Content-Length": str(len(content))})

    def preupload(self, body: bytes, repository: str, revision: str) -> None:
        _, files = self._commit(repository, revision)
        answer = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["size"] >= _LARGE else "regular"
            there = files.get(file["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if mode == "lfs" else _git(there)
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answer})

    def batch(self, body: bytes, repository: str) -> None:
        self._may_write()
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = dict(wanted)
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._send(200, b"")

    def commit(self, body: bytes, repository: str, revision: str) -> None:
        self._may_write()
        _, before = self._commit(repository, revision)
        files = dict(before)
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.add(repository, files)
        self._json({"commitUrl": f"{self.hub.url}/{repository}/commit/{sha}", "commitOid": sha})


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_NAME = r"(?P<repository>[^/]+/[^/]+?)"
_ROUTES = (
    (("POST",), "/api/repos/create", "create"),
    (("POST",), "/api/validate-yaml", "validate"),
    (("GET",), rf"/api/models/{_NAME}", "info"),
    (("GET",), rf"/api/models/{_NAME}/revision/(?P<revision>[^/]+)", "info"),
    (("GET",), rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)", "tree"),
    (("POST",), rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", "upload"),
    (("POST",), rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", "commit"),
    (("HEAD", "GET"), rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "file"),
)
