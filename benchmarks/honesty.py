"""Is the benchmark honest on real runners and the real clock? Forms whose differences are known beforehand.

    python benchmarks/honesty.py BUNDLE --dataset DATASET [--repeats 20] [--json OUT.json]

One graph of the bundle is opened four times in ONNX Runtime: as it is (the baseline), as a copy, as one that takes 5
ms more in each call, and as one that gives another class for 3 % of the images. Each repeat is a benchmark of its
own, with another order and other images flipped. It prints how late the late one was found to be, in how many repeats
the interval of the copy's speed-up held 1, and in how many the change that was put in lay inside its interval. The
tests hold the same three on a clock of their own, which nothing else can disturb.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bench.forms import Form
from vitdeploy.bench.machine import machine, usable_cores, versions
from vitdeploy.bench.measurement import Benchmark
from vitdeploy.bundle import Bundle
from vitdeploy.data import load_dataset, stratified_sample
from vitdeploy.data.labels import match_dataset
from vitdeploy.evaluation.accuracy import summarise
from vitdeploy.evaluation.statistics import percentiles, speedup
from vitdeploy.report.settings import BenchSettings

DELAY_MS = 5.0
FLIPPED = 0.03
COPIES = ("plain", "copy", "late", "flipped")


def never(pixels: Any) -> bool:
    return False


class Changed:
    """A runner with a known fault: it takes `late_ms` longer, or gives another class where `flips` says so."""

    def __init__(self, inner: Any, late_ms: float = 0.0, flips: Callable[[Any], bool] = never) -> None:
        self._inner, self._late_ms, self._flips = inner, late_ms, flips
        self._stack = ExitStack()

    def __enter__(self) -> Changed:
        self._inner = self._stack.enter_context(self._inner)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def infer(self, feeds: Mapping[str, Any], /) -> dict[str, Any]:
        until = time.perf_counter() + self._late_ms / 1000
        while time.perf_counter() < until:  # a sleep would end late by an amount of its own
            pass
        logits = np.array(self._inner.infer(feeds)["logits"])
        for row, pixels in zip(logits, feeds["image"], strict=True):
            if self._flips(pixels):
                best = int(row.argmax())
                row[[best, best - 1]] = row[[best - 1, best]]
        return {"logits": logits}


def forms(graph: Path, threads: int, seed: int) -> list[Form]:
    """The four copies; the last one errs on each image with a chance of 3 %, the same whenever it is asked."""

    def flips(pixels: Any) -> bool:
        digest = hashlib.sha256(seed.to_bytes(8, "big") + pixels.tobytes()).digest()
        return int.from_bytes(digest[:8], "big") < FLIPPED * 2**64

    def opened(name: str) -> Callable[[], AbstractContextManager[Any]]:
        late_ms = DELAY_MS if name == "late" else 0.0
        return lambda: Changed(
            OnnxRuntimeRunner(graph, threads=threads), late_ms, flips if name == "flipped" else never
        )

    return [Form(name, "onnxruntime", opened(name)) for name in COPIES]


def repeat(
    graph: Path, images: Any, truth: Any, classes: int, arguments: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """One benchmark: what it says of the late copy, of the equal one and of the flipped one."""
    settings = BenchSettings(rounds=arguments.rounds, seed=seed, memory=False, phases=False)
    judge = Benchmark(forms(graph, arguments.threads, seed), images, classes, settings)
    judge.run()
    plain, copy, late, wrong = (judge.measurements[f"{name}/onnxruntime"] for name in COPIES)
    point = judge.points[0]
    p50 = {finding.form.form: percentiles(finding.tracks[point].on_demand_ms)["p50"] for finding in (plain, late)}
    own, other = copy.tracks[point].paired_with(copy.reference[point])
    ratio, interval = speedup(other, own)
    assert plain.answers is not None and wrong.answers is not None
    accuracy = summarise(wrong.answers, truth, plain.answers)
    assert accuracy is not None and accuracy.delta is not None
    best = plain.answers.logits.argmax(axis=1)
    # What 3 % of flipped answers change on average: not all of these images were right, and some become right.
    expected = FLIPPED * float(np.mean((best - 1) % classes == truth) - np.mean(best == truth))
    return {
        "p50_ms": p50["plain"],
        "late_by_ms": p50["late"] - p50["plain"],
        "copy_ratio": ratio,
        "copy_ci95": interval,
        "expected_delta": expected,
        "delta": accuracy.delta,
        "delta_ci95": accuracy.delta_ci95,
    }


def within(value: float, interval: Any) -> bool:
    return bool(interval[0] <= value <= interval[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    graph = next(a for a in bundle.select(kind="onnx", precision=arguments.precision) if a.target in ("any", "cpu"))
    data = stratified_sample(load_dataset(arguments.dataset, "test"), arguments.limit, seed=0)
    truth = match_dataset(data, bundle.manifest.labels).of(data)
    found = []
    for seed in range(arguments.repeats):
        file = bundle.file(graph)
        found.append(repeat(file, data, truth, len(bundle.manifest.labels), arguments, seed))
        print(json.dumps(found[-1]), flush=True)
    late = [one["late_by_ms"] for one in found]
    summary = {
        "repeats": len(found),
        "late_by_ms": {"median": float(np.median(late)), "min": min(late), "max": max(late)},
        "within_half_a_ms": sum(abs(value - DELAY_MS) <= 0.5 for value in late),
        "copies_hold_1": sum(within(1.0, one["copy_ci95"]) for one in found if one["copy_ci95"]),
        # What `vitdeploy.report.comparison.BETWEEN_RUNS` has to be: how far equal files are apart from run to run.
        "between_runs": float(np.std(np.log([one["copy_ratio"] for one in found]), ddof=1)) if len(found) > 1 else None,
        # The same of `BETWEEN_MACHINE_STATES`: how far one file alone is.
        "between_states": float(np.std(np.log([one["p50_ms"] for one in found]), ddof=1)) if len(found) > 1 else None,
        "drop_in_interval": sum(within(one["expected_delta"], one["delta_ci95"]) for one in found),
    }
    print(json.dumps(summary, indent=1))
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("precision", "limit", "rounds", "threads")}
        report = {"machine": machine(), "versions": versions(), "settings": settings, **summary, "runs": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
