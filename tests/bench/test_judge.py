"""Whole benchmarks of runners whose times and answers are known: what the report must say about them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.bench.forms_for_tests import Clock, KnownRunner, Pictures, form
from vitdeploy.bench.judge import Judge, JudgeSettings, batch_feeds, typical_images
from vitdeploy.bench.latency import LatencySettings
from vitdeploy.bench.report import BenchReport
from vitdeploy.bench.run import assemble

CLASSES = 10


def noisy(milliseconds: float, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    return lambda: milliseconds * float(draw.lognormal(0, 0.03))


def report_on(forms: list[Any], clock: Clock, images: Pictures | None = None, **settings: Any) -> BenchReport:
    images = images or Pictures(400, CLASSES)
    settings.setdefault("latency", LatencySettings(rounds=40))
    judge = Judge(forms, images, CLASSES, JudgeSettings(**settings), clock=clock)
    partial = False
    try:
        judge.run()
    except KeyboardInterrupt:
        partial = True
    facts = {
        **{key: {} for key in ("machine", "versions", "dataset", "bundle")},
        "created": "2026-01-01T00:00:00+00:00",
        "labels": images.labels,
        "readings": (),
        "settings": {"max_drop_points": 1.0, "batch_sizes": list(JudgeSettings(**settings).batch_sizes)},
        "partial": partial,
    }
    return assemble(judge, images, images.label_ids, facts)


def test_an_injected_delay_and_flipped_answers_are_found_and_nothing_else() -> None:
    clock = Clock()
    report = report_on(
        [
            form("fp32", "pytorch", KnownRunner(clock, CLASSES, takes_ms=noisy(20, 1))),
            form("fp32", "onnxruntime", KnownRunner(clock, CLASSES, takes_ms=noisy(20, 2))),
            form("fp16", "onnxruntime", KnownRunner(clock, CLASSES, takes_ms=noisy(25, 3))),
            form("int8", "openvino", KnownRunner(clock, CLASSES, takes_ms=noisy(10, 4), flip=lambda n: n % 100 < 3)),
        ],
        clock,
    )
    base, copy, late, flipped = report.rows
    assert late.latency.p50 - base.latency.p50 == pytest.approx(5, abs=0.5)  # type: ignore[union-attr]
    assert copy.latency.speedup_ci95[0] <= 1 <= copy.latency.speedup_ci95[1]  # type: ignore[union-attr, index]
    assert flipped.latency.speedup == pytest.approx(2, rel=0.03)  # type: ignore[union-attr]
    low, high = flipped.accuracy.delta_ci95  # type: ignore[union-attr, misc]
    assert low < -0.03 < high < 0
    assert copy.accuracy.delta == 0 and copy.accuracy.agreement == 1  # type: ignore[union-attr]
    assert base.accuracy.delta is None  # type: ignore[union-attr]
    assert not report.noisy and report.disagreement_count == 12
    # Twice as fast, but three points lost: with a limit of one point it is not what to ship.
    assert report.recommendation["key"] in ("fp32/pytorch", "fp32/onnxruntime")


def test_one_form_that_fails_does_not_stop_the_others() -> None:
    clock = Clock()

    def opens_never() -> Any:
        raise OSError("cannot read /home/ada/bundles/vit/model.onnx")

    broken = form("fp16", "openvino", None)
    broken = type(broken)(broken.form, broken.backend, opens_never, broken.artifact, 10)
    report = report_on(
        [
            form("fp32", "pytorch", KnownRunner(clock, CLASSES)),
            broken,
            form("int8", "openvino", KnownRunner(clock, CLASSES, breaks_after=30)),
            form("int8", "tensorrt", KnownRunner(clock, CLASSES), reason="no NVIDIA GPU here"),
            form("fp16", "onnxruntime", KnownRunner(clock, CLASSES + 1)),
            form("int8", "onnxruntime", KnownRunner(clock, CLASSES)),
        ],
        clock,
    )
    assert [row.status for row in report.rows] == ["ok", "failed", "failed", "skipped", "failed", "ok"]
    reasons = [row.reason or "" for row in report.rows]
    assert reasons[1] == "OSError: cannot read model.onnx"  # and not where it lies
    assert "the device went away" in reasons[2] and "NVIDIA" in reasons[3] and "10 classes" in reasons[4]
    assert report.row("int8/onnxruntime").accuracy.count == 400  # type: ignore[union-attr]


def test_a_form_that_answers_by_chance_is_refused() -> None:
    clock = Clock()
    draw = np.random.default_rng(0)
    unsteady = KnownRunner(clock, CLASSES)
    answer = unsteady.infer
    unsteady.infer = lambda feeds: {"logits": answer(feeds)["logits"] + draw.normal()}  # type: ignore[method-assign]
    report = report_on(
        [form("fp32", "pytorch", KnownRunner(clock, CLASSES)), form("fp32", "openvino", unsteady)], clock, latency=None
    )
    assert [row.status for row in report.rows] == ["ok", "failed"]
    assert "two different answers to the same image" in (report.rows[1].reason or "")
    assert unsteady.open == 0


def test_the_reference_is_the_first_that_opens() -> None:
    clock = Clock()
    report = report_on(
        [
            form("fp32", "pytorch", KnownRunner(clock, CLASSES, breaks_after=0)),
            form("fp32", "onnxruntime", KnownRunner(clock, CLASSES)),
            form("int8", "onnxruntime", KnownRunner(clock, CLASSES)),
        ],
        clock,
    )
    assert report.baseline["key"] == "fp32/onnxruntime" and "no PyTorch" in report.baseline["description"]
    assert report.rows[0].status == "failed" and report.rows[2].accuracy.agreement == 1  # type: ignore[union-attr]


def test_groups_that_fit_the_memory_give_the_same_answers() -> None:
    def forms(clock: Clock) -> list[Any]:
        flips = [lambda n: False, lambda n: n % 7 == 0, lambda n: n % 5 == 0]
        return [
            form(name, "onnxruntime", KnownRunner(clock, CLASSES, takes_ms=noisy(10 * (i + 1), i), flip=flips[i]))
            for i, name in enumerate(("fp32", "fp16", "int8"))
        ]

    clock, other = Clock(), Clock()
    opened = forms(other)
    together = report_on(forms(clock), clock)
    apart = report_on(opened, other, memory_bytes=1)
    assert [row.accuracy for row in together.rows] == [row.accuracy for row in apart.rows]
    assert apart.rows[2].latency.speedup == pytest.approx(1 / 3, rel=0.03)  # type: ignore[union-attr]
    assert all(each.open().open == 0 for each in opened)  # all were closed


def test_an_interruption_keeps_what_was_measured() -> None:
    clock = Clock()
    stops = KnownRunner(clock, CLASSES, breaks_after=230, raises=KeyboardInterrupt())
    report = report_on(
        [form("fp32", "pytorch", KnownRunner(clock, CLASSES)), form("int8", "onnxruntime", stops)],
        clock,
        accuracy_batch=10,
    )
    assert report.partial and [row.status for row in report.rows] == ["ok", "ok"]
    counts = {row.accuracy.count for row in report.rows if row.accuracy}
    assert counts and max(counts) < 400
    assert stops.open == 0


def test_an_interruption_still_tells_what_other_programs_did(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def other_share(self) -> float:
            return 0.5

    monkeypatch.setattr("vitdeploy.bench.judge.BusyMeter", Busy)
    runner = KnownRunner(Clock(), CLASSES, breaks_after=60, raises=KeyboardInterrupt())
    latency = LatencySettings(rounds=1000, rest_seconds=0.0, warmup_seconds=0.01)
    judge = Judge([form("int8", "openvino", runner)], Pictures(20, CLASSES), CLASSES, JudgeSettings(latency=latency))
    with pytest.raises(KeyboardInterrupt):
        judge.run()
    assert judge.findings["int8/openvino"].tracks and judge.other_share == 0.5


def test_other_batch_sizes_have_times_of_their_own() -> None:
    clock = Clock()
    runners = [KnownRunner(clock, CLASSES, takes_ms=lambda: 10.0), KnownRunner(clock, CLASSES, max_batch=4)]
    report = report_on(
        [form("fp32", "pytorch", runners[0]), form("int8", "tensorrt", runners[1])], clock, batch_sizes=(1, 8)
    )
    first, second = report.rows[0].latencies
    assert (first.batch_size, second.batch_size) == (1, 8)
    assert second.images_per_s == pytest.approx(8 * first.images_per_s)
    assert report.rows[1].status == "failed" and "batch 8" in (report.rows[1].reason or "")


def test_the_report_survives_json_and_its_samples_are_enough_to_compute_it_again() -> None:
    clock = Clock()
    report = report_on(
        [
            form("fp32", "pytorch", KnownRunner(clock, CLASSES, takes_ms=noisy(20, 1))),
            form("int8", "onnxruntime", KnownRunner(clock, CLASSES, takes_ms=noisy(10, 2), flip=lambda n: n % 50 == 0)),
            form("int8", "tensorrt", KnownRunner(clock, CLASSES), reason="no NVIDIA GPU here"),
        ],
        clock,
        batch_sizes=(1, 4),
    )
    data = json.loads(report.dumps())
    assert data == json.loads(json.dumps(report.to_json()))
    assert BenchReport.from_json(data) == report
    for row in data["rows"][:2]:
        assert np.percentile(row["latency_ms"]["samples"], 99) == pytest.approx(row["latency_ms"]["p99"], rel=1e-12)


def test_timing_uses_real_images_of_the_usual_size() -> None:
    images = Pictures(90, CLASSES, ((4, 4), (8, 6), (8, 6)))
    sample = typical_images(images)
    assert {pixels.shape for pixels in sample} == {(8, 6, 3)} and 1 < len(sample) <= 16
    assert len({int(pixels[0, 0, 1]) for pixels in sample}) == len(sample)  # different ones, each of the dataset
    feeds = batch_feeds(sample, 4)
    assert all(feed.shape == (4, 8, 6, 3) for feed in feeds) and len(feeds) > 1
