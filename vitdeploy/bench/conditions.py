"""Conditions on a comparison, as in `int8.p50 > 1.1x`: what they mean, and whether one is met.

    FORM[/BACKEND][@BATCH].METRIC  <, <=, >, >=  NUMBER[UNIT]

A form without a backend stands for all its rows, `*` for every row. The unit says what the number is compared with:
`x` the ratio after / before, `%` the change in percent, `pt` the change in percentage points (shares and `drop`), and
without one the value of the second report itself (milliseconds, bytes, images per second, a share 0..1, points).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from vitdeploy.bench.compare import METRICS, SHARES, Change, Comparison, RowComparison
from vitdeploy.errors import InputError

__all__ = ["Condition", "Verdict", "judge", "parse"]

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
class Verdict:
    """Whether a condition is met; `within_noise`: it would be, but the change is no more than noise."""

    condition: Condition
    met: bool
    why: tuple[str, ...]
    within_noise: bool = False


def parse(text: str) -> Condition:
    """Read a condition.

    Raises:
        InputError: it can't be read, or its unit does not fit its metric.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InputError(f"the condition {text!r} can't be read", hint=_EXAMPLES)
    metric, unit = match["metric"], match["unit"] or ""
    if metric not in METRICS:
        raise InputError(f"there is no metric {metric!r} in {text!r}", hint=f"one of {', '.join(METRICS)}")
    in_points = metric in SHARES or metric == "drop"
    if (in_points and unit in ("x", "%")) or (not in_points and unit == "pt"):
        hint = f"{metric} changes in points: -0.5pt; or name its value" if in_points else "use x, % or a plain number"
        raise InputError(f"{unit} does not fit {metric} in {text!r}", hint=hint)
    batch = None if match["batch"] is None else int(match["batch"])
    return Condition(text.strip(), match["row"], batch, metric, match["sign"], float(match["number"]), unit)


def judge(condition: Condition, comparison: Comparison, *, strict: bool = False) -> Verdict:
    """Whether a condition is met by one of its rows.

    A change (x, %, pt) has to be more than noise to meet it, unless `strict`. A row that ran before and does not any
    more meets every condition.

    Raises:
        InputError: no row fits it, or the number was not measured in both reports.
    """
    rows = [row for row in comparison.rows if _fits(row, condition.row)]
    ran = [row for row in rows if row.before is not None and row.before.status == "ok"]
    if not ran:
        there = ", ".join(row.key for row in comparison.rows)
        raise InputError(f"no row of the first report fits {condition.text!r}", hint=f"it has: {there}")
    met: list[str] = []
    quiet: list[str] = []
    for row in ran:
        if row.after is None or row.after.status != "ok":
            reason = "is not in the second report" if row.after is None else f"{row.after.status}: {row.after.reason}"
            met.append(f"{row.key} {reason}")
            continue
        change = row.find(condition.metric, condition.batch_size)
        if change is None:
            raise InputError(
                f"{condition.text!r} can't be judged: {row.key} has no such number in both reports",
                hint="measure the same batch and image sizes, with latency, accuracy and memory, in both",
            )
        value = _value(change, condition)
        if _OPERATORS[condition.sign](value, condition.number):
            noise = condition.unit and change.beyond_noise is False and not strict
            (quiet if noise else met).append(f"{row.key}: {_shown(change, condition, value)}")
    return Verdict(condition, bool(met), tuple(met or quiet), within_noise=bool(quiet) and not met)


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
        factor, offset = {"x": (1, 0), "%": (100, -100), "pt": (100, 0)}[unit]
        low, high = (factor * end + offset for end in change.ci95)
        text += f" (95 % interval {low:.4g} to {high:.4g})"
    return f"{text}, from {change.before:.4g} to {change.after:.4g}"
