"""Conditions on a comparison, as in `int8.p50 > 1.1x`: what they mean, and whether one is met.

    FORM[/BACKEND][@BATCH].METRIC  <, <=, >, >=  NUMBER[UNIT]

A form without a backend stands for all its rows, `*` for every row. The unit says what the number is compared with:
`x` the ratio after / before (of times relative to the baseline's), `%` the same as a change in percent, `pt` the change
in percentage points (shares and `drop`), and without one the value of the second report itself (milliseconds, bytes,
images per second, a share 0..1, points).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from vitdeploy.core.errors import InputError
from vitdeploy.evaluation.statistics import Interval
from vitdeploy.report.comparison import METRICS, RATIOS, SHARES, Change, Comparison, RowComparison

__all__ = ["Condition", "Outcome", "evaluate", "parse"]

# Of comparisons of equal runs, by one condition: half of the 2 % that are promised, since the spread between runs is
# itself estimated, from what few rounds show.
_FALSE_ALARMS = 0.01
State = Literal["met", "not met", "noise", "inconclusive"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PATTERN = re.compile(
    r"\s*(?P<row>[\w*/-]+)(?:@(?P<batch>\d+))?\.(?P<metric>\w+)\s*(?P<sign>[<>]=?)\s*"
    r"(?P<number>[-+]?\d+(?:\.\d+)?)\s*(?P<unit>x|%|pt)?\s*"
)
_EXAMPLES = 'as in "int8.p50 > 1.1x", "int8/openvino@8.p99 > 10%", "int8.top1 < -0.5pt", "int8.drop > 1"'


@dataclass(frozen=True)
class Condition:
    """One condition; `text` is what was written."""

    text: str
    row: str
    batch_size: int | None
    metric: str
    sign: str
    number: float
    unit: str


@dataclass(frozen=True)
class Outcome:
    """What became of a condition: met, not met, "noise" (it would be met, but the change is no more than noise), or
    "inconclusive": the numbers can't tell. `why` says so in words, a line for each row that it is about."""

    condition: Condition
    state: State
    why: tuple[str, ...] = ()


def parse(text: str) -> Condition:
    """Read a condition.

    Raises:
        InputError: it can't be read, or its unit does not fit its metric.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or not math.isfinite(float(match["number"])):
        raise InputError(f"the condition {text!r} can't be read", hint=_EXAMPLES)
    metric, unit = match["metric"], match["unit"] or ""
    if metric not in METRICS:
        raise InputError(f"there is no metric {metric!r} in {text!r}", hint=f"one of {', '.join(METRICS)}")
    in_points = metric in SHARES or metric == "drop"
    if (in_points and unit in ("x", "%")) or (not in_points and unit == "pt"):
        hint = f"{metric} changes in points: -0.5pt; or name its value" if in_points else "use x, % or a plain number"
        raise InputError(f"{unit} does not fit {metric} in {text!r}", hint=hint)
    number = float(match["number"])
    if (unit == "x" and number <= 0) or (unit == "%" and number <= -100):
        raise InputError(f"no ratio can be {number:g}{unit} in {text!r}", hint=_EXAMPLES)
    batch = None if match["batch"] is None else int(match["batch"])
    return Condition(text.strip(), match["row"], batch, metric, match["sign"], number, unit)


def evaluate(condition: Condition, comparison: Comparison, *, strict: bool = False) -> Outcome:
    """Whether a condition is met by one of its rows.

    A change (x, %, pt) has to be more than noise to meet it, unless `strict`, and the more rows it is about, the more
    clearly: equal runs shall meet it in 2 % of cases. Where its interval is wider than the condition's limit is far
    from no change, not meeting it means nothing: it is inconclusive. A row that no longer runs meets every condition.

    Raises:
        InputError: no row fits it, or the number was not measured in both reports.
    """
    rows = [row for row in comparison.rows if _fits(row, condition.row)]
    ran = [row for row in rows if row.before is not None and row.before.status == "ok"]
    if not ran:
        there = ", ".join(row.key for row in comparison.rows)
        raise InputError(f"no row of the first report fits {condition.text!r}", hint=f"it has: {there}")
    found: dict[State, list[str]] = {}
    for row in ran:
        state, why = _evaluate_row(condition, row, len(ran), comparison.machines, strict=strict)
        found.setdefault(state, []).append(f"{row.key}{why}")
    for state in ("met", "inconclusive", "noise"):
        if state in found:
            return Outcome(condition, state, tuple(found[state]))
    return Outcome(condition, "not met")


def _evaluate_row(
    condition: Condition, row: RowComparison, rows: int, machines: str | None, *, strict: bool
) -> tuple[State, str]:
    if row.after is None or row.after.status != "ok":
        gone = " is not in the second report" if row.after is None else f" {row.after.status}: {row.after.reason}"
        return "met", gone
    change = row.find(condition.metric, condition.batch_size)
    if change is None:
        times = row.find("p50", condition.batch_size)
        if times is not None and condition.metric in RATIOS:
            of = "baselines that differ" if condition.metric == "speedup" else "so few calls (give it more rounds)"
            few = f"{condition.metric} can't be told from {of}"
            return "inconclusive", f": {times.inconclusive or few}"
        kept = [known.metric for known in row.changes if known.metric in (*SHARES, "drop")]
        hint = "measure the same batch and image sizes, with latency, accuracy and memory, in both"
        if kept and condition.metric in (*SHARES, "drop"):
            hint = f"of its answers it has: {', '.join(kept)}"
        raise InputError(
            f"{condition.text!r} can't be evaluated: {row.key} has no such number in both reports", hint=hint
        )
    alone = not condition.unit and change.inconclusive == machines  # a value is what it is on its own machine
    if change.inconclusive is not None and not alone:
        return "inconclusive", f": {change.inconclusive}"
    met = _OPERATORS[condition.sign]
    value = _value(change, condition)
    shown = f": {_shown(change, condition, value)}"
    span = _span(change, condition)
    if span is None:
        noise = condition.unit and change.beyond_noise is False and not strict
        return ("not met" if not met(value, condition.number) else "noise" if noise else "met"), shown
    if strict and met(value, condition.number):
        return "met", shown
    ends = [met(end, condition.number) for end in span]
    if not any(ends):
        return "not met", shown
    beyond = _beyond_noise(change, rows)
    if (met(value, condition.number) and beyond) or (all(ends) and not condition.unit):
        return "met", shown
    # The interval holds values on both sides of the limit, or nearly reaches to the other one.
    width, distance = _width(span, value, condition), _distance(condition)
    if distance and width > distance:
        return "inconclusive", _too_wide(change, width)
    return ("not met" if not met(value, condition.number) else "noise" if condition.unit else "met"), shown


def _beyond_noise(change: Change, rows: int) -> bool:
    """Whether it is more than noise, for one of so many rows: equal runs shall seldom meet a condition on any."""
    if change.ci95 is None or not change.beyond_noise:
        return bool(change.beyond_noise)
    in_points = change.metric in (*SHARES, "drop")
    low, high = change.ci95 if in_points else (math.log(end) for end in change.ci95)
    moved = abs(change.amount if in_points else math.log(change.amount))
    z95, wanted = (NormalDist().inv_cdf(1 - share) for share in (0.025, _FALSE_ALARMS / rows))
    return moved > (high - low) / 2 / z95 * wanted


def _span(change: Change, condition: Condition) -> Interval | None:
    """The interval of what the condition's number is compared with, in its unit."""
    if not condition.unit:
        return change.own_ci95
    return None if change.ci95 is None else _scaled(change.ci95, condition)


def _scaled(interval: Interval, condition: Condition) -> Interval:
    factor, offset = {"x": (1, 0), "%": (100, -100), "pt": (100, 0)}[condition.unit]
    return factor * interval[0] + offset, factor * interval[1] + offset


def _distance(condition: Condition) -> float:
    """How far the limit is from no change: in points, or of a ratio on a logarithmic scale."""
    return abs(_log_ratio(condition.number, condition))


def _width(span: Interval, value: float, condition: Condition) -> float:
    """How far the interval reaches from the value, on the same scale."""
    middle = _log_ratio(value, condition)
    return max(abs(_log_ratio(end, condition) - middle) for end in span)


def _log_ratio(value: float, condition: Condition) -> float:
    if condition.unit not in ("x", "%"):
        return value
    return math.log(max(value if condition.unit == "x" else 1 + value / 100, 1e-9))


def _too_wide(change: Change, width: float) -> str:
    if change.count is not None:
        return f": can't be told with {change.count:,} images (they show about {width:.2g} points)"
    return f": can't be told from these runs (they show about {math.expm1(width):.0%}): give more rounds or reports"


def _fits(row: RowComparison, wanted: str) -> bool:
    return wanted in ("*", row.key, row.key.partition("/")[0])


def _value(change: Change, condition: Condition) -> float:
    """What the condition's number is compared with."""
    in_points = condition.metric in SHARES
    if condition.unit == "x":
        return change.amount
    if condition.unit == "%":
        return 100 * (change.amount - 1)
    if condition.unit == "pt":
        return 100 * change.amount if in_points else change.amount
    return change.after


def _shown(change: Change, condition: Condition, value: float) -> str:
    unit = condition.unit or ""
    text = f"{condition.metric} {value:.4g}{unit}"
    if change.ci95 is not None and unit:
        low, high = _scaled(change.ci95, condition)
        text += f" (95 % interval {low:.4g} to {high:.4g})"
    return f"{text}, from {change.before:.4g} to {change.after:.4g}"
