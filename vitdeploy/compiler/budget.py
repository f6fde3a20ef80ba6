"""An accuracy budget: leave as few layers as possible out of INT8 until the drop is within it.

The layers are ordered by damage: the noise that each alone puts on the logits, per share of the multiply-accumulates.
The smallest number of layers from the front of that order that meets the budget is found by bisection; then each of
them is put back, the least damaging first, if the budget still holds without it. The drop is measured on validation
images that are no calibration images, and the budget must hold for its upper bound at 95 % confidence. The same images
are asked several times, so the confidence is that of one test, slightly flattered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy import progress
from vitdeploy.compiler.calibration import Calibration
from vitdeploy.compiler.judging import Judgement, Truth, compare_answers, logits_of
from vitdeploy.compiler.quantize import quantize
from vitdeploy.compiler.sensitivity import LayerReport, analyze_layers, open_session
from vitdeploy.compiler.structure import LEAST_SHARE
from vitdeploy.errors import ModelError

__all__ = ["RANKING_IMAGES", "Outcome", "meet_budget"]

RANKING_IMAGES = 256  # layers are ordered on this many of the validation images
_PUT_BACK = 12  # putting back is tried for at most this many layers


@dataclass(frozen=True)
class Outcome:
    """What was left out (in order of damage), what that costs, and what everything in INT8 would have cost."""

    max_drop: float
    left_out: tuple[LayerReport, ...]
    judgement: Judgement
    everything: Judgement
    validation: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "max_drop": self.max_drop,
            "left_out": [report.to_json() for report in self.left_out],
            "result": self.judgement.to_json(),
            "everything_in_int8": self.everything.to_json(),
            "validation": self.validation,
        }

    def describe(self) -> list[str]:
        """Lines for a person."""
        if not self.left_out:
            return [f"INT8 meets the budget of {self.max_drop:g} points with nothing left out: {self.judgement}"]
        lines = [
            f"INT8 meets the budget of {self.max_drop:g} points with {len(self.left_out)} groups left out:"
            f" {self.judgement}",
            f"  with everything in INT8: {self.everything}",
        ]
        for report in self.left_out:
            lines.append(
                f"  left out {report.layer}: alone it leaves the logits at {report.logits_db:.1f} dB"
                f" for {report.macs_share:.1%} of the MACs"
            )
        return lines


class _Search:
    """Judges sets of layers that are left out; each set once."""

    def __init__(self, model_path: Path, calibration: Calibration, truth: Truth, max_drop: float) -> None:
        self._path, self._calibration, self._truth, self.max_drop = model_path, calibration, truth, max_drop
        self.tried: dict[frozenset[str], Judgement] = {}
        with progress.task("FP32 on validation images", total=len(truth.images), unit="images") as step:
            self._reference = logits_of(open_session(model_path), truth.images, step)

    def judge(self, names: frozenset[str]) -> Judgement:
        import onnx_ir as ir

        if names not in self.tried:
            model = ir.load(self._path)
            quantize(model, self._calibration.leaving_out(names), target=self._calibration.coarser)
            label = f"INT8 without {len(names)} groups" if names else "INT8, everything"
            with progress.task(label, total=len(self._truth.images), unit="images") as step:
                logits = logits_of(open_session(model), self._truth.images, step)
            self.tried[names] = compare_answers(logits, self._reference, self._truth.classes)
        return self.tried[names]

    def holds(self, names: frozenset[str]) -> bool:
        return self.judge(names).drop_bound <= self.max_drop


def meet_budget(
    model_path: Path, calibration: Calibration, truth: Truth, max_drop: float
) -> tuple[Calibration, Outcome]:
    """Leave out of INT8 what must be for the drop to stay within `max_drop` points.

    Args:
        truth: validation images, no calibration images among them.

    Raises:
        ModelError: the budget can't be met; the message names the best point that was found.
    """
    calibration = calibration.leaving_out(())
    search = _Search(model_path, calibration, truth, max_drop)
    everything = search.judge(frozenset())
    described = truth.images.describe()
    if search.holds(frozenset()):
        outcome = Outcome(max_drop, (), everything, everything, described)
        return calibration.leaving_out((), outcome.to_json()), outcome
    ranking = analyze_layers(model_path, calibration, truth.spread(RANKING_IMAGES))
    ranking.sort(key=lambda report: report.damage, reverse=True)
    most = _most(ranking)
    names = [report.layer for report in ranking]
    if not most or not search.holds(frozenset(names[:most])):
        raise _refusal(search, max_drop, len(truth.images))
    low, high = 0, most  # everything fails, `most` holds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if search.holds(frozenset(names[:middle])) else (middle, high)
    kept = _put_back(search, names[:high])
    left_out = tuple(report for report in ranking if report.layer in kept)
    outcome = Outcome(max_drop, left_out, search.judge(kept), everything, described)
    return calibration.leaving_out(kept, outcome.to_json()), outcome


def _most(ranking: list[LayerReport]) -> int:
    """How many may be left out so that INT8 is still worth its name."""
    left = sum(report.macs_share for report in ranking)
    for count, report in enumerate(ranking):
        left -= report.macs_share
        if left < LEAST_SHARE:
            return count
    return len(ranking)


def _put_back(search: _Search, names: list[str]) -> frozenset[str]:
    """Drop those that need not be left out."""
    kept = frozenset(names)
    for name in reversed(names[-_PUT_BACK:]):
        if len(kept) > 1 and search.holds(kept - {name}):
            kept -= {name}
    return kept


def _refusal(search: _Search, max_drop: float, count: int) -> ModelError:
    names, best = min(search.tried.items(), key=lambda item: item[1].drop_bound)
    what = f"{len(names)} groups left out" if names else "nothing left out"
    same = np.eye(2)[np.zeros(count, dtype=np.int64)]
    least = compare_answers(same, same, np.zeros(count, dtype=np.int64)).drop_bound
    if max_drop < least:
        hint = (
            f"{count} images can't show less than {least:.2f} points even where nothing is lost: give more"
            " (--validation-images), or a larger budget"
        )
    else:
        hint = "raise the budget, calibrate on other images, or use --fp16; nothing in the bundle was changed"
    return ModelError(
        f"INT8 can't be kept within {max_drop:g} points of FP32; the best found, with {what}: {best}", hint=hint
    )
