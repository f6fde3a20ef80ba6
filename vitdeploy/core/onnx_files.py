"""Reading an ONNX file of anybody's: its message, or an error that says what the file is instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.storage import open_regular, refuse_pointer

__all__ = ["read_message"]

_LARGEST = (1 << 31) - 1  # protobuf reads no message of more bytes
_AGAIN = "copy it again, or export or build it again"


def read_message(path: Path) -> Any:
    """The onnx.ModelProto in a file; weights that it keeps in other files are not read.

    Raises:
        ModelError: there is no such file, it is a pipe or the like, too large for protobuf, damaged, or no ONNX file.
        DependencyError: the package onnx is not installed.
    """
    onnx = require("onnx", extra="build")
    decode_error = require("google.protobuf.message", extra="build").DecodeError
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            if size > _LARGEST:
                raise ModelError(
                    f"{path} is no ONNX file: it has {size / 1e9:.1f} GB, and protobuf ends at 2 GiB",
                    hint="name the .onnx file; a large model's weights lie in a file of their own beside it",
                )
            file.seek(0)
            model = onnx.load_from_string(file.read())
    except OSError as error:
        raise ModelError(
            f"{path} can't be read: {error.strerror or error}", hint="name an ONNX file, or a bundle's folder"
        ) from error
    except (decode_error, ValueError) as error:
        refuse_pointer(path, ModelError)
        raise ModelError(f"{path} can't be read as ONNX: {error}", hint=_AGAIN) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{path} holds no graph", hint=_AGAIN)
    return model
