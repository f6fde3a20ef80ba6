"""Images -> what INT8 needs to know of each layer: the calibration, and its cache calibration.json.

For a group of layers that read the activation X (rows: tokens, columns: channels) with weights W, INT8 computes

    Y' = (Sx Sw) (clip(round(X / s / Sx) - k) + k) round(s W / Sw)    Sx, k one number, Sw one a column, s one a channel

with 8-bit integers. Calibration chooses Sx and s to make the squared error of Y' against Y = X W small, on a sample of
real rows, not on ranges alone: outliers of X carry information, and whether cutting one hurts is decided by W.

    s     = max|X_j|^a / max|W_j|^(1-a) per channel j (SmoothQuant, Xiao et al. 2023), a searched per layer, a = 0: off
    Sx    = c max|X / s| / 127, the share c searched per layer
    k     = a whole number of steps by which X is shifted, so that a one-sided X (behind GELU) uses all 256 levels:
            X - k Sx is symmetric, and k Sx times the column sums of W goes into the bias
    bias  + mean(Y - Y'), the part of the error that is constant over rows (Nagel et al. 2019)

The rows are a fixed number a picture: the first token, which is the class token of a ViT and makes the logits, and a
seeded choice of the others. Memory does not grow with the number of images.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__, progress
from vitdeploy.compiler.layers import LayerGroup, find_groups, layer_name
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.errors import BundleError, InputError, ModelError, require

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

__all__ = [
    "LEVELS",
    "Calibration",
    "GroupCalibration",
    "activation_scale",
    "calibrate",
    "fake_quantize",
    "weight_scales",
]

LEVELS = 127  # symmetric: the largest magnitude is 127 steps, zero is exact
_ROWS = 768  # rows of each activation on which errors are measured
_ALPHAS = (0.0, 0.4, 0.55, 0.7, 0.85)
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)  # scales stay normal numbers in float16


@dataclass(frozen=True)
class GroupCalibration:
    """What was found for one group of layers.

    `scale` is Sx, `shift` is k, `smoothing` s per channel or None, `bias` the correction of each layer per output
    channel, and `sqnr_db` the signal-to-noise ratio of the group's output on the sample, 10 log10(|Y|^2 / |Y - Y'|^2).
    """

    name: str
    scale: float
    shift: int
    smoothing: np.ndarray | None
    bias: dict[str, np.ndarray]
    sqnr_db: float
    alpha: float
    clip: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "scale": self.scale,
            "shift": self.shift,
            "alpha": self.alpha,
            "clip": self.clip,
            "sqnr_db": round(self.sqnr_db, 2),
            "smoothing": None if self.smoothing is None else _pack(self.smoothing),
            "bias": {name: _pack(values) for name, values in self.bias.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GroupCalibration:
        return cls(
            name=data["name"],
            scale=data["scale"],
            shift=data["shift"],
            smoothing=None if data["smoothing"] is None else _unpack(data["smoothing"]),
            bias={name: _unpack(values) for name, values in data["bias"].items()},
            sqnr_db=data["sqnr_db"],
            alpha=data["alpha"],
            clip=data["clip"],
        )


@dataclass(frozen=True)
class Calibration:
    """The cache: INT8 is rebuilt from it without images, bit for bit, for the model whose hash it names."""

    model_sha256: str
    recipe: Recipe
    images: dict[str, Any]
    groups: tuple[GroupCalibration, ...]

    def dumps(self) -> str:
        data = {
            "schema_version": 1,
            "vitdeploy": __version__,
            "model_sha256": self.model_sha256,
            "recipe": self.recipe.to_json(),
            "images": self.images,
            "groups": [group.to_json() for group in self.groups],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path, model_sha256: str) -> Calibration:
        """Read a cache.

        Raises:
            BundleError: it is damaged, or was made for another model.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            calibration = cls(
                data["model_sha256"],
                Recipe(**data["recipe"]),
                data["images"],
                tuple(GroupCalibration.from_json(group) for group in data["groups"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"the calibration {path} can't be read: {error}", hint="calibrate again with --calibration-data"
            ) from error
        if calibration.model_sha256 != model_sha256:
            raise BundleError(
                f"the calibration {path} was made for another model ({calibration.model_sha256[:12]}, here"
                f" {model_sha256[:12]})",
                hint="calibrate again with --calibration-data",
            )
        return calibration


def _pack(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _unpack(text: str) -> np.ndarray:
    values: np.ndarray = np.frombuffer(base64.b64decode(text), dtype="<f4").copy()
    return values


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Sw of a weight (channels in, channels out): one a column, a float16 number so that both forms share it."""
    scales = np.maximum(np.abs(weight).max(axis=0) / LEVELS, _SMALLEST_SCALE)
    # Rounding to float16 may go down by 2**-11; one step up keeps the largest weight inside 127.5 levels anyway.
    shared: np.ndarray = scales.astype(np.float16).astype(np.float32)
    return shared


def activation_scale(value: float) -> float:
    """Sx as a float16 number: the FP16 form holds its scales in the type of the graph around them."""
    return float(np.float16(min(max(value, _SMALLEST_SCALE), float(np.finfo(np.float16).max))))


def fake_quantize(values: np.ndarray, scale: np.ndarray | float, shift: int = 0) -> np.ndarray:
    """What Q and DQ make of values: rounded half to even and clipped to -128 .. 127 around the shift, as ONNX says."""
    result: np.ndarray = np.clip(np.rint(values / scale), shift - LEVELS - 1, shift + LEVELS) * scale
    return result


def calibrate(
    model_path: Path,
    model_sha256: str,
    images: Iterable[np.ndarray],
    count: int,
    recipe: Recipe,
    described: dict[str, Any],
) -> Calibration:
    """Run the FP32 model over images and solve each group of layers.

    Args:
        model_path: model.onnx of the bundle.
        images: uint8 (height, width, 3) each, any mix of sizes.
        described: name, split and fingerprint of the images, for the cache.

    Raises:
        ModelError: the model has no layers to quantise.
        InputError: there are no images.
    """
    import onnx_ir as ir

    model = ir.load(model_path)
    groups = find_groups(model)
    if not groups:
        raise ModelError(
            "the graph has no products with constant weights between tokens, so there is nothing to quantise",
            hint="use --fp16 for this model",
        )
    sample = _Sample(groups, count, recipe)
    with progress.task("Calibrating", total=count, unit="images") as step:
        for activations in _activations(model, groups, images):
            sample.add(activations)
            step.advance()
    if sample.images == 0:
        raise InputError("there are no calibration images", hint="name a folder of images with --calibration-data")
    solved = []
    with progress.task("Solving layers", total=len(groups), unit="groups") as step:
        for index, group in enumerate(groups):
            solved.append(_solve(group, sample.rows(index), sample.largest[index], sample.lowest[index], recipe))
            step.advance()
    return Calibration(model_sha256, recipe, described, tuple(solved))


def _activations(model: ir.Model, groups: list[LayerGroup], images: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The groups' activations (tokens, channels), picture by picture."""
    import onnx_ir as ir

    onnxruntime = require("onnxruntime", extra="cpu")
    outputs = list(model.graph.outputs)
    model.graph.outputs.extend(group.activation for group in groups if group.activation not in outputs)
    names = [group.activation.name for group in groups]
    try:
        session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
    finally:
        del model.graph.outputs[len(outputs) :]
    for image in images:
        yield [array[0] for array in session.run(names, {"image": image[np.newaxis]})]


class _Sample:
    """The largest magnitude of every channel over all rows, and a fixed number of rows to measure errors on."""

    def __init__(self, groups: list[LayerGroup], count: int, recipe: Recipe) -> None:
        self.images = 0
        self.largest: list[np.ndarray] = [np.zeros(0)] * len(groups)
        self.lowest: list[float] = [0.0] * len(groups)
        self._rows: list[list[np.ndarray]] = [[] for _ in groups]
        self._per_image = max(2, -(-_ROWS // max(count, 1)))
        self._keep_every = max(1, -(-count * self._per_image // _ROWS))
        self._generator = np.random.default_rng(recipe.seed)

    def add(self, activations: list[np.ndarray]) -> None:
        keep = self.images % self._keep_every == 0
        for index, array in enumerate(activations):
            largest = np.abs(array).max(axis=0)
            self.largest[index] = np.maximum(self.largest[index], largest) if self.images else largest
            self.lowest[index] = min(self.lowest[index], float(array.min()))
            if keep:
                others = self._generator.choice(len(array) - 1, min(self._per_image, len(array)) - 1, replace=False) + 1
                self._rows[index].append(array[np.concatenate([[0], others])])
        self.images += 1

    def rows(self, index: int) -> np.ndarray:
        return np.concatenate(self._rows[index])


@dataclass(frozen=True)
class _Trial:
    """One choice of s, Sx and k, and the error Y - Y' (rows, outputs) that it leaves."""

    alpha: float
    clip: float
    scale: float
    shift: int
    smoothing: np.ndarray | None
    difference: np.ndarray

    @property
    def error(self) -> float:
        return float(np.square(self.difference, dtype=np.float64).mean())


def _solve(group: LayerGroup, rows: np.ndarray, largest: np.ndarray, lowest: float, recipe: Recipe) -> GroupCalibration:
    """Choose s, Sx and k of one group by the error of its output on `rows` (rows, channels)."""
    weights = group.weights()
    weight = np.concatenate(weights, axis=1)
    exact = rows @ weight
    trial = min(_trials(group, rows, weight, exact, largest, lowest, recipe), key=lambda trial: trial.error)
    error, bias = trial.error, {}
    if recipe.bias_correction:
        mean = trial.difference.mean(axis=0, dtype=np.float64).astype(np.float32)
        ends = np.cumsum([array.shape[1] for array in weights])
        parts = np.split(mean, ends[:-1])
        bias = {layer_name(node): part for node, part in zip(group.matmuls, parts, strict=True)}
        error -= float(np.square(mean, dtype=np.float64).mean())
    signal = float(np.square(exact, dtype=np.float64).mean())
    sqnr = 10 * np.log10(max(signal, 1e-30) / max(error, 1e-30))
    return GroupCalibration(
        group.name, trial.scale, trial.shift, trial.smoothing, bias, float(sqnr), trial.alpha, trial.clip
    )


def _trials(
    group: LayerGroup,
    rows: np.ndarray,
    weight: np.ndarray,
    exact: np.ndarray,
    largest: np.ndarray,
    lowest: float,
    recipe: Recipe,
) -> Iterator[_Trial]:
    alphas = _ALPHAS if recipe.smoothing and group.source is not None else (0.0,)
    for alpha in alphas:
        smoothing = _smoothing(largest, weight, alpha) if alpha else None
        scaled_rows = rows if smoothing is None else rows / smoothing
        scaled_weight = weight if smoothing is None else weight * smoothing[:, np.newaxis]
        quantized_weight = fake_quantize(scaled_weight, weight_scales(scaled_weight))
        top = float((largest if smoothing is None else largest / smoothing).max())
        for clip in _clips(recipe, scaled_rows, top):
            steps = [(activation_scale(clip * top / LEVELS), 0)]
            if group.can_shift and recipe.method != "minmax" and -lowest < top / 4:
                scale = activation_scale((clip * top - lowest) / (2 * LEVELS))
                steps.append((scale, round((clip * top + lowest) / 2 / scale)))
            for scale, shift in steps:
                difference = exact - fake_quantize(scaled_rows, scale, shift) @ quantized_weight
                yield _Trial(alpha, clip, scale, shift, smoothing, difference)


def _clips(recipe: Recipe, rows: np.ndarray, top: float) -> tuple[float, ...]:
    """The shares of the largest magnitude to try as range."""
    if recipe.method == "minmax":
        return (1.0,)
    if recipe.method == "percentile":
        return (float(np.percentile(np.abs(rows), recipe.percentile)) / max(top, 1e-30),)
    return _CLIPS


def _smoothing(largest: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """s per channel, its geometric mean 1 so that nothing drifts out of float16's range."""
    activation = np.maximum(largest, 1e-5).astype(np.float64)
    column = np.maximum(np.abs(weight).max(axis=1), 1e-5).astype(np.float64)
    logarithm = alpha * np.log(activation) - (1 - alpha) * np.log(column)
    smoothing: np.ndarray = np.exp(np.clip(logarithm - logarithm.mean(), -7, 7)).astype(np.float32)
    return smoothing
