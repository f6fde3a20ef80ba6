"""The clock: on an injected one every time is known, so what it reports can be checked exactly."""

from __future__ import annotations

import gc
import signal
import time
import weakref
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest

from tests.tools.forms import Clock
from vitdeploy.bench import latency
from vitdeploy.bench.latency import LatencyRun, Track, Visit
from vitdeploy.core import progress
from vitdeploy.evaluation.statistics import percentiles, speedup
from vitdeploy.report.settings import BenchSettings

pytestmark = pytest.mark.usefixtures("real_meters")


def taking(clock: Clock, milliseconds: float, seed: int = 0, noise: float = 0.05):
    """A call that moves the clock by `milliseconds`, with log-normal noise."""
    draw = np.random.default_rng(seed)

    def call(number: int) -> None:
        clock.seconds += milliseconds * float(draw.lognormal(0, noise)) / 1000

    return call


def measured(calls, clock: Clock, **settings: object) -> LatencyRun:
    run = LatencyRun(calls, BenchSettings(**settings), clock=clock)
    run.run()
    return run


def test_a_delay_of_5_ms_is_measured_as_5_ms() -> None:
    clock = Clock()
    run = measured({"plain": taking(clock, 20, 1), "late": taking(clock, 25, 2)}, clock, rounds=100)
    medians = {name: percentiles(track.on_demand_ms)["p50"] for name, track in run.tracks.items()}
    # Noise of 5 % on 20 ms over 200 samples: the median's standard error is 0.09 ms.
    assert medians["late"] - medians["plain"] == pytest.approx(5, abs=0.5)


def test_a_real_sleep_is_never_measured_as_less() -> None:
    run = LatencyRun({"sleeps": lambda number: time.sleep(0.005)}, BenchSettings(rounds=3, warmup_seconds=0.01))
    run.run()
    assert (
        min(run.tracks["sleeps"].on_demand_ms + run.tracks["sleeps"].steady_ms) >= 5.0
    )  # sleep never ends early; how late it ends is not our matter


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

        measured({name: call(name) for name in "abc"}, clock, rounds=8, steady_calls=1, warmup_seconds=0, seed=seed)
        return seen[9:]  # after three warm-up calls each; a visit is three calls

    first = order(1)
    rounds = [tuple(first[i : i + 9 : 3]) for i in range(0, len(first), 9)]
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
    assert max(run.tracks["a"].on_demand_ms + run.tracks["b"].on_demand_ms) == pytest.approx(10)


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
    assert max(track.on_demand_ms) < 11  # nothing of the warm-up was kept
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
    track = Track("a", rounds={i: Visit(10.0 if i % 4 else 40.0, ()) for i in range(40)}, warmup_stable=True)
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

    run = LatencyRun({"a": interrupted, "b": taking(clock, 10)}, BenchSettings(rounds=50), clock=clock)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    own, other = run.tracks["a"].paired_with(run.tracks["b"])
    assert 0 < len(own) == len(other) < 50


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([10.0] * 8 + [50.0] * 2, "p90 is 5.0 times p50"),
        ([10.0] * 7 + [50.0] * 2, None),  # of nine calls p90 is told by the slowest two
        ([10.0] * 18 + [50.0] * 2, None),  # p90 is 14: between the 18th and the 19th, a tenth of the way
        ([10.0] * 8 + [20.0] * 2, None),  # twice is still steady
        ([10.0] * 8 + [20.1] * 2, "p90 is 2.0 times p50"),
    ],
)
def test_a_baseline_is_unsteady_where_a_tenth_of_its_calls_takes_more_than_twice_as_long(
    times: list[float], said: str | None
) -> None:
    track = Track("a", {place: Visit(ms, (ms,)) for place, ms in enumerate(times)})
    assert track.unsteady() == (said and f"the baseline's own calls differ: {said}")


def test_the_garbage_collector_is_given_its_due_before_a_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded is frozen out of its walks, and garbage that is there already is not frozen with it."""
    monkeypatch.setattr(latency, "gc", gc)

    class Cycle:
        pass

    garbage, clock, frozen = Cycle(), Clock(), []
    garbage.itself = garbage  # type: ignore[attr-defined]
    known = weakref.ref(garbage)
    gc.disable()
    try:
        del garbage
        assert known() is not None

        def call(number: int) -> None:
            frozen.append((gc.get_freeze_count() > 1000, known() is None))
            clock.seconds += 0.01

        before = gc.get_freeze_count()
        measured({"a": call}, clock, rounds=2)
        assert set(frozen) == {(True, True)} and gc.get_freeze_count() == before == 0
    finally:
        gc.enable()


def test_time_limits_the_rounds_but_not_below_the_least() -> None:
    clock = Clock()
    calls = {"a": taking(clock, 1000)}
    assert len(measured(calls, clock, rounds=50, max_seconds=1, min_rounds=7, steady_calls=1).tracks["a"].rounds) == 7
    assert len(
        measured(calls, clock, rounds=50, max_seconds=60, min_rounds=7, steady_calls=1).tracks["a"].rounds
    ) in range(17, 25)


def test_as_many_calls_are_kept_of_a_fast_form_as_of_a_slow_one() -> None:
    clock = Clock()
    run = measured({"fast": taking(clock, 1), "slow": taking(clock, 300)}, clock, rounds=10)
    for track in run.tracks.values():
        assert (len(track.on_demand_ms), len(track.steady_ms)) == (10, 30)


def test_a_form_that_gets_faster_from_call_to_call_has_two_ratios() -> None:
    clock, last = Clock(), [0.0]

    def warming(number: int) -> None:  # after a rest 20 ms, after another call 10
        clock.seconds += 0.020 if clock.seconds - last[0] > 0.05 else 0.010
        last[0] = clock.seconds

    run = measured({"plain": taking(clock, 40, noise=0), "warming": warming}, clock, rounds=10, steady_calls=3)
    own, plain = run.tracks["warming"], run.tracks["plain"]
    assert speedup(*reversed(own.paired_with(plain)))[0] == pytest.approx(2)
    assert speedup(*reversed(own.paired_with(plain, "steady")))[0] == pytest.approx(4)


class Busy:
    """Other programs use half of the processor until a moment of the clock."""

    def __init__(self, clock: Clock, until: float) -> None:
        self._clock, self._until, self._began = clock, until, clock.seconds

    def other_share(self) -> float:
        return 0.5 if self._began < self._until else 0.01


def beside(clock: Clock, until: float, **settings: object) -> LatencyRun:
    """20 ms a call, 50 while other programs are busy."""

    def call(number: int) -> None:
        clock.seconds += 0.050 if clock.seconds < until else 0.020

    run = LatencyRun({"a": call}, BenchSettings(**settings), clock=clock, meter=lambda: Busy(clock, until))
    run.run()
    return run


def test_busy_rounds_are_made_again() -> None:
    run = beside(Clock(), 6.0, rounds=20, min_rounds=5)
    assert run.busy is None and run.other_share == pytest.approx(0.01)
    assert max(run.tracks["a"].on_demand_ms) == pytest.approx(20) and len(run.tracks["a"].rounds) == 20


def test_progress_never_passes_its_end() -> None:
    class Bar:
        done, ends = 0, [0.0]

        def task(self, description: str, total: float | None, unit: str) -> AbstractContextManager[Bar]:
            self.done, self.ends = 0, [np.inf if total is None else total]
            return nullcontext(self)

        def note(self, message: str) -> None:
            raise AssertionError(message)

        def advance(self, amount: float = 1) -> None:
            self.done += 1
            assert self.done <= self.ends[-1]

        def update(self, *, total: float | None = None, **other: object) -> None:
            self.ends += [] if total is None else [total]

    bar = Bar()
    with progress.use(bar):
        beside(Clock(), 1e9, rounds=20, min_rounds=5)
    assert (bar.done, bar.ends[0], bar.ends[-1]) == (60, 20, 60)


def test_a_machine_that_stays_busy_is_called_that() -> None:
    run = beside(Clock(), 1e9, rounds=20, min_rounds=5)
    assert run.busy == "other programs used 50% of the processor"
    assert len(run.tracks["a"].rounds) == 60  # it did not wait for ever, and what was measured is there
    hurried = beside(Clock(), 1e9, rounds=20, min_rounds=5, max_seconds=0)
    assert hurried.busy and len(hurried.tracks["a"].rounds) == 5


@pytest.mark.parametrize("made_of_it", [None, RuntimeError("stopped")], ids=["nothing", "another error"])
def test_an_interrupt_that_a_form_swallows_ends_the_run(made_of_it: Exception | None) -> None:
    def swallows(number: int) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if made_of_it is not None:
                raise made_of_it from None

    clock = Clock()
    run = LatencyRun({"plain": taking(clock, 20), "swallows": swallows}, BenchSettings(rounds=3), clock=clock)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert "plain" in run.tracks and not run.failures and signal.getsignal(signal.SIGINT) is before


def on_a_gpu(milliseconds: float, gpu_ms: float, clock: Clock, **settings: object) -> tuple[LatencyRun, list[float]]:
    """A form on a GPU at 1,500 MHz, beside one on the CPU; and when the first was called."""
    called: list[float] = []

    def call(number: int) -> float:
        called.append(clock.seconds)
        clock.seconds += milliseconds / 1000
        return gpu_ms

    calls = {"gpu": call, "cpu": taking(clock, 10)}
    wanted = BenchSettings(**{"rounds": 10, **settings})
    run = LatencyRun(calls, wanted, clock=clock, on_gpu=["gpu"], gpu_clock=lambda: 1500.0)
    run.run()
    return run, called


def test_the_gpus_own_times_are_paired_by_round() -> None:
    run, _ = on_a_gpu(4, 2.5, Clock())
    track, cpu = run.tracks["gpu"], run.tracks["cpu"]
    assert track.device_ms == [2.5] * 40 and track.gpu_mhz == 1500
    assert cpu.device_ms == [] and cpu.gpu_mhz is None and track.paired_with(cpu, "device") == ([], [])
    other = Track("b", {index: Visit(9.0, (9.0,), (5.0, 5.0, 5.0)) for index in range(10)}, warmup_stable=True)
    assert speedup(*reversed(track.paired_with(other, "device")))[0] == pytest.approx(2)
    beside_another_program = beside(Clock(), 6.0, rounds=20, min_rounds=5)  # what is left out of wall times is out here
    assert len(beside_another_program.tracks["a"].device_ms) == 0


def test_a_form_on_a_gpu_is_warmed_up_for_a_time_at_least() -> None:
    run, _ = on_a_gpu(4, 2.5, Clock(), gpu_warmup_seconds=1.0)
    assert run.tracks["gpu"].warmup_calls == 250 and run.tracks["gpu"].warmup_stable
    assert run.tracks["cpu"].warmup_calls < 50
    run, _ = on_a_gpu(4, 2.5, Clock(), gpu_warmup_seconds=0.0)
    assert run.tracks["gpu"].warmup_calls == 10


@pytest.mark.parametrize("busy", [False, True])
def test_a_gpu_rests_before_its_turn_or_is_kept_busy(busy: bool) -> None:
    run, called = on_a_gpu(4, 2.5, Clock(), keep_gpu_busy=busy, rest_seconds=0.08, steady_calls=3)
    calls = called[run.tracks["gpu"].warmup_calls :]
    turns = np.split(calls, np.flatnonzero(np.diff(calls) > 0.09) + 1)  # the other form rests 80 ms and computes
    gaps = [max(np.diff(turn)) for turn in turns if len(turn) > 1]
    assert max(gaps) == pytest.approx(0.004 if busy else 0.084)
    assert len(run.tracks["gpu"].device_ms) == 40  # what is kept is as much in both
