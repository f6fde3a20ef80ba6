"""Images -> what INT8 needs to know of each layer: the calibration, and its cache calibration.json.

The FP32 model runs over the images once, then each layer is solved on a sample of what it read (`observe`, `solve`,
`solve_attention`). The cache holds all that `quantize` needs, so INT8 is rebuilt from it bit for bit without images.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__, progress
from vitdeploy.compiler.arithmetic import LEVELS, activation_scale, fake_quantize, weight_scales
from vitdeploy.compiler.attention import AttentionProducts, find_attention
from vitdeploy.compiler.layers import LayerGroup, find_groups
from vitdeploy.compiler.observe import AttentionSample, GroupSample, activations
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.compiler.solve import solve_group
from vitdeploy.compiler.solve_attention import solve_attention
from vitdeploy.errors import BundleError, InputError, ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "LEVELS",
    "AttentionCalibration",
    "Calibration",
    "GroupCalibration",
    "activation_scale",
    "calibrate",
    "code_fingerprint",
    "fake_quantize",
    "weight_scales",
]

SCHEMA_VERSION = 2
# What decides the numbers in the cache, and the graph that is made from them.
_CODE = (
    *("arithmetic", "attention", "calibration", "layers", "observe", "quantize", "ranges", "recipe", "solve"),
    "solve_attention",
    "graph/integer_products",
    "graph/read_rows",
)


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """SHA-256 over the source of the modules that calibrate and quantise, 16 digits of it; "unknown" without source."""
    digest = hashlib.sha256()
    for name in _CODE:
        try:
            digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
        except OSError:
            return "unknown"
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class GroupCalibration:
    """What was found for one group of layers.

    `scale` is Sx, `shift` is k, `centre` and `smoothing` are z and s per channel or None (see `solve`), `bias` is the
    correction of each layer per output channel, and `sqnr_db` the signal-to-noise ratio of the group's output on the
    sample, 10 log10(|Y|^2 / |Y - Y'|^2).
    """

    name: str
    scale: float
    shift: int
    centre: np.ndarray | None
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
            "centre": _pack(self.centre),
            "smoothing": _pack(self.smoothing),
            "bias": {name: _pack(values) for name, values in self.bias.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GroupCalibration:
        return cls(
            name=data["name"],
            scale=data["scale"],
            shift=data["shift"],
            centre=_unpack(data.get("centre")),
            smoothing=_unpack(data["smoothing"]),
            bias={name: found for name, text in data["bias"].items() if (found := _unpack(text)) is not None},
            sqnr_db=data["sqnr_db"],
            alpha=data["alpha"],
            clip=data["clip"],
        )


@dataclass(frozen=True)
class AttentionCalibration:
    """What was found for one layer's attention products: four scales, and two vectors over the channels.

    `balance` is what Q is divided by and K multiplied with, `centre` what is taken off K; `bias` is O's mean error,
    which goes through the output projection into its bias. None: nothing. `unsigned` and `unsigned_bias` stand for
    `probability` and `bias` in the form for CPUs; None there: it has the integers of the other form.
    """

    name: str
    query: float
    key: float
    value: float
    probability: float
    balance: np.ndarray | None
    centre: np.ndarray | None
    bias: np.ndarray | None
    sqnr_db: float
    unsigned: float | None = None
    unsigned_bias: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            **{name: _pack(getattr(self, name)) for name in _VECTORS},
            "sqnr_db": round(self.sqnr_db, 2),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AttentionCalibration:
        return cls(**{**data, **{name: _unpack(data.get(name)) for name in _VECTORS}})


_VECTORS = ("balance", "centre", "bias", "unsigned_bias")


@dataclass(frozen=True)
class Calibration:
    """The cache: INT8 is rebuilt from it without images, bit for bit, for the model whose hash it names.

    `images` describes what it was made from, `code` is the fingerprint of the code that made it. `left_out` names the
    groups that stay out of INT8, `budget` says why (see `budget.Outcome`).
    """

    model_sha256: str
    recipe: Recipe
    images: dict[str, Any]
    groups: tuple[GroupCalibration, ...]
    attention: tuple[AttentionCalibration, ...] = ()
    left_out: tuple[str, ...] = ()
    budget: dict[str, Any] | None = None
    code: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that may be quantised: groups of layers, then attention products."""
        return (*(group.name for group in self.groups), *(products.name for products in self.attention))

    @property
    def coarser(self) -> str:
        """The target whose form loses more, for decisions on both; only attention's is finer for CPUs."""
        return "tensorrt" if self.attention else "cpu"

    def leaving_out(self, names: Iterable[str], budget: dict[str, Any] | None = None) -> Calibration:
        """The same calibration with those groups, and no others, left out of INT8."""
        chosen = set(names)
        return replace(self, left_out=tuple(name for name in self.names if name in chosen), budget=budget)

    def dumps(self) -> str:
        data = {
            "schema_version": SCHEMA_VERSION,
            "vitdeploy": __version__,
            "code": self.code,
            "model_sha256": self.model_sha256,
            "recipe": self.recipe.to_json(),
            "images": self.images,
            "left_out": list(self.left_out),
            "budget": self.budget,
            "groups": [group.to_json() for group in self.groups],
            "attention": [products.to_json() for products in self.attention],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path, model_sha256: str) -> Calibration:
        """Read a cache.

        Raises:
            BundleError: it is damaged, was made for another model, or by a newer vitdeploy.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema_version"] > SCHEMA_VERSION:
                raise BundleError(
                    f"the calibration {path} was written by a newer vitdeploy ({data.get('vitdeploy')})",
                    hint="upgrade vitdeploy, or calibrate again with --calibration-data",
                )
            calibration = cls(
                data["model_sha256"],
                Recipe(**data["recipe"]),
                data["images"],
                tuple(GroupCalibration.from_json(group) for group in data["groups"]),
                tuple(AttentionCalibration.from_json(products) for products in data.get("attention", [])),
                tuple(data.get("left_out", [])),
                data.get("budget"),
                data.get("code", ""),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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


def _pack(values: np.ndarray | None) -> str | None:
    return None if values is None else base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _unpack(text: str | None) -> np.ndarray | None:
    return None if text is None else np.frombuffer(base64.b64decode(text), dtype="<f4").copy()


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
    groups = find_groups(model, recipe.placement)
    attention = find_attention(model) if recipe.attention else []
    _check_found(groups, attention, recipe)
    group_samples = [
        GroupSample(group, count, np.random.default_rng([recipe.seed, index])) for index, group in enumerate(groups)
    ]
    attention_samples = [
        AttentionSample(products, count, np.random.default_rng([recipe.seed, index, 1]))
        for index, products in enumerate(attention)
    ]
    _observe(model, group_samples, attention_samples, images, count)
    if not group_samples[0].images:
        raise InputError("there are no calibration images", hint="name a folder of images with --calibration-data")
    solved, solved_attention = [], []
    by_source = {}
    value_means = {
        kept.products.value_source.node: kept.value_mean
        for kept in attention_samples
        if kept.products.value_source is not None
    }
    with progress.task("Solving layers", total=len(groups) + len(attention), unit="groups") as step:
        for sample in group_samples:
            source = sample.group.source
            solution = solve_group(
                sample.group, sample, recipe, None if source is None else value_means.get(source.node)
            )
            if source is not None:
                by_source[source.node] = solution
            solved.append(GroupCalibration(sample.group.name, **vars(solution)))
            step.advance()
        for kept in attention_samples:
            source = kept.products.value_source
            found = solve_attention(kept, recipe, None if source is None else by_source.get(source.node))
            solved_attention.append(AttentionCalibration(kept.products.name, **vars(found)))
            step.advance()
    return Calibration(model_sha256, recipe, described, tuple(solved), tuple(solved_attention), code=code_fingerprint())


def _check_found(groups: list[LayerGroup], attention: list[AttentionProducts], recipe: Recipe) -> None:
    if not any(group.kind == "linear" for group in groups):
        raise ModelError(
            "the graph has no products with constant weights between tokens, so there is nothing to quantise",
            hint="use --fp16 for this model",
        )
    kinds = {group.kind for group in groups} | ({"attention"} if attention else set())
    for name, wanted in vars(recipe.placement).items():
        if wanted and name not in kinds:
            raise ModelError(
                f"the graph has no {name.replace('_', ' ')} that could be quantised",
                hint=f"leave {name} out of the recipe, or its option out of the command",
            )


def _observe(
    model: ir.Model,
    groups: list[GroupSample],
    attention: list[AttentionSample],
    images: Iterable[np.ndarray],
    count: int,
) -> None:
    """Run the images and let each sample take what it needs."""
    values = [sample.group.activation for sample in groups]
    values += [value for sample in attention for value in sample.products.operands]
    with progress.task("Calibrating", total=count, unit="images") as step:
        for arrays in activations(model, values, images):
            for sample, array in zip(groups, arrays, strict=False):
                sample.add(array)
            for index, kept in enumerate(attention):
                start = len(groups) + 3 * index
                kept.add(*arrays[start : start + 3])
            step.advance()
