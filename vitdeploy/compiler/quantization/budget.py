"""A budget: leave as few layers as possible out of INT8 until what is lost is within its limits.

The layers are ordered by damage: the noise that each alone puts on the answer, logits or vector, per share of the
multiply-accumulates.
The smallest number of layers from the front of that order that meets the budget is found by bisection. (To put single
layers back afterwards would be to pick those that some images happen not to miss.)

The images that a choice was made on flatter it, so they are parted. What is chosen on one half is judged on the other.
Three looks at most decide, and their bounds of each limit hold together with 95 % confidence (Bonferroni):
1. everything in INT8, on all images: nothing was chosen;
2. the set that the search found on the first half, on the second;
3. where that one fails there, twice as many groups left out, on the second.
The search asks for a margin, so that the second look is rarely lost: the first half must meet the budget with a bound
of one standard error more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from vitdeploy.compiler.lint.qdq import LEAST_SHARE
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.sensitivity import LayerReport, analyze_layers
from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError
from vitdeploy.evaluation.batches import answer_name, answers_of, open_session
from vitdeploy.evaluation.judges import Judge, Verdict, judge_of, too_few
from vitdeploy.evaluation.limits import Limits
from vitdeploy.evaluation.paired import Truth
from vitdeploy.models.tasks import kind_of

__all__ = ["LOOKS", "RANKING_IMAGES", "Outcome", "Search", "meet_budget"]

RANKING_IMAGES = 256  # layers are ordered on this many of the validation images
LOOKS = 3
_CONFIDENCE = 1 - 0.05 / LOOKS  # of each look, one-sided
_SEARCHING = NormalDist().cdf(NormalDist().inv_cdf(_CONFIDENCE) + 1)  # one standard error more


@dataclass(frozen=True)
class Outcome:
    """What was left out (in order of damage), what that costs, and what everything in INT8 would have cost.

    `result` is measured on images that had no part in the choice: all of them where nothing is left out.
    """

    limits: Limits
    left_out: tuple[LayerReport, ...]
    result: Verdict
    everything: Verdict
    validation: dict[str, Any]
    title: str = "INT8"

    def to_json(self) -> dict[str, Any]:
        return {
            **self.limits.to_json(),
            "sentence": self.describe()[0],
            "looks": LOOKS,
            "left_out": [report.to_json() for report in self.left_out],
            "result": self.result.to_json(),
            "everything_in_int8": self.everything.to_json(),
            "validation": self.validation,
        }

    def describe(self) -> list[str]:
        """Lines for a person."""
        if not self.left_out:
            return [f"{self.title} meets the budget of {self.limits} with nothing left out: {self.result}"]
        lines = [
            f"{self.title} meets the budget of {self.limits} with {len(self.left_out)} groups left out: {self.result}",
            f"  with everything in {self.title}: {self.everything}",
        ]
        for report in self.left_out:
            lines.append(
                f"  left out {report.layer}: alone it leaves the answers at {report.logits_db:.1f} dB"
                f" for {report.macs_share:.1%} of the MACs"
            )
        return lines


class Search:
    """Looks for the fewest groups to leave out, and judges what it found on other images.

    Args:
        judge: holds answers against FP32's.
        answers: what it compares of the answers of INT8 with a set of groups left out, on the images at some places.
    """

    def __init__(self, judge: Judge, answers: Callable[[frozenset[str], np.ndarray], np.ndarray]) -> None:
        self._judge, self._answers = judge, answers
        self._known: dict[frozenset[str], tuple[np.ndarray, np.ndarray]] = {}  # answers, and which were asked for
        count = len(judge.reference)
        order = np.random.default_rng(0).permutation(count)
        self.all = np.arange(count)
        self.first, self.second = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
        self.looks: dict[frozenset[str], Verdict] = {}

    def look(self, names: frozenset[str], places: np.ndarray) -> bool:
        """One of the looks that decide."""
        self.looks[names] = self._verdict(names, places, _CONFIDENCE)
        return self.looks[names].met

    def smallest(self, names: Sequence[str]) -> frozenset[str] | None:
        """The fewest of some groups, most damaging first, that meet the budget on the first half; None: not all do."""
        if not names or not self._holds(frozenset(names)):
            return None
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(frozenset(names[:middle])) else (middle, high)
        return frozenset(names[:high])

    def choose(self, names: Sequence[str]) -> frozenset[str] | None:
        """What to leave out of the groups in order of damage, after everything in INT8 failed; None: nothing holds."""
        found = self.smallest(names)
        if found is None:
            return None
        if self.look(found, self.second):
            return found
        more = found.union([name for name in names if name not in found][: len(found)])
        return more if more != found and self.look(more, self.second) else None

    def _holds(self, names: frozenset[str]) -> bool:
        return self._verdict(names, self.first, _SEARCHING).met

    def _verdict(self, names: frozenset[str], places: np.ndarray, confidence: float) -> Verdict:
        reference = self._judge.reference
        if names not in self._known:
            self._known[names] = np.zeros_like(reference), np.zeros(len(reference), np.bool_)
        found, known = self._known[names]
        missing = places[~known[places]]
        if len(missing):
            found[missing], known[missing] = self._answers(names, missing), True
        return self._judge(found[places], places, confidence)


def meet_budget(
    model_path: Path, calibration: Calibration, truth: Truth, limits: Limits, layers: QuantLayers | None = None
) -> tuple[Calibration, Outcome]:
    """Leave out of INT8 what must be for it to keep to the limits.

    Args:
        truth: validation images, no calibration images among them.
        limits: some, and such as the graph's answer can be held against.
        layers: those of the graph, or of another copy of it; None: look for them.

    Raises:
        ModelError: the budget can't be met; the message names the best point that was found.
    """
    calibration, title = calibration.leaving_out(()), calibration.numbers.title
    layers = QuantLayers.find_in_file(model_path, calibration.recipe) if layers is None else layers

    def answers(names: frozenset[str], places: np.ndarray) -> np.ndarray:
        import onnx_ir as ir

        model = ir.load(model_path)
        fitted = calibration.leaving_out(names)
        quantize(model, fitted, scheme=fitted.coarser, layers=layers)
        label = f"{title} without {len(names)} groups" if names else f"{title}, everything"
        return judge.compared(_answers(open_session(model), truth.images.subset(places), label))

    session = open_session(model_path)
    exact = _answers(session, truth.images, "FP32 on validation images")
    judge = judge_of(kind_of(answer_name(session)), limits, truth, exact)
    search = Search(judge, answers)
    nothing: frozenset[str] = frozenset()
    left_out: tuple[LayerReport, ...] = ()
    if not search.look(nothing, search.all):
        ranking = analyze_layers(model_path, calibration, truth.spread(RANKING_IMAGES), layers)
        ranking.sort(key=lambda report: report.damage, reverse=True)
        chosen = search.choose([report.layer for report in ranking[: _most(ranking)]])
        if chosen is None:
            raise _refusal(search, limits, title)
        left_out = tuple(report for report in ranking if report.layer in chosen)
    names = frozenset(report.layer for report in left_out)
    outcome = Outcome(limits, left_out, search.looks[names], search.looks[nothing], truth.describe(), title)
    return calibration.leaving_out(names, outcome.to_json()), outcome


def _answers(session: Any, images: Any, label: str) -> np.ndarray:
    """The answers (images, n)."""
    with progress.task(label, total=len(images), unit="images") as step:
        return answers_of(session, images, step)


def _most(ranking: list[LayerReport]) -> int:
    """How many may be left out so that INT8 is still worth its name."""
    left = sum(report.macs_share for report in ranking)
    for count, report in enumerate(ranking):
        left -= report.macs_share
        if left < LEAST_SHARE:
            return count
    return len(ranking)


def _refusal(search: Search, limits: Limits, title: str) -> ModelError:
    names, best = min(search.looks.items(), key=lambda item: item[1].excess)
    what = f"{len(names)} groups left out" if names else "nothing left out"
    few = too_few(len(search.all), limits, _CONFIDENCE)
    if few is not None:
        hint = f"{few}: give more (--validation-images), or a larger budget"
    else:
        hint = "relax the budget, calibrate on other images, or use --fp16; nothing in the bundle was changed"
    return ModelError(
        f"{title} can't be kept within {limits} of FP32; the best found, with {what}: {best}",
        hint=hint,
    )
