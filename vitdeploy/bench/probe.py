"""Open one form in a process of its own: its cold start, and the memory it takes, with nothing else in the way.

The parent calls `probe`; the child is `python -m vitdeploy.bench.probe`, which reads what to open as JSON from its
standard input and answers in JSON on its standard output. A form that kills its process has failed, and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import vitdeploy
from vitdeploy.backends.registry import RunnerSpec, find, open_runner
from vitdeploy.bench.memory import device_used_bytes, host_peak_bytes
from vitdeploy.core.errors import InputError, ModelError, VitdeployError
from vitdeploy.report.records import ColdStart, Memory

__all__ = ["Probe", "probe"]

_CALLS = 3  # at each size: the second may still allocate what the first found missing
_TIMEOUT = 900.0  # seconds; torch.compile on a small machine takes minutes
_HINT = "measure the other forms without it (--precision, --backend), or leave its memory out: --no-memory"


@dataclass(frozen=True)
class Probe:
    """What one process found; `memory` has one entry per batch of images, in the order they were given."""

    cold_start: ColdStart
    memory: tuple[Memory, ...]
    idle_bytes: int | None  # of the process before the backend was imported


def probe(spec: RunnerSpec, batches: Sequence[npt.NDArray[np.uint8]]) -> Probe:
    """Open a form in a fresh process and run it on each of `batches`, (batch, height, width, 3), smallest first.

    Raises:
        InputError, ModelError: it can't be opened or run there, or the process died.
    """
    with tempfile.TemporaryDirectory(prefix="vitdeploy-probe-") as folder:
        files = [str(Path(folder) / f"{number}.npy") for number in range(len(batches))]
        for file, batch in zip(files, batches, strict=True):
            np.save(file, batch)
        answer = _ask({"spec": spec.to_json(), "files": files})
    if "error" in answer:
        raise InputError(answer["error"], hint=_HINT)
    return Probe(
        ColdStart(**answer["cold_start"]), tuple(Memory(**item) for item in answer["memory"]), answer["idle_bytes"]
    )


def _ask(task: dict[str, Any]) -> dict[str, Any]:
    path = [str(Path(vitdeploy.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "vitdeploy.bench.probe"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(json.dumps(task), timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"it gave no answer within {_TIMEOUT:g} s in a process of its own", hint=_HINT) from error
    finally:
        if process.poll() is None:  # Ctrl-C, or too slow
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise ModelError(f"it kills its process ({_cause(process.returncode)}): nothing can be measured", hint=_HINT)
    answer: dict[str, Any] = json.loads(output.rpartition("\n\n")[2])
    return answer


def _cause(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _child(task: dict[str, Any]) -> dict[str, Any]:
    """What the fresh process does."""
    spec = RunnerSpec.from_json(task["spec"])
    batches = [np.load(file) for file in task["files"]]
    uses_gpu = spec.device != "cpu"
    idle, before = host_peak_bytes(), device_used_bytes() if uses_gpu else None
    moments = [time.perf_counter()]
    for need in find(spec.backend).needs:
        importlib.import_module(need.module)
    moments.append(time.perf_counter())
    with open_runner(spec) as runner:
        moments.append(time.perf_counter())
        runner.infer({"image": batches[0]})
        moments.append(time.perf_counter())
        memory = []
        for batch in batches:
            device = 0
            for _ in range(_CALLS):
                runner.infer({"image": batch})
                device = max(device, device_used_bytes() or 0) if uses_gpu else 0
            taken = None if before is None else max(0, device - before)
            memory.append({"host_peak_bytes": host_peak_bytes(), "device_peak_bytes": taken})
    names = ("import_ms", "load_ms", "first_ms")
    passed = [1000 * (after - begin) for begin, after in pairwise(moments)]
    return {"cold_start": dict(zip(names, passed, strict=True)), "memory": memory, "idle_bytes": idle}


def main() -> None:
    """The child: a task from standard input, the answer to standard output behind an empty line."""
    answer: dict[str, Any]
    try:
        answer = _child(json.load(sys.stdin))
    except VitdeployError as error:
        answer = {"error": error.message}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(f"\n\n{json.dumps(answer)}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
