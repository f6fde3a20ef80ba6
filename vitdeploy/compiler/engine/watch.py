"""What TensorRT says while it builds: its log, its progress, and both in plain words."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from vitdeploy.core.progress import Step
from vitdeploy.core.storage import disk_errors
from vitdeploy.core.text import visible

__all__ = ["BuildLog", "explain_error", "explain_parser_errors", "listen", "watch"]

# TensorRT's words (a regular expression) -> ours. A warning that matches nothing stays in the log file.
_WARNINGS = {
    r"layernorm.*FP16|FP16.*layernorm": "a layer normalisation runs in FP16 and may overflow; compare the engine's"
    " answers with vitdeploy bench before you trust it",
    r"insufficient memory|Skipping tactic.*memory": "some kernels were left out because memory was short; close other"
    " programs or raise --workspace and build again for full speed",
    r"not self-consistent|Volume exceeds limit": "the largest batch of the largest image is more than TensorRT can"
    " address; lower the maximum of --batch or --image-size",
    r"not all (?:weights|values).*INT8|missing scale": "part of the graph has no INT8 scale and runs in a higher"
    " precision",
}
# TensorRT's words -> (what failed, what to do next).
_ERRORS = {
    r"FP32 GEMM is not supported|check_turing_op_compatibility": (
        "compute capability 7.5 (Turing) has no FP32 matrix products in TensorRT-RTX, and the graph has some (resizing"
        " the images is FP32 in every form)",
        "leave 7.5 out of --compute-capability, or run the ONNX form on that machine",
    ),
    r"within workspace limit|workspace size": (
        "no kernel fits into the workspace",
        "raise --workspace, or leave it out",
    ),
    r"cudaError (?:35|100|999)|driver version is insufficient|no CUDA-capable device": (
        "TensorRT found no usable NVIDIA driver",
        "install a driver (vitdeploy doctor shows what is here), or use --target tensorrt-rtx or --target onnx",
    ),
    r"out of memory|OutOfMemory|MEM_ALLOC_FAILED|failed to allocate": (
        "the memory that the build may use is not enough",
        "raise --workspace if you gave it, lower the maximum of --batch or --image-size, or close other programs",
    ),
    r"Unable to load library: \S*lean": (
        "TensorRT's lean runtime is not installed, which --version-compatible needs",
        "pip install tensorrt-lean, or leave --version-compatible out",
    ),
    r"Target GPU SM \d+ is not supported|unsupported SM|SM \d+ .*not supported": (
        "this TensorRT does not support this GPU any more, or not yet",
        "install the TensorRT version that supports it (docs/gpu.md has a table)",
    ),
}
_NEARLY = 99  # percent, until there is an engine: TensorRT ends all phases of a build that fails as well
_PLACE = re.compile(r"\s*(?:In \w+ at \S+?:\d+|\(In \w+ at \S+?:\d+[^)]*\))")


class BuildLog:
    """The messages of one build: all of them in a file, errors and warnings kept."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def add(self, severity: str, message: str) -> None:
        """Take a message; TensorRT calls this from its own threads and must never see an exception."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        elif severity == "WARNING":
            self.warnings.append(message)
        with contextlib.suppress(OSError, ValueError):
            self._file.write(f"[{severity}] {visible(message)}\n")

    def notes(self) -> list[str]:
        """The warnings that matter, in plain words, each once."""
        found: dict[str, None] = {}
        for warning in self.warnings:
            for pattern, words in _WARNINGS.items():
                if re.search(pattern, warning, re.IGNORECASE):
                    found[words] = None
        return list(found)


_SINKS: dict[str, list[BuildLog]] = {}
_LOGGERS: dict[str, Any] = {}
_ONE_BUILD = threading.Lock()


@contextlib.contextmanager
def listen(trt: ModuleType, path: Path) -> Iterator[tuple[Any, BuildLog]]:
    """A logger for TensorRT's objects, and the log that it fills (also as the file `path`) inside the block.

    TensorRT takes one logger for a whole process, so there is one, and one build at a time.
    """
    with _ONE_BUILD, disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="replace", buffering=1) as file:
            log = BuildLog(file)
            logger = _logger(trt)
            _SINKS[trt.__name__].append(log)
            try:
                yield logger, log
            finally:
                _SINKS[trt.__name__].remove(log)


def _logger(trt: ModuleType) -> Any:
    sinks = _SINKS.setdefault(trt.__name__, [])
    if trt.__name__ not in _LOGGERS:
        names = {value: name for name, value in trt.ILogger.Severity.__members__.items()}

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                name = names.get(severity, "INFO")
                if name != "VERBOSE":
                    for sink in sinks:
                        sink.add(name, message)

        _LOGGERS[trt.__name__] = Logger()
    return _LOGGERS[trt.__name__]


def watch(trt: ModuleType, step: Step) -> Any:
    """A progress monitor that moves `step` (to nearly its total of 100) and stops the build after its `cancel()`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.phases = BuildPhases()
            self.cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._change(lambda: self.phases.start(phase_name, parent_phase, num_steps))

        def phase_finish(self, phase_name: str) -> None:
            self._change(lambda: self.phases.finish(phase_name))

        def step_complete(self, phase_name: str, step_index: int) -> bool:
            self._change(lambda: self.phases.advance(phase_name, step_index))
            return not self.cancelled

        def _change(self, change: Any) -> None:
            with self.lock:
                change()
                done, name = self.phases.done(), self.phases.current()
            if self.cancelled:
                return  # all phases are finished in haste now
            with contextlib.suppress(Exception):  # a broken terminal must not reach TensorRT's threads
                step.update(completed=min(_NEARLY, 100 * done), detail=name)

    return Monitor()


class BuildPhases:
    """TensorRT's nested phases as one fraction that never falls."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._completed: dict[str, int] = {}
        self._parent: dict[str, str | None] = {}
        self._highest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._steps[name], self._completed[name], self._parent[name] = max(1, steps), 0, parent

    def advance(self, name: str, step: int) -> None:
        if name in self._completed:
            self._completed[name] = max(self._completed[name], step + 1)

    def finish(self, name: str) -> None:
        parent = self._parent.pop(name, None)
        self._steps.pop(name, None)
        self._completed.pop(name, None)
        if parent is None:
            self._highest = 1.0

    def done(self) -> float:
        """How much of the whole build is done, 0..1."""
        roots = [name for name, parent in self._parent.items() if parent not in self._parent]
        now = max((self._fraction(name) for name in roots), default=0.0)
        self._highest = max(self._highest, now)
        return self._highest

    def current(self) -> str:
        """The innermost phase that is under way."""
        return next(reversed(self._parent), "")

    def _fraction(self, name: str) -> float:
        children = (self._fraction(child) for child, parent in self._parent.items() if parent == name)
        return min(1.0, (self._completed[name] + max(children, default=0.0)) / self._steps[name])


def explain_error(log: BuildLog) -> tuple[str, str | None]:
    """What made a build fail, and what to do next where that is known."""
    # Where there is no GPU, every error is followed by one more that says only that.
    errors = [message for message in log.errors if "::catchCudaError" not in message] or log.errors
    for message in errors:
        for pattern, explained in _ERRORS.items():
            if re.search(pattern, message, re.IGNORECASE):
                return explained
    if not errors:
        return "TensorRT gave no engine and no reason", None
    return _PLACE.sub("", errors[0]).strip(), None


def explain_parser_errors(parser: Any) -> tuple[str, str | None]:
    """Which nodes of a graph TensorRT can't take and why, and what to do next."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    for error in errors:
        if "DESERIALIZE" in str(error.code()):
            return "it is not a complete ONNX file: damaged or cut off", "copy or export it again"
    shown = [_parser_error(error) for error in errors[:3]]
    if len(errors) > 3:
        shown.append(f"and {len(errors) - 3} more")
    return "; ".join(shown), _parser_hint(errors)


def _parser_error(error: Any) -> str:
    node, operator = _look(error, "node_name"), _look(error, "node_operator")
    where = f"node {node or '#' + str(error.node())}" + (f" (op {operator})" if operator else "")
    layer = str(node or "").rpartition("/")[0]  # our graphs name a node after the module that it comes from
    where += f" of the layer {layer}" if layer else ""
    reason = _PLACE.sub("", str(error.desc()).split("[checkMacros")[0]).strip()
    if _is_plugin_missing(reason) or reason in ("", "false"):
        reason = "TensorRT has no such operator"
    reason = re.sub(r"^Invalid Node - \S+\s*", "", reason)
    stack = _look(error, "local_function_stack")
    inside = f" in {' > '.join(map(str, stack))}" if stack else ""
    return f"{where}{inside}: {reason}"


def _parser_hint(errors: list[Any]) -> str | None:
    reasons = " ".join(str(error.desc()) for error in errors)
    operators = {_look(error, "node_operator") for error in errors}
    if "type UInt8" in reasons:
        return "TensorRT takes uint8 into a Cast only: cast the image before anything else is done to it"
    if "Resize" in operators:
        return "TensorRT has no antialiased Resize: export with vitdeploy export, whose resize is matrix products"
    return "run this form with ONNX Runtime or OpenVINO (--target onnx), or replace the operator in the model"


def _is_plugin_missing(reason: str) -> bool:
    return "Plugin not found" in reason or "creator &&" in reason


def _look(error: Any, name: str) -> Any:
    """A detail of a parser error that older parsers do not have."""
    member = getattr(error, name, None)
    return member() if callable(member) else member
