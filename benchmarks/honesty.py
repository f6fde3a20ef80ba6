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

from vitdeploy.bench.accuracy import label_mapping, summarise
from vitdeploy.bench.forms import Form
from vitdeploy.bench.judge import Judge, JudgeSettings
from vitdeploy.bench.latency import LatencySettings
from vitdeploy.bench.machine import machine, usable_cores, versions
from vitdeploy.bench.statistics import percentiles, speedup
from vitdeploy.bundle import Bundle
from vitdeploy.datasets import load_dataset, stratified_sample
from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

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
    latency = LatencySettings(rounds=arguments.rounds, seed=seed)
    settings = JudgeSettings(latency=latency, memory=False, phases=False)
    judge = Judge(forms(graph, arguments.threads, seed), images, classes, settings)
    judge.run()
    plain, copy, late, wrong = (judge.findings[f"{name}/onnxruntime"] for name in COPIES)
    point = judge.points[0]
    p50 = {finding.form.form: percentiles(finding.tracks[point].samples_ms)["p50"] for finding in (plain, late)}
    own, other = copy.tracks[point].paired_with(copy.reference[point])
    ratio, interval = speedup(other, own)
    assert plain.verdicts is not None and wrong.verdicts is not None
    accuracy = summarise(wrong.verdicts, truth, plain.verdicts)
    assert accuracy is not None and accuracy.delta is not None
    best = plain.verdicts.logits.argmax(axis=1)
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
    mapping, _ = label_mapping(bundle.manifest.labels, tuple(data.labels))
    truth = mapping[np.asarray(data.label_ids)]
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
        "copies_hold_1": sum(within(1.0, one["copy_ci95"]) for one in found),
        "drop_in_interval": sum(within(one["expected_delta"], one["delta_ci95"]) for one in found),
    }
    print(json.dumps(summary, indent=1))
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("precision", "limit", "rounds", "threads")}
        report = {"machine": machine(), "versions": versions(), "settings": settings, **summary, "runs": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
