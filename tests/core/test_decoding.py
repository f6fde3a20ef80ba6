"""JSON becomes a typed record, or is refused by the place where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from vitdeploy.core.decoding import decode


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 0


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    pair: tuple[float, float] | None
    shape: tuple[int | str, ...] = ()
    kind: Literal["a", "b"] = "a"
    counts: Mapping[str, int] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)
    on: bool = False
    shares: tuple[Annotated[float, "0..1"] | None, ...] = ()
    change: Annotated[float, "-1..1"] | None = None
    ms: Annotated[float, "ms"] = 0.0


GOOD: dict[str, Any] = {
    "parts": [{"name": "x", "size": 3}, {"name": "y", "of a later version": 1}],
    "pair": [1, 2.5],
    "shape": ["batch", 3],
    "kind": "b",
    "counts": {"n": 1},
    "rest": {"any": [None]},
    "on": True,
}


def test_what_fits_becomes_the_record() -> None:
    made = decode(Whole, GOOD)
    assert made == Whole((Part("x", 3), Part("y")), (1.0, 2.5), ("batch", 3), "b", {"n": 1}, {"any": [None]}, on=True)
    assert type(made.pair[0]) is float
    assert decode(Whole, {"parts": [], "pair": None}) == Whole((), None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"parts": None}, "parts is None, not a list"),
        ({"parts": {"name": "x"}}, "parts is .*, not a list"),
        ({"parts": "xy"}, "parts is 'xy', not a list"),
        ({"parts": [{}]}, r"parts\[0\].name is missing"),
        ({"parts": [{"name": 3}]}, r"parts\[0\].name is 3, not text"),
        ({"parts": [{"name": "x", "size": True}]}, r"parts\[0\].size is True, not a whole number"),
        ({"parts": [{"name": "x", "size": 1.0}]}, r"size is 1.0, not a whole number"),
        ({"pair": [1]}, "pair has 1 entries, not 2"),
        ({"pair": [1, float("nan")]}, r"pair\[1\] is nan, not a finite number"),
        ({"pair": [float("inf"), 1]}, r"pair\[0\] is inf"),
        ({"pair": [10**400, 1]}, r"pair\[0\] is 1000.*\.\.\., not a finite number"),
        ({"pair": [False, 1]}, r"pair\[0\] is False"),
        ({"shape": [True]}, r"shape\[0\] is True"),
        ({"kind": "c"}, "kind is 'c', not one of"),
        ({"kind": ["a"]}, "kind is"),
        ({"counts": {"n": "1"}}, "counts.n is '1'"),
        ({"rest": []}, r"rest is \[\], not an object"),
        ({"on": 1}, "on is 1, not true or false"),
        ({"counts": {"n": 2**63}}, "counts.n is 9223372036854775808, not a whole number of 64 bits"),
        ({"shares": [0.5, None, 1.5]}, r"shares\[2\] is 1.5, not within 0 and 1"),
        ({"shares": [-0.5]}, r"shares\[0\] is -0.5, not within 0 and 1"),
        ({"change": -2}, "change is -2, not within -1 and 1"),
        ({"ms": -0.25}, "ms is -0.25, not 0 or more"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(Whole, {**GOOD, **change})


def test_bounds_hold_their_ends_and_what_a_sum_of_shares_rounds_to() -> None:
    made = decode(Whole, {**GOOD, "shares": [0, 1, 1 + 1e-12, None], "change": -1, "ms": 0})
    assert made.shares == (0.0, 1.0, 1 + 1e-12, None) and made.change == -1.0 and made.ms == 0.0


def test_a_missing_field_and_no_object_are_named() -> None:
    with pytest.raises(ValueError, match="^pair is missing"):
        decode(Whole, {"parts": []})
    with pytest.raises(ValueError, match=r"the top is \[\], not an object"):
        decode(Whole, [])
