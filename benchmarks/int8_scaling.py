"""How our INT8 kernels scale with threads, from one to all cores of this machine, interleaved.

    python benchmarks/int8_scaling.py BUNDLE [--threads 1 2 4 8] [--batch 1 8] [--rounds 40] [--json OUT.json]

For each batch size: pixel values to logits of as many images a call, by every number of threads in turn in one process,
each round in a new order with a rest of 30 ms in front of each turn, one call to warm up and one that counts. How many
times as fast as one thread is the median over rounds, with a 95 % interval by order statistics; efficiency is that by
thread. Weights may be random, and pixel values are. More threads than cores measure the scheduler: they are refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from peers import CLOCKS, interleaved

from vitdeploy.backends.native.packing import Encoder
from vitdeploy.backends.native.plain_vit import PlainVit, read_plain_vit
from vitdeploy.bundle.onnx_messages import read_model
from vitdeploy.core.machine import machine, physical_cores, versions
from vitdeploy.evaluation.statistics import speedup


def counts_up_to(cores: int) -> list[int]:
    """1, 2, 4 ... and all cores."""
    return [*(count for count in (1 << power for power in range(16)) if count < cores), cores]


def scaled(form: PlainVit, threads: list[int], batch: int, rounds: int) -> dict[str, Any]:
    """Times of every number of threads, and how much faster than one each is."""
    encoders = {str(count): Encoder(form, count) for count in dict.fromkeys((1, *threads))}
    pixels = np.random.default_rng(0).standard_normal((batch, *form.image)).astype(np.float32)
    try:
        times = interleaved({name: each.run for name, each in encoders.items()}, pixels, rounds, CLOCKS["wall"])
    finally:
        for encoder in encoders.values():
            encoder.close()
    rows = []
    for name, values in times.items():
        ratio, interval = speedup(times["1"], values)
        row = {"threads": int(name), "median_ms": float(np.median(values)), "ratio": ratio, "interval": interval}
        rows.append(row | {"efficiency": ratio / int(name), "samples_ms": values})
        within = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        print(
            f"batch {batch}, {name:>3} threads {row['median_ms'] / batch:9.2f} ms an image"
            f"{ratio:8.2f}{within} times one thread, efficiency {ratio / int(name):.2f}",
            flush=True,
        )
    return {"batch": batch, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=counts_up_to(physical_cores()))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if min(arguments.threads) < 1 or max(arguments.threads) > physical_cores():
        parser.error(f"threads are 1 to {physical_cores()} on this machine")
    form = read_plain_vit(read_model((arguments.bundle / "model.int8-cpu.onnx").read_bytes()))
    found = [scaled(form, arguments.threads, batch, arguments.rounds) for batch in arguments.batch]
    if arguments.json is not None:
        document = {"machine": machine(), "versions": versions(), "runs": found}
        arguments.json.write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
