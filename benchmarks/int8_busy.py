"""The backends of a bundle's INT8 form for CPUs, interleaved: batches, and a CPU that other programs use too.

    python benchmarks/int8_busy.py BUNDLE [--busy 0 1 2] [--batch 1] [--size 224] [--threads 2] [--rounds 40]
        [--exact] [--json OUT.json]

With --exact ONNX Runtime is a row twice: as it is opened here, and told to be exact as on a processor without VNNI.

For each number of busy processes and each batch size: every round in a new order with a rest of 30 ms in front of each
turn, one call to warm up and one that counts. From raw pixels of that size; weights may be random. Milliseconds are
those of a call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from peers import CLOCKS, interleaved

from vitdeploy.backends.native.runner import NativeRunner
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.openvino.runner import OpenVinoRunner
from vitdeploy.core.machine import machine, versions
from vitdeploy.evaluation.statistics import speedup

RUNNERS: dict[str, Any] = {
    "our own kernels": NativeRunner,
    "ONNX Runtime": OnnxRuntimeRunner,
    "OpenVINO": OpenVinoRunner,
}


def beside(calls: dict[str, Any], images: np.ndarray, busy: int, rounds: int) -> dict[str, Any]:
    """Times of all calls while so many processes do nothing but compute, and how much faster the first is."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        times = interleaved(calls, images, rounds, CLOCKS["wall"])
    finally:
        for other in others:
            other.kill()
            other.wait()
    first = times[next(iter(calls))]
    ratios = {name: speedup(values, first) for name, values in times.items() if values is not first}
    for name, values in times.items():
        middle, late = np.percentile(values, [50, 95])
        ratio = (
            "  kernels {:.2f} [{:.2f}, {:.2f}] times".format(ratios[name][0], *ratios[name][1])
            if name in ratios
            else ""
        )
        print(f"{busy} busy, batch {len(images)}  {name:31}{middle:8.2f} ms, p95 {late:8.2f}{ratio}", flush=True)
    return {"busy": busy, "batch": len(images), "samples_ms": times, "times_of_kernels": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--exact", action="store_true", help="ONNX Runtime also as where products saturate")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shape = (max(arguments.batch), arguments.size, arguments.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(made(arguments.bundle / "model.int8-cpu.onnx", arguments.threads))
            for name, made in RUNNERS.items()
        }
        if arguments.exact:
            with patch("vitdeploy.bundle.graphs.saturates", lambda: True):
                exact = OnnxRuntimeRunner(arguments.bundle / "model.int8-cpu.onnx", arguments.threads)
                runners["ONNX Runtime, told to be exact"] = stack.enter_context(exact)
        calls = {name: lambda pixels, run=runner: run.infer({"image": pixels}) for name, runner in runners.items()}
        found = [
            beside(calls, images[:batch], busy, arguments.rounds)
            for busy in arguments.busy
            for batch in arguments.batch
        ]
    if arguments.json is not None:
        document = {"machine": machine(), "versions": versions(), "threads": arguments.threads, "runs": found}
        arguments.json.write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
