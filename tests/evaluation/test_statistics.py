"""Intervals and tests against published or independently computed values, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.evaluation.statistics import (
    calibration_error,
    drop_bound,
    mcnemar_exact,
    paired_difference,
    percentiles,
    softmax,
    speedup,
    wilson,
)


def test_wilson_has_the_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, and 15 of 148, and 0 of 20 and 1 of 29; printed to 4 digits.
    for successes, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share_and_stays_a_share(count: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, count))
    low, high = wilson(successes, count)
    assert 0 <= low <= successes / count <= high <= 1


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2), (0, 0)])
def test_impossible_successes_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(*counts)


@pytest.mark.parametrize("counts", [(2, 2, 3), (-1, 2, 3), (2, -1, 3), (0, 0, 0), (0, 4, 3)])
def test_impossible_pairs_are_refused(counts: tuple[int, int, int]) -> None:
    for statistic in (paired_difference, drop_bound):
        with pytest.raises(ValueError, match="impossible"):
            statistic(*counts)


def test_what_is_just_possible_is_taken() -> None:
    assert wilson(0, 1)[0] == 0 and wilson(1, 1)[1] == 1
    for counts in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (2, 1, 3)):
        change, (low, high) = paired_difference(*counts)
        assert -1 <= low <= change <= high <= 1 and -1 <= -change <= drop_bound(*counts) <= 1


def test_mcnemar_is_the_sign_test() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    # 2 * (1 + 10 + 45) / 2**10, by hand.
    assert mcnemar_exact(2, 8) == pytest.approx(2 * 56 / 1024, rel=1e-12)
    assert mcnemar_exact(8, 2) == mcnemar_exact(2, 8)


def test_mcnemar_is_exact_where_floats_would_overflow() -> None:
    # 3,000 discordant images: 2**3000 is no float. The normal approximation is good to 2 % here.
    z = (1600 - 1400 - 1) / math.sqrt(3000)
    assert mcnemar_exact(1400, 1600) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


def test_paired_difference_by_hand() -> None:
    # Bonett and Price: lost (30 + 1) / 1002, won (10 + 1) / 1002.
    change, (low, high) = paired_difference(30, 10, 1000)
    centre, spread = -20 / 1002, math.sqrt((42 / 1002 - (20 / 1002) ** 2) / 1002)
    assert change == pytest.approx(-0.02)
    assert (low, high) == pytest.approx((centre - 1.959964 * spread, centre + 1.959964 * spread), abs=1e-8)


def test_paired_difference_of_equal_forms_still_has_a_width() -> None:
    change, (low, high) = paired_difference(0, 0, 100)
    assert change == 0 and low < 0 < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(2 / 102 / 102), rel=1e-3)


def test_paired_interval_covers_as_promised() -> None:
    # 2,000 simulated comparisons with a true loss of 1.5 points; 95 % +- 1.5 (three standard errors).
    draws = np.random.default_rng(0).multinomial(800, [0.03, 0.015, 0.955], size=2000)
    inside = sum(low <= -0.015 <= high for low, high in (paired_difference(b, c, 800)[1] for b, c, _ in draws.tolist()))
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)
    unpaired = sum(low <= 0 <= high for low, high in (paired_difference(b, c, 800)[1] for b, c, _ in draws.tolist()))
    assert unpaired / 2000 < 0.6  # the negative twin: a wrong value is not covered


@pytest.mark.parametrize(
    ("count", "lost", "won"),
    [(300, 0.01, 0.0), (300, 0.03, 0.0), (500, 0.03, 0.02), (1000, 0.1, 0.09), (100, 0.03, 0.01)],
)
def test_the_bound_of_a_drop_is_seldom_below_the_truth(count: int, lost: float, won: float) -> None:
    draws = np.random.default_rng(1).multinomial(count, [lost, won, 1 - lost - won], 2000)
    held = sum(drop_bound(int(b), int(c), count) >= lost - won - 1e-12 for b, c, _ in draws)
    assert held / 2000 >= 0.94  # 95 %, less what 2,000 trials leave open


def test_the_bound_of_a_drop_has_known_values() -> None:
    assert drop_bound(0, 0, 100) == pytest.approx(1.645**2 / (100 + 1.645**2), rel=1e-3)
    assert drop_bound(0, 0, 1000) < drop_bound(5, 5, 1000) < drop_bound(10, 5, 1000) < 0.02
    # With many of both it is the normal bound.
    assert drop_bound(1000, 1000, 10**6) == pytest.approx(1.645 * 2000**0.5 / 10**6, rel=0.01)
    with pytest.raises(ValueError, match="impossible"):
        drop_bound(3, 0, 2)


def test_speedup_is_the_median_ratio_of_rounds() -> None:
    ratio, interval = speedup([10, 30, 20, 40, 10, 30], [5, 10, 10, 20, 5, 10])
    assert ratio == 2.0 and interval is not None and interval[0] <= 2.0 <= interval[1]
    assert speedup([10, 30, 20, 40, 10], [5, 10, 10, 20, 5]) == (2.0, None)  # too few for an interval
    with pytest.raises(ValueError, match="same rounds"):
        speedup([1.0], [1.0, 2.0])


def test_speedup_pairs_within_rounds() -> None:
    # A machine that becomes ten times slower half way: the ratio per round does not see it.
    slow = np.concatenate([np.ones(20), np.full(20, 10.0)])
    ratio, (low, high) = speedup(list(30 * slow), list(10 * slow))
    assert (ratio, low, high) == pytest.approx((3.0, 3.0, 3.0), rel=1e-12)


@pytest.mark.parametrize("sizes", [(1.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("rounds", [6, 10, 50])
def test_the_interval_of_a_speedup_covers_the_truth(rounds: int, sizes: tuple[float, float]) -> None:
    draw = np.random.default_rng(rounds)
    held = 0
    for _ in range(600):
        shared = np.exp(np.cumsum(draw.normal(0, 0.05, rounds)))  # what slows one form slows the other
        base, form = (draw.lognormal(0, 0.05 * size, rounds) * shared for size in sizes)
        interval = speedup(list(20 * base), list(8 * form))[1]
        assert interval is not None
        held += interval[0] <= 2.5 <= interval[1]
    assert held / 600 >= 0.93


def test_percentiles_interpolate() -> None:
    found = percentiles(list(range(201)))
    assert found == {"p50": 100, "p90": 180, "p95": 190, "p99": 198, "min": 0, "mean": 100}


@pytest.mark.parametrize(("percentile", "least"), [("p90", 20), ("p95", 40), ("p99", 200)])
def test_a_percentile_of_too_few_calls_is_none(percentile: str, least: int) -> None:
    assert percentiles(list(range(least)))[percentile] is not None
    assert percentiles(list(range(least - 1)))[percentile] is None


def test_softmax_survives_large_scores() -> None:
    assert softmax(np.array([[1e4, 1e4]], np.float32)).tolist() == [[0.5, 0.5]]


def test_calibration_error_is_overconfidence() -> None:
    # Ten answers with confidence 1 of which six are right: 0.4.
    logits = np.zeros((10, 2), np.float32)
    logits[:, 0] = 100
    labels = np.array([0] * 6 + [1] * 4)
    assert calibration_error(logits, labels) == pytest.approx(0.4, abs=1e-9)
    assert calibration_error(logits, np.zeros(10, np.int64)) == pytest.approx(0, abs=1e-9)
