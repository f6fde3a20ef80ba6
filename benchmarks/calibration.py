"""Time and peak memory of calibration beside a plain forward pass over as many images, each in a process of its own.

    python benchmarks/calibration.py MODEL.onnx [--counts 100,200] [--attention] [--json OUT.json]

Images are seeded noise of the model's own size: what they show changes neither time nor memory. Memory is the peak
of the process's resident set, and beside it what one holds that has opened the model for inference and run one image.
Time is the processor's, of all threads, which other work on the machine hardly changes; the wall's is kept beside it.
Half of the forward pass runs before the calibration and half after it, so that what slows the machine down for a while
falls on both sides.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitdeploy.compiler.quantization.calibration import calibrate
from vitdeploy.compiler.quantization.recipe import Recipe


def images(count: int, size: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.integers(0, 256, (size, size, 3), dtype=np.uint8)


def forward(model: Path, count: int, size: int) -> None:
    """One image at a time, as calibration does."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for image in images(count, size):
        session.run(["logits"], {"image": image[np.newaxis]})


def measure(what: str, model: Path, count: int, size: int, attention: bool) -> dict[str, float]:
    """In a fresh process: seconds and peak memory in MB."""
    command = [sys.executable, __file__, str(model), "--run", what, "--counts", str(count), "--size", str(size)]
    done = subprocess.run(
        [*command, *(["--attention"] if attention else [])], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def both(model: Path, count: int, size: int, attention: bool) -> tuple[dict[str, float], dict[str, float]]:
    """The forward pass, in two halves, and the calibration between them."""
    first = measure("forward", model, count - count // 2, size, False)
    made = measure("calibrate", model, count, size, attention)
    second = measure("forward", model, count // 2, size, False)
    plain = {name: first[name] + second[name] for name in ("seconds", "cpu_seconds")}
    return {**plain, "peak_mb": max(first["peak_mb"], second["peak_mb"])}, made


def run(what: str, model: Path, count: int, size: int, attention: bool) -> None:
    start = time.perf_counter()
    if what == "forward":
        forward(model, count, size)
    else:
        calibrate(model, "", images(count, size), count, Recipe(count=count, attention=attention), {})
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime}
    print(json.dumps({**spent, "peak_mb": used.ru_maxrss / 1e3}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--counts", default="100,200")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", choices=["forward", "calibrate"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.counts.split(",")]
    if arguments.run:
        run(arguments.run, arguments.model, counts[0], arguments.size, arguments.attention)
        return
    weights = sum(path.stat().st_size for path in arguments.model.parent.glob(f"{arguments.model.name}*")) / 1e6
    report = {
        "model_mb": weights,
        "one_image": measure("forward", arguments.model, 1, arguments.size, False),
        "rows": [],
    }
    print(f"model {weights:.0f} MB; opened for inference, one image: {report['one_image']['peak_mb']:.0f} MB")
    print("images   forward, CPU s   calibrate, CPU s   ratio   peak MB   over the model's size")
    for count in counts:
        plain, made = both(arguments.model, count, arguments.size, arguments.attention)
        ratio = made["cpu_seconds"] / plain["cpu_seconds"]
        report["rows"].append({"images": count, "forward": plain, "calibrate": made, "ratio": ratio})
        print(
            f"{count:6}{plain['cpu_seconds']:12.1f}{made['cpu_seconds']:14.1f}{ratio:8.2f}{made['peak_mb']:10.0f}"
            f"{made['peak_mb'] - weights:15.0f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
