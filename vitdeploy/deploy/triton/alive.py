"""Whether a model in a running Triton answers: `python3 -m vitdeploy.deploy.triton.alive NAME`, for liveness probes.

Triton goes on saying that a python model is ready after its process was killed, and does not start it again; so an
image is sent. A refusal of the image is an answer too: exit code 0. No answer, or one that the model is gone: 1.
"""

from __future__ import annotations

import json
import struct
import sys
import urllib.error
import urllib.request
import zlib

__all__ = ["is_alive", "main"]

_GONE = ("not healthy", "is not ready", "unavailable")


def is_alive(name: str, port: int = 8000, timeout_s: float = 10.0) -> bool:
    """Whether the model `name` of the server on this machine answers a small image in time."""
    image = _png()
    entry = {
        "name": "IMAGE",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": 4 + len(image)},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/{name}/infer",
        head + struct.pack("<I", len(image)) + image,
        {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")
        return error.code < 500 and not any(word in said for word in _GONE)
    except OSError:
        return False


def main() -> int:
    """The exit code."""
    name, *port = sys.argv[1:]
    return 0 if is_alive(name, *map(int, port)) else 1


def _png(edge: int = 64) -> bytes:
    """A black image, edge x edge, grey of 8 bits."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(edge * (edge + 1)))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", size) + part(b"IDAT", rows) + part(b"IEND", b"")


if __name__ == "__main__":
    sys.exit(main())
