"""An accuracy budget: leave as few layers as possible out of INT8 until the drop is within it.

The layers are ordered by damage: the noise that each alone puts on the logits, per share of the multiply-accumulates.
The smallest number of layers from the front of that order that meets the budget is found by bisection. (To put single
layers back afterwards would be to pick those that some images happen not to miss.)

The images that a choice was made on flatter it, so they are parted. What is chosen on one half is judged on the other.
Three looks at most decide, and their bounds hold together with 95 % confidence (Bonferroni):
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
from vitdeploy.evaluation.batches import answers_of, open_session
from vitdeploy.evaluation.paired import PairedDrop, Truth, compare_classes
from vitdeploy.evaluation.statistics import drop_bound

__all__ = ["LOOKS", "RANKING_IMAGES", "Outcome", "Search", "meet_budget"]

RANKING_IMAGES = 256  # layers are ordered on this many of the validation images
LOOKS = 3
_CONFIDENCE = 1 - 0.05 / LOOKS  # of each look, one-sided
_SEARCHING = NormalDist().cdf(NormalDist().inv_cdf(_CONFIDENCE) + 1)  # one standard error more


@dataclass(frozen=True)
class Outcome:
    """What was left out (in order of damage), what that costs, and what everything in INT8 would have cost.

    `paired` is measured on images that had no part in the choice: all of them where nothing is left out.
    """

    max_drop: float
    left_out: tuple[LayerReport, ...]
    paired: PairedDrop
    everything: PairedDrop
    validation: dict[str, Any]
    title: str = "INT8"

    def to_json(self) -> dict[str, Any]:
        return {
            "max_drop": self.max_drop,
            "looks": LOOKS,
            "left_out": [report.to_json() for report in self.left_out],
            "result": self.paired.to_json(),
            "everything_in_int8": self.everything.to_json(),
            "validation": self.validation,
        }

    def describe(self) -> list[str]:
        """Lines for a person."""
        if not self.left_out:
            return [f"{self.title} meets the budget of {self.max_drop:g} points with nothing left out: {self.paired}"]
        lines = [
            f"{self.title} meets the budget of {self.max_drop:g} points with {len(self.left_out)} groups left out:"
            f" {self.paired}",
            f"  with everything in {self.title}: {self.everything}",
        ]
        for report in self.left_out:
            lines.append(
                f"  left out {report.layer}: alone it leaves the logits at {report.logits_db:.1f} dB"
                f" for {report.macs_share:.1%} of the MACs"
            )
        return lines


class Search:
    """Looks for the fewest groups to leave out, and judges what it found on other images.

    Args:
        classes: the right class of each image, (images,).
        reference: FP32's best class of each.
        answers: the best classes of INT8 with a set of groups left out, on the images at some places.
    """

    def __init__(
        self,
        classes: np.ndarray,
        reference: np.ndarray,
        answers: Callable[[frozenset[str], np.ndarray], np.ndarray],
        max_drop: float,
    ) -> None:
        self.classes, self.reference, self.max_drop = classes, reference, max_drop
        self._answers = answers
        self._known: dict[frozenset[str], np.ndarray] = {}  # best classes, -1 where they were not asked for
        order = np.random.default_rng(0).permutation(len(classes))
        self.all = np.arange(len(classes))
        self.first, self.second = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        self.looks: dict[frozenset[str], PairedDrop] = {}

    def look(self, names: frozenset[str], places: np.ndarray) -> bool:
        """One of the looks that decide."""
        self.looks[names] = self._paired_drop(names, places, _CONFIDENCE)
        return self.looks[names].drop_bound <= self.max_drop

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
        return self._paired_drop(names, self.first, _SEARCHING).drop_bound <= self.max_drop

    def _paired_drop(self, names: frozenset[str], places: np.ndarray, confidence: float) -> PairedDrop:
        known = self._known.setdefault(names, np.full(len(self.classes), -1, np.int64))
        missing = places[known[places] < 0]
        if len(missing):
            known[missing] = self._answers(names, missing)
        return compare_classes(known[places], self.reference[places], self.classes[places], confidence)


def meet_budget(
    model_path: Path, calibration: Calibration, truth: Truth, max_drop: float, layers: QuantLayers | None = None
) -> tuple[Calibration, Outcome]:
    """Leave out of INT8 what must be for the drop to stay within `max_drop` points.

    Args:
        truth: validation images, no calibration images among them.
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
        return _best(model, truth.images.subset(places), label)

    reference = _best(model_path, truth.images, "FP32 on validation images")
    search = Search(truth.classes, reference, answers, max_drop)
    nothing: frozenset[str] = frozenset()
    left_out: tuple[LayerReport, ...] = ()
    if not search.look(nothing, search.all):
        ranking = analyze_layers(model_path, calibration, truth.spread(RANKING_IMAGES), layers)
        ranking.sort(key=lambda report: report.damage, reverse=True)
        chosen = search.choose([report.layer for report in ranking[: _most(ranking)]])
        if chosen is None:
            raise _refusal(search, title)
        left_out = tuple(report for report in ranking if report.layer in chosen)
    names = frozenset(report.layer for report in left_out)
    outcome = Outcome(max_drop, left_out, search.looks[names], search.looks[nothing], truth.describe(), title)
    return calibration.leaving_out(names, outcome.to_json()), outcome


def _best(model: Any, images: Any, label: str) -> np.ndarray:
    """The best class of each image."""
    with progress.task(label, total=len(images), unit="images") as step:
        best: np.ndarray = answers_of(open_session(model), images, step).argmax(axis=1)
    return best


def _most(ranking: list[LayerReport]) -> int:
    """How many may be left out so that INT8 is still worth its name."""
    left = sum(report.macs_share for report in ranking)
    for count, report in enumerate(ranking):
        left -= report.macs_share
        if left < LEAST_SHARE:
            return count
    return len(ranking)


def _refusal(search: Search, title: str) -> ModelError:
    names, best = min(search.looks.items(), key=lambda item: item[1].drop_bound)
    what = f"{len(names)} groups left out" if names else "nothing left out"
    count = len(search.all)
    least = 100 * drop_bound(0, 0, count, _CONFIDENCE)
    if search.max_drop < least:
        hint = (
            f"{count} images can't show less than {least:.2f} points even where nothing is lost: give more"
            " (--validation-images), or a larger budget"
        )
    else:
        hint = "raise the budget, calibrate on other images, or use --fp16; nothing in the bundle was changed"
    return ModelError(
        f"{title} can't be kept within {search.max_drop:g} points of FP32; the best found, with {what}: {best}",
        hint=hint,
    )
