"""Serve the site in the folder that this file lies in, so that WebAssembly may use threads there.

    python serve.py [--port 8000] [--host 127.0.0.1]

Browsers give shared memory, which threads need, only to pages that are cross-origin isolated: those that come with the
headers below, over HTTPS or from this machine. This file needs nothing but Python; `deploy web` copies it into sites.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["HEADERS", "Handler", "main", "server"]

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Handler(SimpleHTTPRequestHandler):
    """The files of one folder, with `HEADERS`."""

    extensions_map = {  # noqa: RUF012  # as the base class has it
        "": "application/octet-stream",
        ".css": "text/css",
        ".html": "text/html",
        ".js": "text/javascript",
        ".json": "application/json",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Add the headers to those of the answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Folders are not listed."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of each request."""


def server(folder: Path, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server of that folder, bound and not yet serving; port 0: any that is free."""
    return ThreadingHTTPServer((host, port), functools.partial(Handler, directory=str(folder)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve the site in this file's folder, cross-origin isolated.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than this machine need HTTPS")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    options = parser.parse_args(arguments)
    try:
        opened = server(Path(__file__).resolve().parent, options.host, options.port)
    except OSError as error:
        parser.exit(1, f"Error: can't listen on {options.host}:{options.port}: {error}\nHint: choose another --port\n")
    with opened:
        host, port = opened.server_address[:2]
        print(f"Serving on http://{host!s}:{port}/ until Ctrl-C", flush=True)
        try:
            opened.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
