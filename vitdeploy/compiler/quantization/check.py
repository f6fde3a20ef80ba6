"""Whether the images that calibrated were any good: black frames or noise leave ranges that photographs burst.

Two things are looked at, each against FP32:

    drawn images    dead leaves (Lee, Mumford and Huang 2001), which share the edges, scales and colours of photographs:
                    the share of what each layer reads that lies outside its range and is cut off, and the logits
    other images    of the same data, that did not calibrate, where there are any: the logits

A calibration fails where both the cause and the damage show: on drawn images more than `MOST_CLIPPED` of what one layer
reads is cut off and the logits' signal-to-noise ratio, 10 log10(var(z) / mean((z - z')^2)), is below `LEAST_DB`; or on
other images the ratio is below `LEAST_DB` and the best class is FP32's for less than `LEAST_AGREEMENT`. One proper
photograph passes: docs/int8.md has the numbers that the bounds were chosen by.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.passes.values import answer_value
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.observers import activations
from vitdeploy.compiler.quantization.qparams import decibels
from vitdeploy.compiler.samples import dead_leaves
from vitdeploy.core import progress
from vitdeploy.core.errors import ImageError, InputError
from vitdeploy.evaluation.batches import Pixels, answer_name, check_size, open_session
from vitdeploy.models.tasks import EMBEDDING, cosines

if TYPE_CHECKING:
    from vitdeploy.data import ImageDataset

__all__ = ["LEAST_AGREEMENT", "LEAST_DB", "MOST_CLIPPED", "OTHERS", "CalibrationCheck", "check_calibration"]

MOST_CLIPPED = 0.36
LEAST_DB = 5.0
LEAST_AGREEMENT = 0.8
LEAST_COSINE = 0.95
OTHERS = 32
_DRAWN = 12


@dataclass(frozen=True)
class CalibrationCheck:
    """What INT8, or FP8 by its `title`, makes of images that did not calibrate it.

    `clipped` is the largest share, 0..1, over the layers, of the values of drawn images that it cuts off, in `layer`;
    `drawn_db` the logits' signal-to-noise ratio there. `others` is the number of other images of the data, `others_db`
    their ratio, and `agreement` (0..1) how often the best class is FP32's, or of an embedding `cosine` the mean one to
    FP32's vectors; None without any.
    """

    clipped: float
    layer: str
    drawn_db: float
    others: int = 0
    others_db: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    title: str = "INT8"

    @property
    def problem(self) -> str | None:
        """Why the calibration fails, in words; None where it passes."""
        if self.clipped > MOST_CLIPPED and self.drawn_db < LEAST_DB:
            return (
                f"its images exercise too little of the model: of drawn test images {self.clipped:.0%} of what"
                f" {self.layer} reads lies outside the range that they leave to {self.title} (at most"
                f" {MOST_CLIPPED:.0%} may), and the logits' signal-to-noise ratio is {self.drawn_db:.1f} dB (at least"
                f" {LEAST_DB:g})"
            )
        if self.others_db is None or self.others_db >= LEAST_DB:
            return None
        if self.cosine is not None and self.cosine < LEAST_COSINE:
            what = f"has a mean cosine of {self.cosine:.3f} to FP32's vectors (at least {LEAST_COSINE:g} is expected)"
        elif self.agreement is not None and self.agreement < LEAST_AGREEMENT:
            what = f"gives FP32's best class for {self.agreement:.0%} (at least {LEAST_AGREEMENT:.0%} are expected)"
        else:
            return None
        return (
            f"on {self.others} images of the same data that did not calibrate it, {self.title} {what}, and the logits'"
            f" signal-to-noise ratio is {self.others_db:.1f} dB (at least {LEAST_DB:g})"
        )

    def __str__(self) -> str:
        words = (
            f"of drawn test images {self.title} cuts off at most {self.clipped:.1%} of what a layer reads, logits at"
            f" {self.drawn_db:.1f} dB"
        )
        if self.agreement is not None:
            words += f"; FP32's best class for {self.agreement:.0%} of {self.others} images that did not calibrate"
        if self.cosine is not None:
            words += f"; mean cosine {self.cosine:.4f} on {self.others} images that did not calibrate"
        return words

    def to_json(self) -> dict[str, Any]:
        """The numbers, the bounds they were held against, and the problem."""
        numbers = {
            name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items() if name != "title"
        }
        bounds = {"clipped": MOST_CLIPPED, "db": LEAST_DB, "agreement": LEAST_AGREEMENT, "cosine": LEAST_COSINE}
        return {**numbers, "bounds": bounds, "problem": self.problem}


def check_calibration(
    model_path: Path,
    calibration: Calibration,
    layers: QuantLayers,
    size: tuple[int, int],
    others: ImageDataset | None = None,
) -> CalibrationCheck:
    """Compare INT8 or FP8, with nothing left out, with FP32 on images that did not calibrate it.

    Args:
        model_path: the FP32 graph.
        layers: those of the graph, or of another copy of it.
        size: (height, width) of the images to draw.
        others: images of the same data that had no part in the calibration; None: there are none. Those that can't be
            decoded, or have a size that the graph does not take, are passed over.
    """
    import onnx_ir as ir

    model = ir.load(model_path)
    found = layers.on(model)
    groups = [found.groups[qparams.name] for qparams in calibration.groups]
    answer = answer_value(model)
    generator = np.random.default_rng(0)
    drawn = [dead_leaves(*size, generator) for _ in range(_DRAWN)]
    outside, seen, wanted = np.zeros(len(groups)), np.zeros(len(groups)), []
    with progress.task("Checking the calibration", total=len(drawn), unit="images") as step:
        for *values, given in activations(model, [*(group.activation for group in groups), answer], drawn):
            wanted.append(given)
            for place, (group, qparams, value) in enumerate(zip(groups, calibration.groups, values, strict=True)):
                rows = group.rows(value)
                centred = rows if qparams.centre is None else rows - qparams.centre
                scaled = centred if qparams.smoothing is None else centred / qparams.smoothing
                steps = scaled / np.float32(qparams.scale) - qparams.shift
                outside[place] += int((np.abs(steps) > calibration.numbers.end).sum())
                seen[place] += steps.size
            step.advance()
    whole = calibration.leaving_out(())
    quantized = ir.load(model_path)
    quantize(quantized, whole, scheme=whole.coarser, layers=layers)
    session = open_session(quantized)
    shares = outside / np.maximum(seen, 1)
    worst = int(shares.argmax())
    result = CalibrationCheck(
        float(shares[worst]),
        groups[worst].name,
        _signal_to_noise(np.stack(wanted), _logits(session, drawn)),
        title=calibration.numbers.title,
    )
    pictures = [] if others is None else _usable(others, session)
    if not pictures:
        return result
    exact, rounded = _logits(open_session(model_path), pictures), _logits(session, pictures)
    result = replace(result, others=len(pictures), others_db=_signal_to_noise(exact, rounded))
    if answer.name == EMBEDDING.output:
        return replace(result, cosine=float(cosines(rounded, exact).mean()))
    return replace(result, agreement=float((exact.argmax(axis=1) == rounded.argmax(axis=1)).mean()))


def _usable(images: ImageDataset, session: Any) -> list[Pixels]:
    found = []
    for index in range(len(images)):
        with suppress(ImageError, InputError):
            pixels = images.image(index)
            check_size(session, pixels)
            found.append(pixels)
    return found


def _logits(session: Any, images: Iterable[Pixels]) -> np.ndarray:
    return np.concatenate([session.run([answer_name(session)], {"image": image[np.newaxis]})[0] for image in images])


def _signal_to_noise(exact: np.ndarray, rounded: np.ndarray) -> float:
    """In dB: what differs between images (between classes, of one image) against the rounding's error."""
    signal = exact - exact.mean(axis=0 if len(exact) > 1 else 1, keepdims=True)
    return decibels(
        float(np.square(signal, dtype=np.float64).mean()), float(np.square(rounded - exact, dtype=np.float64).mean())
    )
