"""Bundle -> bundle with FP16 and INT8 forms and TensorRT engines in it.

The order: the ONNX forms first, in one change of the bundle, then one engine after the other, each a change of its own.
What is already there and up to date is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy import __version__, machine, progress
from vitdeploy.bundle import Artifact, Bundle, BundleEditor
from vitdeploy.compiler.calibration import Calibration
from vitdeploy.compiler.graph.compose import exchange_front
from vitdeploy.compiler.graph.half import single_by_standard, to_half
from vitdeploy.compiler.graph.integer_products import fuse_integer_products
from vitdeploy.compiler.graph.read_rows import compute_read_rows
from vitdeploy.compiler.graph.save import save
from vitdeploy.compiler.half_forms import check_half, plan_for, static_size
from vitdeploy.compiler.half_plan import HalfPlan
from vitdeploy.compiler.int8 import VALIDATION_IMAGES, Int8Request, Int8Stage
from vitdeploy.compiler.preprocessing import build_preprocessing
from vitdeploy.compiler.quantize import quantize
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.compiler.structure import check_structure
from vitdeploy.errors import InputError, require

if TYPE_CHECKING:
    from vitdeploy.compiler.engine import EngineOptions

__all__ = ["PRECISIONS", "BuildResult", "build"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_HALVES = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class BuildResult:
    """The bundle after the build, what was made, and what was there already and up to date.

    `stale` are engines of these precisions that were there already and whose graph is not there any more: another took
    its place, and they were not built anew, since another target was asked for. `load` refuses them.
    """

    bundle: Bundle
    target: str
    built: tuple[Artifact, ...]
    kept: tuple[Artifact, ...]
    stale: tuple[Artifact, ...]


def build(
    bundle: Bundle | str | os.PathLike[str],
    precisions: Sequence[str],
    *,
    target: str = "auto",
    recipe: Recipe | None = None,
    max_drop: float | None = None,
    validation_images: int = VALIDATION_IMAGES,
    engine_options: EngineOptions | None = None,
    force: bool = False,
) -> BuildResult:
    """Make forms of a bundle and engines from them.

    Args:
        bundle: the bundle, or its folder.
        precisions: of "fp32" (only an engine), "fp16", "bf16", "int8".
        target: "tensorrt", "tensorrt-rtx", "onnx" (no engine), or "auto": what this machine can build.
        recipe: how to calibrate INT8, with its dataset; None uses the bundle's calibration. FP16 looks for values that
            it can't hold on the same images.
        max_drop: the most top-1 that INT8 may lose, in points, with 95 % confidence; as few layers as possible are kept
            out of INT8 for it. None: all layers are in INT8, whatever that costs.
        validation_images: on how many images, other than those that calibrate, the drop is measured.
        engine_options: batch and image sizes, workspace ... of the engines.
        force: build again what is up to date.

    Raises:
        InputError: a precision that is not known, or INT8 with neither a recipe nor a calibration in the bundle.
        ModelError: INT8 can't meet the budget, or would be slower than FP16 by its structure.
        EngineError: the target can't be built here.
    """
    from vitdeploy.compiler.engine import EngineOptions, check_options, choose_target

    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    wanted = _check_precisions(precisions)
    request = Int8Request(recipe, max_drop, validation_images)
    chosen = choose_target(target)
    options = None
    if chosen != "onnx":  # what the engines can't be is said before minutes go into calibration
        options = (engine_options or EngineOptions(flavour=chosen)).for_manifest(opened.manifest, chosen)
        check_options(options, opened.manifest.inputs[0])
    before = {artifact.path: artifact for artifact in opened.manifest.artifacts}
    if set(wanted) - {"fp32"}:
        with opened.edit() as editor:
            _Forms(opened, editor, request, force).make(wanted)
        opened = opened.reopen()
    if options is not None:
        for precision in wanted:
            _build_engine(opened, precision, options, force)
            opened = opened.reopen()
    built = tuple(a for a in opened.manifest.artifacts if before.get(a.path) != a)
    kinds = {("onnx", precision) for precision in wanted} | {("engine", precision) for precision in wanted}
    there = [a for a in opened.manifest.artifacts if before.get(a.path) == a and (a.kind, a.precision) in kinds]
    outdated = opened.out_of_date()
    stale = tuple(a for a in there if a.kind == "engine" and a.path in outdated)
    return BuildResult(opened, chosen, built, tuple(a for a in there if a not in stale), stale)


def _check_precisions(precisions: Sequence[str]) -> tuple[str, ...]:
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not known", hint=f"one of {', '.join(PRECISIONS)}")
    if not precisions:
        raise InputError("no precision was asked for", hint="add --fp16, --bf16, --int8 or more of them")
    return tuple(precision for precision in PRECISIONS if precision in precisions)


class _Forms:
    """The FP16 and INT8 graphs of a bundle, made from its FP32 graph."""

    def __init__(self, bundle: Bundle, editor: BundleEditor, request: Int8Request, force: bool) -> None:
        single = bundle.find(kind="onnx", precision="fp32")
        if single is None:
            raise InputError(f"{bundle.path} has no model.onnx", hint="export it again")
        self._bundle, self._editor, self._force = bundle, editor, force
        self._single = single
        self._int8 = Int8Stage(bundle, editor, single, request, force=force)
        self._path = bundle.file(single)
        self._plan: HalfPlan | None = None

    def make(self, precisions: tuple[str, ...]) -> None:
        if "int8" in precisions:
            self._int8.check()  # before images go through the model for FP16
        origin = self._plan_half() if {"fp16", "int8"} & set(precisions) else {}
        for precision, needs in (("fp16", origin), ("bf16", {})):
            name = f"model.{precision}.onnx"
            if precision in precisions and not self._current(name, needs):
                with progress.task(f"{precision.upper()} graph"):
                    self._write(name, precision, "any", needs)
        if "int8" in precisions:
            calibration, made_with = self._int8.calibration()
            for name, target in (("model.int8.onnx", "tensorrt"), ("model.int8-cpu.onnx", "cpu")):
                needs = made_with if target == "cpu" else {**made_with, **origin}
                if not self._current(name, needs):
                    with progress.task(f"INT8 graph ({target})"):
                        self._write(name, "int8", target, needs, calibration)

    def _plan_half(self) -> dict[str, str]:
        """Find out what FP16 must keep in FP32; the hash that ties the forms to it."""
        recipe = self._int8.request.recipe
        chosen = None if recipe is None or recipe.dataset is None else self._int8.chosen
        images = None if chosen is None else chosen.calibration
        self._plan, sha256 = plan_for(self._bundle, self._editor, self._single, images, force=self._force)
        return {"half_plan_sha256": sha256}

    def _current(self, name: str, origin: dict[str, str]) -> bool:
        there = next((a for a in self._bundle.manifest.artifacts if a.path == name), None)
        return (
            there is not None
            and not self._force
            and there.built_from == self._single.sha256
            and there.built_with.get("vitdeploy") == __version__
            and all(there.built_with.get(key) == value for key, value in origin.items())
            and (self._bundle.path / name).is_file()
        )

    def _write(
        self, name: str, precision: str, target: str, origin: dict[str, str], calibration: Calibration | None = None
    ) -> None:
        ir = require("onnx_ir", extra="build")
        model = ir.load(self._path)
        if calibration is not None:
            quantize(model, calibration, target=target)
        kept: frozenset[str] = frozenset()
        lacking = single_by_standard(model, _HALVES[precision]) if precision in _HALVES else {}
        if calibration is not None:
            model = exchange_front(self._preprocessing_for(target, model), model)
        if target == "cpu":
            fuse_integer_products(model)
            compute_read_rows(model)
        else:
            kept = self._plan.names if self._plan is not None and precision != "bf16" else kept
            to_half(model, kept, dtype=_HALVES.get(precision, "float16"))
        made_with: dict[str, Any] = {"vitdeploy": __version__, **origin}
        if precision == "int8" and target == "tensorrt":
            structure = check_structure(model, kept)
            progress.note(f"INT8 graph: {structure}")
            structure.require_sound()
            made_with["structure"] = structure.to_json()
        if precision in _HALVES:
            kept_fp32 = [asdict(e) for e in self._plan.kept] if kept and self._plan is not None else []
            kept_fp32 += [{"node": name, "why": why} for name, why in lacking.items()]
            made_with["kept_fp32"] = kept_fp32
        path = self._editor.path_for(name)
        data = save(model, path)
        if data is not None:
            self._editor.add(data.name, kind="weights", precision=precision, target=target)
        if target != "cpu":
            found = check_half(path, self._path, precision, static_size(self._bundle))
            made_with |= found.to_json() if precision in _HALVES else {}
        self._editor.add(
            name,
            kind="onnx",
            precision=precision,
            target=target,
            built_from=self._single.sha256,
            built_with=made_with,
        )

    def _preprocessing_for(self, target: str, model: Any) -> Any:
        height, width = model.graph.inputs[0].shape[1:3]
        known = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        return build_preprocessing(self._bundle.manifest.preprocess, input_size=known, target=target)


def _build_engine(bundle: Bundle, precision: str, options: EngineOptions, force: bool) -> None:
    """One engine, in a change of the bundle of its own; nothing is done where it is there and up to date."""
    from vitdeploy.compiler.engine import build_engine

    source = bundle.find(kind="onnx", precision=precision, target="tensorrt" if precision == "int8" else "any")
    assert source is not None, "forms are made before engines"
    name = f"engines/{options.flavour}-{precision}.engine"
    request = _request(options)
    there = next((artifact for artifact in bundle.manifest.artifacts if artifact.path == name), None)
    if (
        there is not None
        and not force
        and there.built_from == source.sha256
        and there.built_with.get("request") == request
        and (bundle.path / name).is_file()
    ):
        progress.note(f"{name} is up to date: nothing to build.")
        return
    with bundle.edit() as editor:
        log_path = (bundle.path / name).with_suffix(".log")  # beside the engine, and kept if the build fails
        log_path.parent.mkdir(exist_ok=True)
        info = build_engine(bundle.file(source), editor.path_for(name), options, log_path=log_path)
        editor.add(
            name,
            kind="engine",
            precision=precision,
            target=options.flavour,
            built_from=source.sha256,
            built_with={**info.to_json(), "vitdeploy": __version__, "request": request},
        )


def _request(options: EngineOptions) -> dict[str, Any]:
    """What was asked for, to tell whether an engine is the one that is asked for now."""
    return {
        **options.to_json(),
        "profiles": [profile.to_json() for profile in options.profiles],
        "installed": machine.version(options.flavour),
    }
