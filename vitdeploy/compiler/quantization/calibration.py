"""Images -> what INT8 needs to know of each layer: the calibration, and its cache calibration.json.

The FP32 model runs over the images once, then the parameters of each layer are chosen on a sample of its inputs
(`observers`, `qparams`, `attention_qparams`). The cache holds all that `quantize` needs, so INT8 is rebuilt from it bit
for bit without images.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitdeploy import __version__
from vitdeploy.compiler.quantization.arithmetic import (
    E4M3,
    INT8,
    LEVELS,
    Numbers,
    activation_scale,
    fake_quantize,
    weight_scales,
)
from vitdeploy.compiler.quantization.attention import AttentionProducts
from vitdeploy.compiler.quantization.attention_qparams import AttentionQParams, choose_attention_qparams
from vitdeploy.compiler.quantization.groups import QuantGroup
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.observers import AttentionSample, GroupSample, activations
from vitdeploy.compiler.quantization.qparams import GroupQParams, choose_qparams, rounds_adaptively
from vitdeploy.compiler.quantization.recipe import Placement, Recipe
from vitdeploy.compiler.quantization.rounding import pack_steps, unpack_steps
from vitdeploy.compiler.quantization.schemes import FP8, INT8_SIGNED, INT8_UNSIGNED, Scheme
from vitdeploy.core import progress
from vitdeploy.core.decoding import decode, schema_version
from vitdeploy.core.errors import BundleError, InputError, ModelError
from vitdeploy.core.settings import field_names
from vitdeploy.core.storage import read_json

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "ALGORITHM",
    "LEVELS",
    "AttentionCalibration",
    "Calibration",
    "GroupCalibration",
    "activation_scale",
    "calibrate",
    "fake_quantize",
    "weight_scales",
]

SCHEMA_VERSION = 2
ALGORITHM = 3
"""Version of what decides the numbers in a cache and the INT8 graphs made from it: raise it when either changes.
`tests/compiler/quantization/test_calibration_version.py` fails where that was forgotten."""
_CODE_OF_1 = "577914d70e3cffa7"  # caches of before the version named a digest of the source; this one's is version 1


@dataclass(frozen=True, kw_only=True)
class GroupCalibration(GroupQParams):
    """What was found for one group of layers."""

    name: str

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
            **({"steps": {name: pack_steps(steps) for name, steps in self.steps.items()}} if self.steps else {}),
        }

    @classmethod
    def from_json(cls, data: _Group) -> GroupCalibration:
        bias = {name: _unpack(text) for name, text in data.bias.items()}
        vectors = {"centre": _unpack(data.centre), "smoothing": _unpack(data.smoothing), "bias": bias}
        vectors["steps"] = {name: unpack_steps(text) for name, text in data.steps.items()}
        return cls(**{**vars(data), **vectors})


@dataclass(frozen=True, kw_only=True)
class AttentionCalibration(AttentionQParams):
    """What was found for one layer's attention products."""

    name: str

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            **{name: _pack(getattr(self, name)) for name in _VECTORS},
            "sqnr_db": round(self.sqnr_db, 2),
        }

    @classmethod
    def from_json(cls, data: _Attention) -> AttentionCalibration:
        vectors = {name: _unpack(getattr(data, name)) for name in _VECTORS}
        return cls(**{**vars(data), **vectors})


_VECTORS = ("balance", "centre", "bias", "unsigned_bias")


@dataclass(frozen=True)
class Calibration:
    """The cache: INT8 is rebuilt from it without images, bit for bit, for the model whose hash it names.

    `images` describes what it was made from, `left_out` names the groups that stay out of INT8, `budget` says why (see
    `budget.Outcome`), `check` what images that did not calibrate say of it (see `check.CalibrationCheck`; None in files
    of before there was one). `algorithm` is the version (`ALGORITHM`) that found it, 0 where that is not known. One of
    another version is as good as on the day it was made: forms are made from it where there are no images. Where there
    are, it is out of date, and 0 always is.
    """

    model_sha256: str
    recipe: Recipe
    images: dict[str, Any]
    groups: tuple[GroupCalibration, ...]
    attention: tuple[AttentionCalibration, ...] = ()
    left_out: tuple[str, ...] = ()
    budget: dict[str, Any] | None = None
    algorithm: int = ALGORITHM
    check: dict[str, Any] | None = None
    numbers: Numbers = INT8

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that may be quantised: groups of layers, then attention products."""
        return (*(group.name for group in self.groups), *(products.name for products in self.attention))

    @property
    def coarser(self) -> Scheme:
        """The scheme that loses more, for decisions on both; only attention's is finer unsigned."""
        if self.numbers is E4M3:
            return FP8
        return INT8_SIGNED if self.attention else INT8_UNSIGNED

    def leaving_out(self, names: Iterable[str], budget: dict[str, Any] | None = None) -> Calibration:
        """The same calibration with those groups, and no others, left out of INT8."""
        chosen = set(names)
        return replace(self, left_out=tuple(name for name in self.names if name in chosen), budget=budget)

    def dumps(self) -> str:
        data = {
            "schema_version": SCHEMA_VERSION,
            "vitdeploy": __version__,
            "algorithm": self.algorithm,
            "model_sha256": self.model_sha256,
            "recipe": self.recipe.to_json(),
            "images": self.images,
            "left_out": list(self.left_out),
            "budget": self.budget,
            "check": self.check,
            "groups": [group.to_json() for group in self.groups],
            "attention": [products.to_json() for products in self.attention],
            **({} if self.numbers is INT8 else {"numbers": self.numbers.name}),
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path, model_sha256: str) -> Calibration:
        """Read a cache.

        Raises:
            BundleError: it is damaged, was made for another model, or by a newer vitdeploy.
        """
        try:
            data = read_json(path)
            if schema_version(data) > SCHEMA_VERSION:
                raise BundleError(
                    f"the calibration {path} was written by a newer vitdeploy ({data.get('vitdeploy')})",
                    hint="upgrade vitdeploy, or calibrate again with --calibration-data",
                )
            found: _File = decode(_File, data)
            calibration = cls(
                found.model_sha256,
                found.recipe,
                found.images,
                tuple(map(GroupCalibration.from_json, found.groups)),
                tuple(map(AttentionCalibration.from_json, found.attention)),
                found.left_out,
                found.budget,
                int(found.code == _CODE_OF_1) if found.algorithm is None else found.algorithm,
                found.check,
                E4M3 if found.numbers == E4M3.name else INT8,
            )
        except (OSError, ValueError) as error:
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


@dataclass(frozen=True)
class _Group:
    """A `GroupCalibration` as the file has it: vectors as text."""

    name: str
    scale: float
    shift: int
    smoothing: str | None
    bias: dict[str, str]
    sqnr_db: float
    alpha: float
    clip: float
    centre: str | None = None
    steps: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Attention:
    """An `AttentionCalibration` as the file has it."""

    name: str
    query: float
    key: float
    value: float
    probability: float
    sqnr_db: float
    balance: str | None = None
    centre: str | None = None
    bias: str | None = None
    unsigned: float | None = None
    unsigned_bias: str | None = None


@dataclass(frozen=True)
class _File:
    """calibration.json."""

    model_sha256: str
    recipe: Recipe
    images: dict[str, Any]
    groups: tuple[_Group, ...]
    attention: tuple[_Attention, ...] = ()
    left_out: tuple[str, ...] = ()
    budget: dict[str, Any] | None = None
    check: dict[str, Any] | None = None
    algorithm: int | None = None
    code: str | None = None
    numbers: Literal["int8", "e4m3"] = "int8"


def _pack(values: np.ndarray | None) -> str | None:
    return None if values is None else base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _unpack(text: str | None) -> np.ndarray | None:
    if text is None:
        return None
    values: np.ndarray = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").copy()
    if not np.isfinite(values).all():
        raise ValueError("a vector in it is not finite")
    return values


def calibrate(
    model_path: Path,
    model_sha256: str,
    images: Iterable[np.ndarray],
    count: int,
    recipe: Recipe,
    described: dict[str, Any],
    layers: QuantLayers | None = None,
    numbers: Numbers = INT8,
) -> Calibration:
    """Run the FP32 model over images and choose the quantisation parameters of each group of layers.

    Args:
        model_path: model.onnx of the bundle.
        images: uint8 (height, width, 3) each, any mix of sizes.
        described: name, split and fingerprint of the images, for the cache.
        layers: those of the graph, or of another copy of it; None: look for them.
        numbers: what is rounded to.

    Raises:
        ModelError: the model has no layers to quantise.
        InputError: there are no images.
    """
    import onnx_ir as ir

    model = ir.load(model_path)
    found = QuantLayers.find(model, recipe) if layers is None else layers.on(model)
    groups = list(found.groups.values())
    attention = list(found.attention.values()) if recipe.attention else []
    _check_found(groups, attention, recipe)
    group_samples = [
        GroupSample(
            group, count, np.random.default_rng([recipe.seed, index]), with_moments=rounds_adaptively(recipe, numbers)
        )
        for index, group in enumerate(groups)
    ]
    attention_samples = [
        AttentionSample(products, count, np.random.default_rng([recipe.seed, index, 1]))
        for index, products in enumerate(attention)
    ]
    _observe(model, group_samples, attention_samples, images, count)
    if not group_samples[0].images:
        raise InputError("there are no calibration images", hint="name a folder of images with --calibration-data")
    chosen = _chosen(group_samples, attention_samples, recipe, numbers)
    return Calibration(model_sha256, recipe, described, *chosen, numbers=numbers)


def _chosen(
    groups: list[GroupSample], attention: list[AttentionSample], recipe: Recipe, numbers: Numbers
) -> tuple[tuple[GroupCalibration, ...], tuple[AttentionCalibration, ...]]:
    """The quantisation parameters of each group of layers and of each attention, by what was seen of them."""
    of_groups, of_attention = [], []
    by_source = {}
    value_means = {
        kept.products.value_source.node: kept.value_mean for kept in attention if kept.products.value_source is not None
    }
    with progress.task("Choosing scales", total=len(groups) + len(attention), unit="groups") as step:
        for sample in groups:
            source = sample.group.source
            mean = None if source is None else value_means.get(source.node)
            qparams = choose_qparams(sample.group, sample, recipe, mean, numbers)
            if source is not None:
                by_source[source.node] = qparams
            of_groups.append(GroupCalibration(name=sample.group.name, **vars(qparams)))
            step.advance()
        for kept in attention:
            source = kept.products.value_source
            values = None if source is None else by_source.get(source.node)
            scales = choose_attention_qparams(kept, recipe, values, numbers)
            of_attention.append(AttentionCalibration(name=kept.products.name, **vars(scales)))
            step.advance()
    return tuple(of_groups), tuple(of_attention)


def _check_found(groups: list[QuantGroup], attention: list[AttentionProducts], recipe: Recipe) -> None:
    if not any(group.kind == "linear" for group in groups):
        raise ModelError(
            "the graph has no products with constant weights between tokens, so there is nothing to quantise",
            hint="use --fp16 for this model",
        )
    kinds = {group.kind for group in groups} | ({"attention"} if attention else set())
    for name in field_names(Placement):
        if getattr(recipe, name) and name not in kinds:
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
                # (heads, tokens, head_dim), of windows the first one's
                kept.add(*(array if array.ndim == 3 else array[0] for array in arrays[start : start + 3]))
            step.advance()
