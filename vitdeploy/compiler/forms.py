"""The table of forms: of each graph that a bundle can hold, the passes that make it and the checks it must pass.

A new precision or form is a row here (its names and places in `core/precisions.py`), and a scheme in `quantization/`
where its arithmetic is new. `build` walks the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle import Artifact, Bundle, BundleEditor
from vitdeploy.compiler.float16.cast import single_by_standard, to_half
from vitdeploy.compiler.float16.check import check_half
from vitdeploy.compiler.float16.plan import HalfPlan, plan_for
from vitdeploy.compiler.lint.structure import check_structure
from vitdeploy.compiler.passes.compose import exchange_preprocessing
from vitdeploy.compiler.passes.integer_products import fuse_integer_products
from vitdeploy.compiler.passes.prune_token_rows import prune_token_rows
from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.preprocessing import build_preprocessing
from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, Numbers
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.int8 import Int8Stage
from vitdeploy.compiler.quantization.schemes import FP8, INT8_SIGNED, INT8_UNSIGNED, Scheme
from vitdeploy.compiler.samples import static_size
from vitdeploy.compiler.selftest import SelftestStage
from vitdeploy.compiler.settings import BuildSettings
from vitdeploy.core import precisions, progress
from vitdeploy.core.precisions import FormSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.backends.base import Runner

__all__ = ["FORMS", "Check", "Form", "Ingredients", "Making", "Needed", "Pass", "register"]


class Ingredients:
    """What forms are made with beside a graph: each is found, or made, at most once a build."""

    def __init__(self, bundle: Bundle, editor: BundleEditor, single: Artifact, settings: BuildSettings) -> None:
        self.bundle, self.single = bundle, bundle.file(single)
        self.stages = {numbers: Int8Stage(bundle, editor, single, settings, numbers) for numbers in (INT8, E4M3)}
        self.int8 = self.stages[INT8]
        self.selftest = SelftestStage(bundle, editor, single)
        self._editor, self._artifact, self._force = editor, single, settings.force
        self._calibrations: dict[Numbers, tuple[Calibration, dict[str, Any]]] = {}

    @cached_property
    def half_plan(self) -> tuple[HalfPlan, dict[str, str]]:
        """What FP16 must keep in FP32; the hash that ties forms to it."""
        recipe = self.int8.settings.recipe
        chosen = None if recipe is None or recipe.dataset is None else self.int8.chosen
        images = None if chosen is None else chosen.calibration
        plan, sha256 = plan_for(self.bundle, self._editor, self._artifact, images, force=self._force)
        return plan, {"half_plan_sha256": sha256}

    def calibration(self, numbers: Numbers) -> tuple[Calibration, dict[str, Any]]:
        """How to quantise each layer; what ties forms to it."""
        if numbers not in self._calibrations:
            self._calibrations[numbers] = self.stages[numbers].calibration()
        return self._calibrations[numbers]


@dataclass(frozen=True)
class Needed:
    """An ingredient of a form. `find` finds or makes it and returns what ties a form to it, for the manifest; `check`
    raises at once where it can't be had."""

    find: Callable[[Ingredients], dict[str, Any]]
    check: Callable[[Ingredients], None] = lambda ingredients: None


@dataclass
class Making:
    """A form under way: what its passes and checks read, and what they add to `built_with` in the manifest. `runner` is
    the form, open and computed as a device does, for checks."""

    spec: FormSpec
    ingredients: Ingredients
    built_with: dict[str, Any] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()  # names of the nodes that stay in FP32
    runner: Runner | None = None


Pass = Callable[["ir.Model", Making], "ir.Model"]
"""Returns the changed graph, which may be the one it got."""
Check = Callable[["ir.Model", Path, Making], None]
"""Looks at the graph and the file written from it; raises ModelError where the form can't be used."""


@dataclass(frozen=True)
class Form:
    """One row: a graph made from the graph `origin`, (precision, target), of the same bundle."""

    spec: FormSpec
    passes: tuple[Pass, ...]
    checks: tuple[Check, ...] = ()
    needs: tuple[Needed, ...] = ()
    origin: tuple[str, str] = ("fp32", "any")


def _quantized(scheme: Scheme) -> Pass:
    def run(model: ir.Model, making: Making) -> ir.Model:
        ingredients, numbers = making.ingredients, scheme.numbers
        quantize(model, ingredients.calibration(numbers)[0], scheme=scheme, layers=ingredients.stages[numbers].layers)
        return model

    return run


def _own_preprocessing(model: ir.Model, making: Making) -> ir.Model:
    """The preprocessing in the layout that is best on the form's target."""
    bundle = making.ingredients.bundle
    size, target = static_size(bundle), making.spec.target
    own = build_preprocessing(bundle.manifest.preprocess, input_size=size, target=target)
    return exchange_preprocessing(own, model)


def _half(dtype: str, *, planned: bool = True, listed: bool = True) -> Pass:
    """Cast to float16 or bfloat16; `planned`: less what the plan keeps in FP32; `listed`: the manifest names that."""

    def run(model: ir.Model, making: Making) -> ir.Model:
        kept = making.ingredients.half_plan[0].kept if planned else ()
        making.kept = frozenset(entry.node for entry in kept)
        if listed:
            lacking = single_by_standard(model, dtype)
            making.built_with["kept_fp32"] = [
                *(asdict(entry) for entry in kept),
                *({"node": name, "why": why} for name, why in lacking.items()),
            ]
        to_half(model, making.kept, dtype=dtype)
        return model

    return run


def _in_place(change: Callable[[ir.Model], PassResult]) -> Pass:
    def run(model: ir.Model, making: Making) -> ir.Model:
        change(model).report()
        return model

    return run


def _close_to_fp32(tolerance: float | None) -> Check:
    """Finite logits, and no further from FP32's than `tolerance` of their range; None: however far they are."""

    def check(model: ir.Model, path: Path, making: Making) -> None:
        bundle = making.ingredients.bundle
        assert making.runner is not None
        found = check_half(making.runner, making.ingredients.single, making.spec.title, tolerance, static_size(bundle))
        if tolerance is not None:
            making.built_with |= found.to_json()

    return check


def _faster_than_fp16(numbers: Numbers) -> Check:
    def check(model: ir.Model, path: Path, making: Making) -> None:
        structure = check_structure(model, making.kept, numbers)
        progress.note(f"{making.spec.title} graph: {structure}")
        structure.require_sound()
        making.built_with["structure"] = structure.to_json()

    return check


def _calibration_in(numbers: Numbers) -> Needed:
    return Needed(
        lambda ingredients: ingredients.calibration(numbers)[1],
        lambda ingredients: ingredients.stages[numbers].check(),
    )


_HALF_PLAN = Needed(lambda ingredients: ingredients.half_plan[1])
_CALIBRATION, _FP8_CALIBRATION = _calibration_in(INT8), _calibration_in(E4M3)
_SPECS = precisions.FORMS

# FP16 has 11 bits, BF16 8: the logits of sound models differ by less than 0.01 and 0.05 of their range.
FORMS = {
    form.spec.key: form
    for form in (
        Form(
            _SPECS["fp16", "any"],
            passes=(_half("float16"),),
            checks=(_close_to_fp32(0.05),),
            needs=(_HALF_PLAN,),
        ),
        Form(
            _SPECS["bf16", "any"],
            passes=(_half("bfloat16", planned=False),),
            checks=(_close_to_fp32(0.1),),
        ),
        Form(
            _SPECS["int8", "tensorrt"],
            passes=(_quantized(INT8_SIGNED), _own_preprocessing, _half("float16", listed=False)),
            checks=(_faster_than_fp16(INT8), _close_to_fp32(None)),
            needs=(_HALF_PLAN, _CALIBRATION),
        ),
        Form(
            _SPECS["int8", "cpu"],
            passes=(
                _quantized(INT8_UNSIGNED),
                _own_preprocessing,
                _in_place(fuse_integer_products),
                _in_place(prune_token_rows),
            ),
            needs=(_CALIBRATION,),
        ),
        Form(
            _SPECS["fp8", "tensorrt"],
            passes=(_quantized(FP8), _own_preprocessing, _half("float16", listed=False)),
            checks=(_faster_than_fp16(E4M3), _close_to_fp32(None)),
            needs=(_HALF_PLAN, _FP8_CALIBRATION),
        ),
    )
}
"""By (precision, target), in the order in which they are made. FP32 is not here: `export` makes it."""


def register(form: Form) -> None:
    """Add a row, behind the others."""
    precisions.register(form.spec)
    FORMS[form.spec.key] = form
