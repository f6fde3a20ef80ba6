"""Whole benchmarks of runners whose times and answers are known: what the report must say about them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tools.forms import CLASSES, Clock, KnownRunner, Pictures, form, noisy, report_on
from vitdeploy.bench import measurement
from vitdeploy.bench.measurement import Benchmark, batch_feeds, typical_images
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import markdown
from vitdeploy.report.recommendation import recommended
from vitdeploy.report.records import BenchReport, Ratio
from vitdeploy.report.settings import BenchSettings


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
    assert late.latency.ms.p50 - base.latency.ms.p50 == pytest.approx(5, abs=0.5)  # type: ignore[union-attr]
    assert copy.latency.speedup.ci95[0] <= 1 <= copy.latency.speedup.ci95[1]  # type: ignore[union-attr, index]
    assert flipped.latency.speedup.ratio == pytest.approx(2, rel=0.03)  # type: ignore[union-attr]
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
        [form("fp32", "pytorch", KnownRunner(clock, CLASSES)), form("fp32", "openvino", unsteady)], clock, latency=False
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


def test_a_baseline_that_fails_while_it_is_timed_is_still_compared_with() -> None:
    clock = Clock()
    report = report_on(
        [
            form("fp32", "pytorch", KnownRunner(clock, CLASSES, max_batch=4)),
            form("int8", "openvino", KnownRunner(clock, CLASSES, flip=lambda n: True)),
        ],
        clock,
        batch_sizes=(1, 8),
        accuracy_batch=4,
    )
    base, int8 = report.rows
    assert base.status == "failed" and "batch 8" in (base.reason or "") and base.accuracy is not None
    assert int8.accuracy.delta == -1 and int8.latencies[0].speedup is not None  # type: ignore[union-attr]
    assert int8.latencies[1].speedup is None and report.recommendation["key"] is None


def test_a_form_that_nothing_is_compared_with_is_not_recommended() -> None:
    clock = Clock()
    broken = KnownRunner(clock, CLASSES, breaks_after=220)  # after it was timed
    wrong = KnownRunner(clock, CLASSES, flip=lambda n: True)
    report = report_on([form("fp32", "pytorch", broken), form("int8", "openvino", wrong)], clock)
    assert report.rows[0].status == "failed" and report.rows[0].latencies and report.rows[0].accuracy is None
    assert report.rows[1].accuracy.delta is None and report.recommendation["key"] is None  # type: ignore[union-attr]
    assert "was not compared" in report.rows[1].outside[0]


@pytest.mark.usefixtures("real_meters")
def test_beside_busy_programs_no_ratio_is_given() -> None:
    """Contention does not cancel: a baseline whose own calls differ by much is no measure."""
    clock, draw = Clock(), np.random.default_rng(0)

    def disturbed() -> float:
        return 20.0 * (30.0 if draw.random() < 0.3 else 1.0)

    forms = [
        form("fp32", "pytorch", KnownRunner(clock, CLASSES, takes_ms=disturbed)),
        form("int8", "openvino", KnownRunner(clock, CLASSES, takes_ms=noisy(10, 1))),
    ]
    report = report_on(forms, clock)
    latency = report.rows[1].latencies[0]
    assert latency.on_demand_speedup is None and latency.steady_speedup is None
    assert "the baseline's own calls differ" in (latency.busy or "")
    sentence = report.recommendation["sentence"]
    assert "The fastest form was not measured: the machine was busy" in sentence and "times as fast" not in sentence
    assert report.recommendation["key"] is None and not any(row.on_front for row in report.rows)
    smallest = recommended(replace(report, settings=replace(report.settings, prefer="size")))
    assert smallest.recommendation["key"] == report.rows[1].key
    assert "the smallest form" in smallest.recommendation["sentence"]
    assert "Its speed-up was not measured" in smallest.recommendation["sentence"]
    assert "not measured: the machine was busy" in render_html(report) and "busy" in markdown(report)
    assert report.to_json()["rows"][1]["latencies"][0]["busy"] == latency.busy and report.noisy


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
    apart = report_on(opened, other, open_bytes=1)
    assert [row.accuracy for row in together.rows] == [row.accuracy for row in apart.rows]
    assert apart.rows[2].latency.speedup.ratio == pytest.approx(1 / 3, rel=0.03)  # type: ignore[union-attr]
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

    monkeypatch.setattr("vitdeploy.bench.measurement.BusyMeter", Busy)
    runner = KnownRunner(Clock(), CLASSES, breaks_after=60, raises=KeyboardInterrupt())
    settings = BenchSettings(rounds=1000, rest_seconds=0.0, warmup_seconds=0.01)
    benchmark = Benchmark([form("int8", "openvino", runner)], Pictures(20, CLASSES), CLASSES, settings)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run()
    assert benchmark.measurements["int8/openvino"].tracks and benchmark.other_share == 0.5


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
        times = row["latencies"][0]["on_demand_ms"]
        assert np.percentile(times["samples"], 95) == pytest.approx(times["p95"], rel=1e-12)
        assert times["p99"] is None and times["count"] == 40  # p99 of 40 calls would be the slowest one


@pytest.mark.parametrize(
    ("batch_sizes", "where"), [((1,), ["batch 1"]), ((2, 8), ["batch 2 of 4x6", "batch 8 of 4x6"])]
)
def test_noise_names_the_form_and_where_there_are_several_the_size(batch_sizes: Any, where: list[str]) -> None:
    """Calls of which every seventh takes four times as long."""
    clock, calls, images = Clock(), itertools.count(), Pictures(40, CLASSES, ((4, 6),))
    unsteady = KnownRunner(clock, CLASSES, takes_ms=lambda: 40.0 if next(calls) % 7 == 0 else 10.0)
    asked: dict[str, Any] = {"batch_sizes": batch_sizes, "accuracy": False, "phases": False, "rounds": 30}
    found = report_on([form("int8", "openvino", unsteady)], clock, images, **asked)
    said = [line.partition(": ")[0] for line in found.noise if line.startswith("int8")]
    assert said == [f"int8/openvino, {at}" for at in where]


def test_a_form_that_failed_is_timed_no_more() -> None:
    clock, images = Clock(), Pictures(40, CLASSES, ((4, 6),))
    breaks = KnownRunner(clock, CLASSES, breaks_after=30)
    forms = [form("fp32", "pytorch", KnownRunner(clock, CLASSES)), form("int8", "openvino", breaks)]
    found = report_on(forms, clock, images, batch_sizes=(1, 4), callers=(1,), accuracy=False, rounds=20, load_seconds=3)
    row = found.row("int8/openvino")
    assert row.status == "failed" and str(row.reason).startswith("batch 1 of 4x6: RuntimeError")
    assert breaks.calls == 31 and found.row("fp32/pytorch").load.closed


def test_rates_are_of_images_and_not_of_calls() -> None:
    """Batches of four, 20 ms each of one form and 5 ms of the other, alone and with two callers."""
    clock = Clock()
    forms = [
        form("fp32", "pytorch", KnownRunner(clock, CLASSES, takes_ms=lambda: 20.0)),
        form("int8", "openvino", KnownRunner(clock, CLASSES, takes_ms=lambda: 5.0)),
    ]
    asked: dict[str, Any] = {"batch_sizes": (4, 1), "callers": (1,), "load_seconds": 3, "phases": False, "rounds": 8}
    base, fast = report_on(forms, clock, **asked).rows
    assert [[item.images_per_s for item in row.latencies] for row in (base, fast)] == [
        pytest.approx([200, 50]),
        pytest.approx([800, 200]),
    ]
    assert [row.load.closed[0].images_per_s for row in (base, fast)] == pytest.approx([200, 800])
    for item in fast.latencies:
        assert item.on_demand_speedup == Ratio(pytest.approx(4), (pytest.approx(4), pytest.approx(4)))
        assert item.steady_speedup == item.on_demand_speedup
    assert fast.images_per_s == pytest.approx(800), "the most that was seen"


def test_large_images_are_not_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Pictures(40, 4, ((4, 4), (8, 8), (8, 8)))
    monkeypatch.setattr(measurement, "HELD_BYTES", 300)
    sample = typical_images(images)
    assert 1 <= len(sample) <= 3 and {pixels.shape for pixels in sample} == {(8, 8, 3)}
    assert [len(feeds) for feeds in batch_feeds(sample, 4)] == [4]
    monkeypatch.setattr(measurement, "HELD_BYTES", 3 * 192)  # three of 8x8
    assert len(typical_images(Pictures(40, 4, ((8, 8),)))) == 3
    monkeypatch.setattr(measurement, "HELD_BYTES", 1)
    assert [pixels.shape for pixels in typical_images(images)] == [(8, 8, 3)]


def test_points_of_an_odd_shape_have_the_pixels_of_it() -> None:
    assert measurement.Point(2, (3, 50)).pixels == measurement.Point(2, (50, 3)).pixels == 300


def test_timing_uses_real_images_of_the_usual_size() -> None:
    images = Pictures(90, CLASSES, ((4, 4), (8, 6), (8, 6)))
    sample = typical_images(images)
    assert {pixels.shape for pixels in sample} == {(8, 6, 3)} and 1 < len(sample) <= 16
    assert len({int(pixels[0, 0, 1]) for pixels in sample}) == len(sample)  # different ones, each of the dataset
    feeds = batch_feeds(sample, 4)
    assert all(feed.shape == (4, 8, 6, 3) for feed in feeds) and len(feeds) > 1


class OnGpu(KnownRunner):
    """A runner on a GPU: the GPU itself says half of the time; `graphs` as an engine's runner says it."""

    def __init__(self, clock: Clock, takes_ms: float, graphs: dict[str, Any] | None = None) -> None:
        super().__init__(clock, CLASSES, takes_ms=lambda: takes_ms)
        self.device_ms = takes_ms / 2
        if graphs is not None:
            self.cuda_graphs = graphs

    def prepare(self, images: Any) -> Any:
        return images

    def infer_prepared(self, images: Any) -> Any:
        self.clock.seconds -= self.takes_ms() / 2000  # as long as without the image processor
        return self.infer({"image": images})


def on_gpu(mhz: list[float], **settings: Any) -> BenchReport:
    clock, cuda = Clock(), {"device": "cuda"}
    captured = {"by": "vitdeploy", "kept": 2, "why_not": None}
    refused = {"by": "vitdeploy", "kept": 0, "why_not": "the GPU is out of memory"}
    forms = [
        form("fp32", "pytorch", OnGpu(clock, 20), **cuda),
        form("fp32-tf32", "pytorch", OnGpu(clock, 16), tf32=True, **cuda),
        form("fp16-half-preprocessed", "pytorch", OnGpu(clock, 2), preprocessed=True, **cuda),
        form("fp32", "tensorrt", OnGpu(clock, 8, captured), tf32=True, **cuda),
        form("int8", "tensorrt", OnGpu(clock, 4, refused), **cuda),
    ]
    turns = iter(mhz * 1000)
    return report_on(forms, clock, gpu_clock=lambda: next(turns), **settings)


def test_a_report_of_a_gpu_says_what_its_times_are_of() -> None:
    report = on_gpu([1500.0], keep_gpu_busy=False)
    int8 = report.row("int8/tensorrt")
    assert int8.latency is not None and int8.latency.device_speedup is not None and int8.latency.gpu_mhz == 1500
    assert int8.latency.device_speedup.ratio == pytest.approx(5)
    assert [row.tf32 for row in report.rows] == [False, True, False, True, False]
    assert int8.cuda_graphs is not None and int8.cuda_graphs.why_not == "the GPU is out of memory"
    notes = " | ".join(report.notes)
    assert "fp32-tf32/pytorch-cuda, fp32/tensorrt in TF32; fp32/pytorch-cuda in full FP32" in notes
    assert "CUDA graphs, fp32/tensorrt: captured by vitdeploy" in notes
    assert "CUDA graphs, int8/tensorrt: none: the GPU is out of memory" in notes
    assert "rested 80 ms before its turn" in notes and not report.noisy
    assert "which runs on the CPU (its time is part of the latency" in report.baseline["description"]
    for page in (render_html(report), markdown(report)):
        assert "captured by vitdeploy" in page and "in TF32" in page
    assert "GPU speed-up" in render_html(report) and BenchReport.from_json(report.to_json()) == report
    assert "the GPU was kept busy between turns" in on_gpu([1500.0], keep_gpu_busy=True).notes


def test_a_row_without_the_image_processors_time_is_shown_and_not_recommended() -> None:
    report = on_gpu([1500.0])
    ready = report.row("fp16-half-preprocessed/pytorch-cuda")
    assert ready.latency is not None and ready.latency.ms.p50 == pytest.approx(1)  # half of 2 ms: the fastest of all
    assert not ready.on_front and report.recommendation["key"] == "int8/tensorrt"


def test_clocks_of_the_gpu_that_differ_between_forms_are_flagged() -> None:
    clock, cuda = Clock(), {"device": "cuda"}
    slow, fast = OnGpu(clock, 20), OnGpu(clock, 4)
    last: list[OnGpu] = []
    for runner in (slow, fast):
        answer = runner.infer
        runner.infer = lambda feeds, answer=answer, runner=runner: (last.append(runner), answer(feeds))[1]  # type: ignore[method-assign, misc]
    forms = [form("fp32", "pytorch", slow, **cuda), form("int8", "tensorrt", fast, **cuda)]
    report = report_on(forms, clock, gpu_clock=lambda: 1200.0 if last[-1] is slow else 1980.0)
    (noise,) = report.noise
    assert noise.startswith(
        "batch 1: the GPU's clock was 1200 MHz for fp32/pytorch-cuda and 1980 MHz for int8/tensorrt"
    )
    assert "--keep-gpu-busy" in noise
    assert [row.latency.gpu_mhz for row in report.rows if row.latency] == [1200.0, 1980.0]
