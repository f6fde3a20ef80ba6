"""Load: on a clock of its own what callers see can be computed by hand; in threads they are really there at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.tools.forms import Clock, KnownRunner, Pictures, form
from vitdeploy.bench.latency import WallClock
from vitdeploy.bench.load import ClosedLoop, LoadRun, OpenLoop, arrivals, closed_loop, open_loop
from vitdeploy.bench.measurement import Benchmark
from vitdeploy.evaluation.statistics import percentiles
from vitdeploy.report.settings import BenchSettings


def taking(clock: Clock, milliseconds: float, stall_at: int | None = None) -> Any:
    """A call that takes its time, and half a second longer at one place."""

    def call(number: int) -> None:
        clock.seconds += (milliseconds + (500 if number == stall_at else 0)) / 1000

    return call


def test_a_stall_is_charged_to_every_request_that_waited_for_it() -> None:
    clock, found = Clock(), OpenLoop(rate=50, callers=1)
    open_loop(taking(clock, 5, stall_at=100), 50, 1, 10, clock, found, seed=1)
    true, naive = percentiles(found.latency_ms), percentiles(found.service_ms)
    # 25 of some 500 requests were due during the stall. Counted from when they were begun, one sample shows it.
    assert sum(value > 50 for value in found.service_ms) == 1
    assert 20 <= sum(value > 50 for value in found.latency_ms) <= 45
    assert naive["p99"] == pytest.approx(5) and true["p99"] > 300
    assert found.keeps_up


def test_waiting_is_what_queueing_theory_says() -> None:
    clock, found = Clock(), OpenLoop(rate=50, callers=1)
    open_loop(taking(clock, 10), 50, 1, 400, clock, found, seed=2)
    # M/D/1 at half load: mean wait = rho / (2 (1 - rho)) services = 5 ms. Some 20,000 requests, autocorrelated: 10 %.
    waits = np.asarray(found.latency_ms) - np.asarray(found.service_ms)
    assert waits.mean() == pytest.approx(5, rel=0.1)


def test_each_latency_is_that_of_a_queue_by_hand() -> None:
    clock, found = Clock(), OpenLoop(rate=80, callers=1)
    clock.seconds = 100.0  # a clock begins anywhere
    open_loop(taking(clock, 10), 80, 1, 5, clock, found, seed=4)
    free, wanted = 0.0, []
    for due in arrivals(80, 5, 4):
        free = max(free, due) + 0.010
        wanted.append(1000 * (free - due))
    assert found.latency_ms == pytest.approx(wanted) and max(wanted) > 20
    assert found.service_ms == pytest.approx([10] * len(wanted)) and found.seconds == 5


@pytest.mark.parametrize(("rate", "keeps_up"), [(50, True), (90, True), (110, False), (400, False)])
def test_a_rate_beyond_what_it_can_do_is_told(rate: float, keeps_up: bool) -> None:
    clock, found = Clock(), OpenLoop(rate=rate, callers=1)
    for turn in range(3):
        open_loop(taking(clock, 10), rate, 1, 20, clock, found, seed=turn)
    assert found.keeps_up is keeps_up


def test_arrivals_are_seeded_random_and_have_the_rate() -> None:
    moments = arrivals(20, 500, 3)
    assert moments == arrivals(20, 500, 3) != arrivals(20, 500, 4)
    assert len(moments) == pytest.approx(10_000, rel=0.03) and moments == sorted(moments) and moments[-1] < 500
    gaps = np.diff(moments)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential


def test_a_closed_loop_counts_what_was_finished_in_its_time() -> None:
    clock, found = Clock(), ClosedLoop(1)
    closed_loop(taking(clock, 8), 1, 2.0, clock, found)
    assert found.finished == 250 and found.seconds == pytest.approx(2.0) and len(found.latency_ms) == 250


def test_callers_are_there_at_the_same_time() -> None:
    together, numbers = threading.Barrier(3, timeout=60), []

    def call(number: int) -> None:
        if number < 3:
            together.wait()  # breaks, and raises, unless three are in here
        numbers.append(number)

    closed_loop(call, 3, 0.02, WallClock(), ClosedLoop(3))
    assert {0, 1, 2} <= set(numbers) and len(numbers) == len(set(numbers))


def test_an_error_of_one_caller_stops_the_others_and_is_raised() -> None:
    def call(number: int) -> None:
        if number == 1:
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        closed_loop(call, 2, 60, WallClock(), ClosedLoop(2))


def test_ctrl_c_is_raised_when_nobody_calls_any_more() -> None:
    """Whoever takes it closes the form."""
    begun, ended = list[int](), list[int]()

    def call(number: int) -> None:
        begun.append(number)
        if number == 20:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        closed_loop(call, 3, 3600, WallClock(), ClosedLoop(3))
    assert 20 in begun and sorted(begun) == sorted(ended)


@pytest.mark.parametrize(("stops_at", "seconds"), [(50, 0.5), (150, 1.5)])
def test_an_interrupted_loop_counts_the_time_it_had(stops_at: int, seconds: float) -> None:
    """In its first second there is no rate to be had otherwise, and later too high a one."""
    clock, closed, opened = Clock(), ClosedLoop(1), OpenLoop(rate=100, callers=1)

    def call(number: int) -> None:
        if len(closed.latency_ms) == stops_at or len(opened.latency_ms) == stops_at:
            raise KeyboardInterrupt
        clock.seconds += 0.01

    with pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            closed_loop(call, 1, 1.0, clock, closed)
    assert closed.finished == stops_at and closed.seconds == pytest.approx(seconds)
    closed.latency_ms.clear()
    with pytest.raises(KeyboardInterrupt):
        for turn in range(2):
            open_loop(call, 100, 1, 1.0, clock, opened, seed=turn)
    assert opened.seconds == pytest.approx(seconds, rel=0.25)


def test_a_report_of_an_interrupted_load_has_the_rate_that_was() -> None:
    clock, images = Clock(), Pictures(20, 4)
    runner = KnownRunner(clock, 4)
    settings = BenchSettings(rounds=2, accuracy=False, memory=False, phases=False, callers=(1,), load_seconds=3)
    benchmark = Benchmark([form("fp32", "pytorch", runner)], images, 4, settings, clock=clock)
    runner.breaks_after, runner.raises = 60, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        benchmark.run()
    (loop,) = benchmark.measurements["fp32/pytorch"].closed
    assert 20 < loop.finished < 60 and loop.finished / loop.seconds == pytest.approx(100, rel=0.05)


def test_a_form_that_fails_under_load_does_not_stop_the_others() -> None:
    clock = Clock()

    def breaks(number: int) -> None:
        raise RuntimeError("gone")

    run = LoadRun({"bad": breaks, "good": taking(clock, 10)}, callers=(1,), rates=(10.0,), seconds=3, clock=clock)
    run.run()
    assert str(run.failures["bad"]) == "gone" and "bad" not in run.closed
    assert run.closed["good"][0].finished == pytest.approx(300, abs=3) and run.open["good"][0].seconds == 3


@pytest.mark.parametrize(("rate", "keeps_up"), [(105, False), (85, True)])
def test_a_little_overload_is_seen_in_a_short_run(rate: float, keeps_up: bool) -> None:
    found = 0
    for seed in range(40):
        clock, draw = Clock(), np.random.default_rng(seed)

        def call(number: int, clock: Clock = clock, draw: np.random.Generator = draw) -> None:
            clock.seconds += 0.010 * float(draw.lognormal(0, 0.05))

        loop = OpenLoop(rate, 1)
        for turn in range(3):
            open_loop(call, rate, 1, 2.0, clock, loop, seed=3 * seed + turn)
        found += loop.keeps_up is keeps_up
    assert found >= 38


def test_the_judge_puts_forms_under_load() -> None:
    clock, images = Clock(), Pictures(20, 4)
    forms = [
        form("fp32", "pytorch", KnownRunner(clock, 4, takes_ms=lambda: 20.0)),
        form("int8", "openvino", KnownRunner(clock, 4, takes_ms=lambda: 5.0)),
    ]
    settings = BenchSettings(rounds=3, callers=(1,), rates=(60.0,), load_seconds=6)
    benchmark = Benchmark(forms, images, 4, settings, clock=clock)
    benchmark.run()
    slow, fast = benchmark.measurements["fp32/pytorch"], benchmark.measurements["int8/openvino"]
    assert fast.closed[0].finished == pytest.approx(4 * slow.closed[0].finished, rel=0.02)
    assert fast.open[0].keeps_up and not slow.open[0].keeps_up
