"""The clock: on an injected one every time is known, so what it reports can be checked exactly."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from tests.bench.forms_for_tests import Clock
from vitdeploy.bench.latency import LatencyRun, LatencySettings, Track
from vitdeploy.bench.statistics import percentiles, speedup


def taking(clock: Clock, milliseconds: float, seed: int = 0, noise: float = 0.05):
    """A call that moves the clock by `milliseconds`, with log-normal noise."""
    draw = np.random.default_rng(seed)

    def call(number: int) -> None:
        clock.seconds += milliseconds * float(draw.lognormal(0, noise)) / 1000

    return call


def measured(calls, clock: Clock, **settings: object) -> LatencyRun:
    run = LatencyRun(calls, LatencySettings(**settings), clock=clock)
    run.run()
    return run


def test_a_delay_of_5_ms_is_measured_as_5_ms() -> None:
    clock = Clock()
    run = measured({"plain": taking(clock, 20, 1), "late": taking(clock, 25, 2)}, clock, rounds=100)
    medians = {name: percentiles(track.samples_ms)["p50"] for name, track in run.tracks.items()}
    # Noise of 5 % on 20 ms over 200 samples: the median's standard error is 0.09 ms.
    assert medians["late"] - medians["plain"] == pytest.approx(5, abs=0.5)


def test_a_real_sleep_is_never_measured_as_less() -> None:
    run = LatencyRun({"sleeps": lambda number: time.sleep(0.005)}, LatencySettings(rounds=3, warmup_seconds=0.01))
    run.run()
    assert min(run.tracks["sleeps"].samples_ms) >= 5.0  # sleep never ends early; how late it ends is not our matter


def test_two_copies_have_a_ratio_that_may_be_1() -> None:
    clock = Clock()
    run = measured({"a": taking(clock, 20, 3), "b": taking(clock, 20, 4)}, clock, rounds=60)
    own, other = run.tracks["a"].paired_with(run.tracks["b"])
    _, (low, high) = speedup(other, own)
    assert low <= 1 <= high
    slower = measured({"a": taking(clock, 22, 3), "b": taking(clock, 20, 4)}, clock, rounds=60)
    own, other = slower.tracks["a"].paired_with(slower.tracks["b"])
    assert speedup(other, own)[1][1] < 1  # the negative twin: 10 % slower is seen


def test_drift_hits_all_forms_alike() -> None:
    clock, calls = Clock(), 0

    def drifting(milliseconds: float):
        def call(number: int) -> None:
            nonlocal calls
            calls += 1
            clock.seconds += milliseconds * (1 + calls / 1000) / 1000

        return call

    run = measured({"a": drifting(10), "b": drifting(30)}, clock, rounds=80)
    own, other = run.tracks["a"].paired_with(run.tracks["b"])
    assert speedup(other, own)[0] == pytest.approx(3, rel=0.01)
    noise = run.tracks["a"].noise()
    assert noise is not None and "slower" in noise


def test_rounds_are_interleaved_in_an_order_that_changes_and_is_seeded() -> None:
    def order(seed: int) -> list[str]:
        clock, seen = Clock(), []

        def call(name: str):
            def run(number: int) -> None:
                seen.append(name)
                clock.seconds += 0.1

            return run

        measured({name: call(name) for name in "abc"}, clock, rounds=8, calls_per_round=1, warmup_seconds=0, seed=seed)
        return seen[9:]  # after three warm-up calls each

    first = order(1)
    rounds = [tuple(first[i : i + 6 : 2]) for i in range(0, len(first), 6)]
    assert all(sorted(visit) == ["a", "b", "c"] for visit in rounds) and len(rounds) == 8
    assert len(set(rounds)) > 1
    assert order(1) == first != order(2)


def test_the_call_after_a_change_of_form_is_not_kept() -> None:
    clock, last = Clock(), [""]

    def call(name: str):
        def run(number: int) -> None:
            clock.seconds += 0.010 if last[0] == name else 0.500
            last[0] = name

        return run

    run = measured({"a": call("a"), "b": call("b")}, clock, rounds=5)
    assert max(run.tracks["a"].samples_ms + run.tracks["b"].samples_ms) == pytest.approx(10)


def test_forms_of_one_round_are_given_the_same_images() -> None:
    clock, numbers = Clock(), {"a": [], "b": []}

    def call(name: str):
        def run(number: int) -> None:
            numbers[name].append(number)
            clock.seconds += 0.012

        return run

    measured({"a": call("a"), "b": call("b")}, clock, rounds=4)
    assert numbers["a"] == numbers["b"]


def test_warm_up_goes_on_until_the_time_is_stable() -> None:
    clock, calls = Clock(), 0

    def warming(number: int) -> None:
        nonlocal calls
        calls += 1
        clock.seconds += 0.010 + 0.090 * 0.8**calls

    run = measured({"a": warming}, clock, rounds=10)
    track = run.tracks["a"]
    assert track.warmup_stable and track.warmup_calls > 15
    assert max(track.samples_ms) < 11  # nothing of the warm-up was kept
    assert track.noise() is None


def test_a_form_that_never_settles_is_called_noisy() -> None:
    clock, calls = Clock(), 0

    def growing(number: int) -> None:
        nonlocal calls
        calls += 1
        clock.seconds += 0.1 * 1.2**calls

    noise = measured({"a": growing}, clock, rounds=2).tracks["a"].noise()
    assert noise is not None and "warm-up" in noise


def test_a_wide_spread_is_called_noisy() -> None:
    track = Track("a", rounds={i: (10.0 if i % 4 else 40.0,) for i in range(40)}, warmup_stable=True)
    noise = track.noise()
    assert noise is not None and "p90" in noise


def test_a_form_that_fails_does_not_stop_the_others() -> None:
    clock = Clock()
    good, calls = taking(clock, 10), 0

    def breaking(number: int) -> None:
        nonlocal calls
        calls += 1
        clock.seconds += 0.01
        if calls > 30:
            raise RuntimeError("gone")

    run = measured({"bad": breaking, "good": good}, clock, rounds=20)
    assert str(run.failures["bad"]) == "gone" and "bad" not in run.tracks
    assert len(run.tracks["good"].rounds) == 20


def test_what_was_measured_survives_an_interruption() -> None:
    clock, calls = Clock(), 0

    def interrupted(number: int) -> None:
        nonlocal calls
        calls += 1
        clock.seconds += 0.01
        if calls > 40:
            raise KeyboardInterrupt

    run = LatencyRun({"a": interrupted, "b": taking(clock, 10)}, LatencySettings(rounds=50), clock=clock)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    own, other = run.tracks["a"].paired_with(run.tracks["b"])
    assert 0 < len(own) == len(other) < 50


def test_time_limits_the_rounds_but_not_below_the_least() -> None:
    clock = Clock()
    calls = {"a": taking(clock, 1000)}
    assert len(measured(calls, clock, rounds=50, max_seconds=1, min_rounds=7).tracks["a"].rounds) == 7
    assert len(measured(calls, clock, rounds=50, max_seconds=60, min_rounds=7).tracks["a"].rounds) in range(25, 40)


def test_a_visit_keeps_as_many_calls_as_fit() -> None:
    clock = Clock()
    run = measured({"fast": taking(clock, 1), "slow": taking(clock, 300)}, clock, rounds=10, calls_per_round=5)
    assert [run.tracks[name].calls_per_round for name in ("fast", "slow")] == [5, 1]
    assert len(run.tracks["fast"].samples_ms) == 50


@pytest.mark.parametrize("made_of_it", [None, RuntimeError("stopped")], ids=["nothing", "another error"])
def test_an_interrupt_that_a_form_swallows_ends_the_run(made_of_it: Exception | None) -> None:
    def swallows(number: int) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if made_of_it is not None:
                raise made_of_it from None

    clock = Clock()
    run = LatencyRun({"plain": taking(clock, 20), "swallows": swallows}, LatencySettings(rounds=3), clock=clock)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert "plain" in run.tracks and not run.failures and signal.getsignal(signal.SIGINT) is before
