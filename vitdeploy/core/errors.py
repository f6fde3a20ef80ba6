"""The errors users see, each with the next step, and the one door to optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType

from vitdeploy.core.telemetry import silenced

__all__ = [
    "BundleError",
    "DatasetError",
    "DeadlineError",
    "DependencyError",
    "EngineError",
    "ImageError",
    "InputError",
    "ModelError",
    "OutOfMemoryError",
    "OutputExistsError",
    "QueueFullError",
    "RunnerClosedError",
    "VitdeployError",
    "interrupted",
    "require",
]


class VitdeployError(Exception):
    """Something the user can act on: `message` says what failed on which input, `hint` what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BundleError(VitdeployError):
    """A bundle that is missing, damaged, locked, or of a schema this version can't read."""


class DatasetError(VitdeployError):
    """A dataset that can't be found or read, or that does not fit the model."""


class DeadlineError(VitdeployError):
    """A request that was not answered before its deadline; what was not begun of it is not done."""


class DependencyError(VitdeployError):
    """An optional package that is needed here and is not installed."""


class EngineError(VitdeployError):
    """A TensorRT engine that can't be built, or can't be loaded on this machine."""


class ImageError(VitdeployError):
    """An image that can't be decoded or is outside the limits."""


class InputError(VitdeployError):
    """An array or option of the wrong dtype, rank, shape or range."""


class ModelError(VitdeployError):
    """A checkpoint that can't be loaded, or an architecture or setting that can't be exported."""


class OutOfMemoryError(InputError):
    """The machine or its GPU has no memory for an input; a smaller one may still be answered."""


class OutputExistsError(VitdeployError):
    """The output is already there and `overwrite` was not given."""


class QueueFullError(VitdeployError):
    """A request that was refused at once since too many others wait."""


class RunnerClosedError(VitdeployError):
    """A runner or classifier was used outside its `with` block."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, which sends nothing about its use (`core.telemetry`).

    Args:
        module: dotted name, as in `import module`.
        extra: the extra of vitdeploy that installs it.

    Raises:
        DependencyError: it is not installed, or is installed and does not load.
    """
    try:
        with silenced():
            return importlib.import_module(module)
    except ImportError as error:
        if interrupted(error):
            raise KeyboardInterrupt from error
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == top
        if missing:
            message = f"this needs the package {top!r}, which is not installed"
        else:
            message = f"the package {top!r} is installed but does not load: {error}"
        from vitdeploy.core.installing import extras_line, package_line

        # PyTorch comes with all that is used beside it; of anything else only this is missing.
        hint = extras_line(extra) if top == "torch" else package_line(top)
        raise DependencyError(message, hint=hint) from error


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: native modules turn what stops their initialisation into an ImportError."""
    cause = error.__cause__ or error.__context__
    return cause is not None and (isinstance(cause, KeyboardInterrupt) or interrupted(cause))
