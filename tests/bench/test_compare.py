"""Two reports: what changed is found, what is noise is called that, and conditions mean what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.forms_for_tests import Clock, KnownRunner, Pictures, form
from tests.bench.test_judge import noisy, report_on
from vitdeploy.bench import BenchReport, bench, render_html
from vitdeploy.bench.compare import Comparison, compare
from vitdeploy.bench.conditions import judge, parse
from vitdeploy.bench.latency import LatencySettings
from vitdeploy.bench.reuse import with_accuracy
from vitdeploy.errors import InputError

CLASSES = 10


def run(int8_ms: float = 10.0, flip: int = 0, seed: int = 0, base_ms: float = 20.0, **changes: Any) -> BenchReport:
    """A benchmark of known runners: PyTorch and INT8, which flips `flip` of each 100 answers."""
    clock = Clock()
    forms = [
        form("fp32", "pytorch", KnownRunner(clock, CLASSES, takes_ms=noisy(base_ms, seed))),
        form("int8", "openvino", KnownRunner(clock, CLASSES, takes_ms=noisy(int8_ms, seed + 1),
                                             flip=lambda n: n % 100 < flip)),
    ]  # fmt: skip
    report = report_on(forms, clock, Pictures(1000, CLASSES), latency=LatencySettings(rounds=40))
    facts = {"dataset": {"fingerprint": "f"}, "machine": {"cpu": "A"}, "versions": {"openvino": "1"}, **changes}
    return replace(report, **facts)


def change(comparison: Comparison, metric: str, key: str = "int8/openvino") -> Any:
    return next(row for row in comparison.rows if row.key == key).find(metric)


def test_two_runs_of_the_same_are_no_more_than_noise() -> None:
    comparison = compare(run(seed=1), run(seed=5))
    for metric in ("p50", "mean", "throughput", "speedup", "top1", "size"):
        assert change(comparison, metric).beyond_noise is False, metric
    found = change(comparison, "p50")
    assert found.ci95[0] < found.amount < found.ci95[1] and abs(found.amount - 1) < 0.02


def test_a_form_that_became_slower_is_found() -> None:
    comparison = compare(run(seed=1), run(int8_ms=11.5, seed=5))
    found = change(comparison, "p50")
    assert found.amount == pytest.approx(1.15, abs=0.02) and found.beyond_noise
    assert found.ci95[0] < 1.15 < found.ci95[1] or found.ci95[0] > 1.1
    assert change(comparison, "speedup").amount == pytest.approx(1 / 1.15, abs=0.02)
    assert not change(comparison, "p50", "fp32/pytorch").beyond_noise


def test_what_moved_the_unchanged_baseline_is_noise() -> None:
    comparison = compare(run(seed=1), run(int8_ms=11.5, base_ms=24.0, seed=5))  # all became a fifth slower
    assert comparison.drift == pytest.approx(1.2, abs=0.03)
    assert not change(comparison, "p50").beyond_noise
    assert any("about which nothing changed, became" in note for note in comparison.notes)
    # With another PyTorch the baseline is no measure of the machine.
    other = run(int8_ms=11.5, base_ms=24.0, seed=5, versions={"openvino": "1", "torch": "3"})
    comparison = compare(run(seed=1), other)
    assert comparison.drift is None and change(comparison, "p50").beyond_noise
    assert any("torch none → 3" in note for note in comparison.notes)


def test_accuracy_is_compared_in_pairs_on_the_same_images() -> None:
    paired = compare(run(flip=1), run(flip=2))
    found = change(paired, "top1")
    assert found.amount == pytest.approx(-0.01) and found.beyond_noise  # ten of a thousand lost, none won
    other = compare(run(flip=1), run(flip=2, dataset={"fingerprint": "g"}))
    apart = change(other, "top1")
    assert apart.amount == pytest.approx(-0.01)
    assert apart.ci95[1] - apart.ci95[0] > found.ci95[1] - found.ci95[0]
    assert any("independent samples" in note for note in other.notes)


def test_other_machines_and_other_rows_are_noted() -> None:
    second = run(machine={"cpu": "B"})
    comparison = compare(run(), replace(second, rows=second.rows[:1]))
    assert any("processor differs" in note for note in comparison.notes)
    row = comparison.rows[1]
    assert row.after is None and row.changes == ()


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("int8.p50 > 1.1x", True),
        ("int8.p50 > 1.3x", False),
        ("int8/openvino.p50 > 10%", True),
        ("int8@1.mean >= 11", True),
        ("int8.p50 > 12", False),
        ("*.p50 > 1.1x", True),
        ("fp32.p50 > 1.1x", False),
        ("int8.throughput < 0.9x", True),
        ("int8.speedup < 0.9x", True),
        ("int8.top1 < -0.5pt", True),
        ("int8.top1 < -2pt", False),
        ("int8.top1 < 0.5", False),
        ("int8.drop > 2.5", True),
        ("int8.drop > 0.5pt", True),
        ("int8.agreement < 0.98", True),
        ("int8.size > 1x", False),
    ],
)
def test_conditions_mean_what_they_say(condition: str, met: bool) -> None:
    comparison = compare(run(flip=2, seed=1), run(int8_ms=11.5, flip=3, seed=5))
    verdict = judge(parse(condition), comparison)
    assert verdict.met is met and not verdict.within_noise
    assert bool(verdict.why) is met


def test_a_change_within_noise_does_not_count_unless_strict() -> None:
    comparison = compare(run(seed=1), run(int8_ms=10.1, seed=5))
    verdict = judge(parse("int8.p50 > 1.001x"), comparison)
    assert not verdict.met and verdict.within_noise and "p50" in verdict.why[0]
    assert judge(parse("int8.p50 > 1.001x"), comparison, strict=True).met


def test_a_row_that_no_longer_runs_meets_every_condition() -> None:
    second = run()
    failed = replace(second.rows[1], status="failed", reason="gone", latencies=(), accuracy=None)
    for rows in (second.rows[:1], (second.rows[0], failed)):
        verdict = judge(parse("int8.p50 > 5x"), compare(run(), replace(second, rows=rows)))
        assert verdict.met


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("int8.p50", "can't be read"),
        ("int8.p50 > fast", "can't be read"),
        ("int8.speed > 1", "no metric 'speed'"),
        ("int8.top1 < 1%", "does not fit"),
        ("int8.p50 > 1pt", "does not fit"),
        ("int4.p50 > 1x", "no row"),
        ("int8@64.p50 > 1x", "no such number"),
        ("int8.memory > 1x", "no such number"),
    ],
)
def test_a_condition_that_cannot_be_judged_is_an_error_and_no_pass(condition: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        judge(parse(condition), compare(run(), run()))
    assert caught.value.hint


def test_the_interval_covers_the_true_ratio() -> None:
    inside = 0
    for seed in range(24):
        found = change(compare(quick(10, 2 * seed), quick(11, 2 * seed + 1)), "p50")
        inside += found.ci95[0] <= 1.1 <= found.ci95[1]
    # 95 % of 24 is 23; a percentile bootstrap of a median is somewhat narrow. Seeded, so it does not change.
    assert inside >= 20


def quick(milliseconds: float, seed: int) -> BenchReport:
    clock = Clock()
    runner = KnownRunner(clock, CLASSES, takes_ms=noisy(milliseconds, seed))
    return report_on([form("int8", "openvino", runner)], clock, Pictures(4, CLASSES), accuracy=False)


def test_accuracy_is_taken_from_a_report_on_the_same_files_and_images(
    tiny_bundle: Path, tiny_checkpoint: Path, tiny_images: Path
) -> None:
    from vitdeploy.datasets import load_dataset

    images = load_dataset(tiny_images, "all")
    options: dict[str, Any] = {"rounds": 2, "threads": 1, "memory": False, "phases": False, "precisions": ["int8"]}
    kept = bench(tiny_bundle, images, baseline=tiny_checkpoint, latency=False, **options)
    timed = bench(tiny_bundle, images, baseline=tiny_checkpoint, accuracy=False, **options)
    joined = with_accuracy(timed, BenchReport.from_json(kept.to_json()))
    assert [row.accuracy for row in joined.rows] == [row.accuracy for row in kept.rows]
    assert [row.latencies for row in joined.rows] == [row.latencies for row in timed.rows]
    assert joined.recommendation["key"] and joined.disagreement_count == kept.disagreement_count
    assert any("taken from that report" in note for note in joined.notes)
    assert any(row.on_front for row in joined.rows) and not any(row.on_front for row in timed.rows)
    other = replace(kept, versions={**kept.versions, "openvino": "0"})
    fewer = with_accuracy(timed, other)
    assert fewer.row("int8/openvino").accuracy is None
    onnx = fewer.row("int8/onnxruntime").accuracy
    assert onnx is not None and onnx.agreement is not None and kept.disagreements  # random weights disagree somewhere
    assert fewer.disagreement_count == round((1 - onnx.agreement) * onnx.count) <= kept.disagreement_count
    assert all("int8/openvino" not in item.answers for item in fewer.disagreements)
    assert any("not all forms were taken" in note for note in fewer.notes)
    without = replace(timed, rows=tuple(row for row in timed.rows if row.backend != "openvino"))
    assert "INT8" in render_html(with_accuracy(without, kept))  # the earlier report knows a form that this one has not
    with pytest.raises(InputError, match="other images"):
        with_accuracy(timed, replace(kept, dataset={**kept.dataset, "fingerprint": "0"}))
    with pytest.raises(InputError, match="no row"):
        with_accuracy(timed, replace(kept, machine={**kept.machine, "cpu": "another"}))


def test_resampling_keeps_rounds_together() -> None:
    from vitdeploy.bench.compare import _resampled
    from vitdeploy.bench.report import Latency

    samples = tuple(float(number // 5) for number in range(50))  # calls of one round are equal
    drawn = _resampled(Latency(1, 1, 1, 1, 1, 1, 1, samples, 5), 0)
    assert drawn.shape == (1000, 50) and np.all(drawn.reshape(1000, 10, 5).std(axis=2) == 0)
