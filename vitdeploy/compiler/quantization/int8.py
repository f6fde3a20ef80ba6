"""The quantised side of a bundle: the calibration of INT8 and that of FP8, made, found again or fitted to a budget; and
the layers' analysis."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vitdeploy import __version__
from vitdeploy.bundle import CALIBRATIONS, Artifact, Bundle, BundleEditor
from vitdeploy.compiler.quantization.arithmetic import E4M3, INT8, Numbers
from vitdeploy.compiler.quantization.budget import LOOKS, meet_budget
from vitdeploy.compiler.quantization.calibration import ALGORITHM, Calibration, calibrate
from vitdeploy.compiler.quantization.check import OTHERS, check_calibration
from vitdeploy.compiler.quantization.counts import ANALYSIS_IMAGES
from vitdeploy.compiler.quantization.image_selection import Chosen, choose_images
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.sensitivity import SCHEMA_VERSION, LayerReport, analyze_layers
from vitdeploy.compiler.samples import static_size
from vitdeploy.compiler.settings import BuildSettings
from vitdeploy.core import progress
from vitdeploy.core.errors import DatasetError, InputError, ModelError
from vitdeploy.core.settings import field_names
from vitdeploy.core.text import quoted
from vitdeploy.data import ImageDataset
from vitdeploy.data.labels import BY_NAME
from vitdeploy.evaluation.judges import require_shown_by
from vitdeploy.evaluation.limits import Limits
from vitdeploy.evaluation.paired import Truth
from vitdeploy.models.tasks import EMBEDDING, TASKS

__all__ = [
    "FILES",
    "Analysis",
    "Int8Stage",
    "add_calibration",
    "analyze",
    "recipe_of",
]

FILES = {INT8: "calibration.json", E4M3: "calibration.fp8.json"}
"""The file of a calibration; what kind of artifact it is, `CALIBRATIONS` says."""
_SIZE = (224, 224)  # of drawn images, for a graph that takes any and says none


class Int8Stage:
    """Finds or makes the calibration of a bundle for INT8 or other numbers, in a change of the bundle that the caller
    opened."""

    def __init__(
        self,
        bundle: Bundle,
        editor: BundleEditor,
        single: Artifact,
        settings: BuildSettings,
        numbers: Numbers = INT8,
    ) -> None:
        self._bundle, self._editor, self._single = bundle, editor, single
        own = numbers is E4M3 and settings.fp8_recipe is not None
        self.settings = replace(settings, recipe=settings.fp8_recipe) if own else settings
        self._numbers = numbers
        self._kind, self._file = CALIBRATIONS[numbers.precision], FILES[numbers]
        self._path = bundle.file(single)
        self._task = TASKS[bundle.manifest.task]

    @cached_property
    def chosen(self) -> Chosen | None:
        """The recipe's images; None where there is no recipe, or it names no dataset."""
        recipe = self.settings.recipe
        return None if recipe is None else choose_images(recipe, self._path)

    @cached_property
    def _stored(self) -> Calibration:
        cached = self._bundle.find(kind=self._kind)
        assert cached is not None
        return Calibration.load(self._bundle.file(cached), self._single.sha256)

    @cached_property
    def layers(self) -> QuantLayers:
        """What may be quantised in the FP32 graph, for all that is made of it."""
        recipe = self.settings.recipe or self._stored.recipe
        return QuantLayers.find_in_file(self._path, recipe)

    @cached_property
    def truth(self) -> Truth | None:
        """The images that a budget is judged on; None where there is no budget."""
        settings, recipe = self.settings, self.settings.recipe
        if not settings.limits:
            return None
        assert recipe is not None and self.chosen is not None
        found = _truth(self._bundle, self.chosen, settings.validation_images, recipe.seed, settings.match_labels)
        if self._task.kind is EMBEDDING:
            require_shown_by(found, settings.limits)
        return found

    def check(self) -> None:
        """Find out before any work that there is something to calibrate with, and to evaluate on.

        Raises:
            InputError: there is neither a recipe nor a calibration in the bundle, or a budget limits what the model
                does not answer.
            DatasetError: the images of a budget are too few, have no labels, or others than the model.
        """
        if self.settings.recipe is None and self._bundle.find(kind=self._kind) is None:
            raise InputError(
                f"{self._numbers.title} needs calibration images",
                hint="add --calibration-data DATASET_OR_FOLDER or --calibration RECIPE.toml",
            )
        self.settings.limits.require_fits(self._task, str(self._bundle.path))
        _ = self.truth

    def calibration(self) -> tuple[Calibration, dict[str, Any]]:
        """The calibration to use, and what ties the forms to it and to the version that makes them."""
        cached = self._bundle.find(kind=self._kind)
        self.check()
        if self.settings.recipe is None:
            assert cached is not None
            calibration = self._stored
            _say_forced(calibration)
            if calibration.algorithm != ALGORITHM:
                progress.note(
                    f"{self._file} is of another version of the calibration and is used as it is;"
                    " --calibration-data makes it anew."
                )
            return calibration, _origin(cached)
        found = self._found(cached)
        calibration = self._made() if found is None else found
        fitted = self._fitted(calibration)
        if cached is not None and fitted is found:
            progress.note(f"{self._file} of the bundle is for these images and settings, and is used again.")
            _say_forced(fitted)
            return fitted, _origin(cached)
        return fitted, _origin(self._write(fitted))

    def _found(self, cached: Artifact | None) -> Calibration | None:
        """The bundle's calibration, if this version made it from these images with these settings."""
        if cached is None or self.settings.force or cached.built_from != self._single.sha256:
            return None
        assert self.settings.recipe is not None and self.chosen is not None
        calibration = self._stored
        same = calibration.recipe.to_json() == self.settings.recipe.to_json()
        same = same and calibration.images == self.chosen.calibration.describe()
        return calibration if same and calibration.algorithm == ALGORITHM else None

    def _made(self) -> Calibration:
        assert self.settings.recipe is not None and self.chosen is not None
        images = self.chosen.calibration
        made = calibrate(
            self._path,
            self._single.sha256,
            (images.image(index) for index in range(len(images))),
            len(images),
            self.settings.recipe,
            images.describe(),
            self.layers,
            self._numbers,
        )
        return replace(made, check=self._checked(made, images))

    def _checked(self, calibration: Calibration, images: ImageDataset) -> dict[str, Any]:
        """The check of a new calibration, for its file.

        Raises:
            ModelError: it fails, and was not forced.
        """
        assert self.settings.recipe is not None and self.chosen is not None
        height, width = static_size(self._bundle) or self._bundle.manifest.model.get("image_size") or _SIZE
        others = self.chosen.others(OTHERS, self.settings.recipe.seed)
        found = check_calibration(self._path, calibration, self.layers, (height, width), others)
        title = self._numbers.title
        if found.problem is None:
            progress.note(f"The calibration was checked: {found}.")
        elif self.settings.force:
            progress.note(f"Warning: {title} calibrated on {images} is kept since it was forced, but {found.problem}.")
        else:
            raise ModelError(
                f"{title} calibrated on {images} ({len(images)} images) can't be relied on: {found.problem}",
                hint="calibrate on images like those that the model will see (--calibration-data), or keep it all the"
                " same: --force; nothing in the bundle was changed",
            )
        return {**found.to_json(), "forced": found.problem is not None}

    def _fitted(self, calibration: Calibration) -> Calibration:
        """The calibration with those layers left out that the budget asks for; itself where it is as wanted."""
        truth, limits = self.truth, self.settings.limits
        if truth is None:
            return calibration if calibration.budget is None else calibration.leaving_out(())
        asked = {
            **dict.fromkeys(field_names(Limits)),
            **limits.to_json(),
            "looks": LOOKS,
            "validation": truth.describe(),
        }
        if calibration.budget is not None and asked == {name: calibration.budget.get(name) for name in asked}:
            return calibration
        fitted, outcome = meet_budget(self._path, calibration, truth, limits, self.layers)
        for line in outcome.describe():
            progress.note(line)
        return fitted

    def _write(self, calibration: Calibration) -> Artifact:
        return add_calibration(self._editor, self._single, self._kind, self._file, calibration)


def add_calibration(editor: BundleEditor, single: Artifact, kind: str, file: str, calibration: Calibration) -> Artifact:
    """Put a calibration for the FP32 graph `single` into a bundle, as the artifact and file that `FILES` names."""
    editor.path_for(file).write_text(calibration.dumps(), encoding="utf-8")
    return editor.add(
        file,
        kind=kind,
        built_from=single.sha256,
        built_with={
            "vitdeploy": __version__,
            "recipe": calibration.recipe.to_json(),
            "images": calibration.images,
            "left_out": list(calibration.left_out),
            "budget": calibration.budget,
            "check": calibration.check,
        },
    )


def _say_forced(calibration: Calibration) -> None:
    if calibration.check is not None and calibration.check.get("forced"):
        progress.note(f"Warning: this calibration was forced: {calibration.check.get('problem')}.")


def _origin(calibration: Artifact) -> dict[str, Any]:
    return {"calibration_sha256": calibration.sha256, "algorithm": ALGORITHM}


@dataclass(frozen=True)
class Analysis:
    """What each layer loses in `precision`, INT8 or FP8, and on which images that was measured."""

    rows: tuple[LayerReport, ...]
    data: dict[str, Any]
    calibration_sha256: str
    precision: str = "int8"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "precision": self.precision,
            "data": self.data,
            "calibration_sha256": self.calibration_sha256,
            "rows": [row.to_json() for row in self.rows],
        }


def _calibration_of(bundle: Bundle, precision: str | None) -> tuple[str, Artifact]:
    """The precision to analyse and its calibration; None: INT8's, or FP8's where that is all there is."""
    wanted = (precision,) if precision is not None else tuple(CALIBRATIONS)
    for name in wanted:
        if name not in CALIBRATIONS:
            raise InputError(f"{name!r} is not calibrated", hint=f"one of {', '.join(CALIBRATIONS)}")
        if (found := bundle.find(kind=CALIBRATIONS[name])) is not None:
            return name, found
    raise InputError(
        f"{bundle.path} has no {wanted[0].upper()} to analyse",
        hint=f"make it first: vitdeploy build-engine {quoted(bundle.path)} --fp8 --calibration-data DATASET"
        if wanted[0] == "fp8"
        else f"make it first: vitdeploy build-engine {quoted(bundle.path)} --int8 --calibration-data DATASET",
    )


def _truth(bundle: Bundle, chosen: Chosen, count: int, seed: int, match_labels: str) -> Truth:
    """Images that did not calibrate, to judge a bundle's forms by."""
    if TASKS[bundle.manifest.task].kind is EMBEDDING:
        return Truth.of_vectors(chosen.validation(count, seed, labelled=False))
    return Truth.of(chosen.validation(count, seed), bundle.manifest.labels, match_labels)


def recipe_of(bundle: Bundle, precision: str | None = None) -> Recipe:
    """The recipe that a bundle was calibrated with, less its dataset (a bundle stores no paths).

    Raises:
        InputError: the bundle has no calibration.
    """
    _, cached = _calibration_of(bundle, precision)
    return replace(Recipe(**cached.built_with["recipe"]), dataset=None)


def analyze(
    bundle: Bundle | str | os.PathLike[str],
    recipe: Recipe,
    *,
    precision: str | None = None,
    count: int = ANALYSIS_IMAGES,
    match_labels: str = BY_NAME,
) -> Analysis:
    """Judge each quantised layer of a bundle alone, and keep the result in it as analysis.json.

    What a classifier loses is top-1; of an embedding it is what a form's vectors keep, as `bench` has it.

    Args:
        bundle: the bundle, or its folder, with a calibration in it.
        recipe: whose dataset and split the images come from, less those that the recipe calibrates on.
        precision: "int8" or "fp8"; None: INT8, or FP8 where that is all there is.
        count: how many images.
        match_labels: how their classes are found among the model's, "name" or "position": see `data.labels`.

    Raises:
        InputError: the bundle has no FP32 graph, or no calibration of that precision.
        DatasetError: there are no images left; of a classifier, no labelled ones.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.check_changeable()
    single = opened.find(kind="onnx", precision="fp32")
    if single is None:
        raise InputError(f"{opened.path} has no model.onnx", hint="export it again")
    chosen, cached = _calibration_of(opened, precision)
    task = TASKS[opened.manifest.task]
    if task.kind is not EMBEDDING:
        task.require_single_label(
            str(opened.path), "what layers cost in top-1", "compare the forms' logits on your images"
        )
    path = opened.file(single)
    calibration = Calibration.load(opened.file(cached), single.sha256)
    truth = _truth(opened, choose_images(recipe, path), count, recipe.seed, match_labels)
    if len(truth.images) < 2:
        raise DatasetError(f"one image of {truth.images} is no judge of layers", hint="take more images")
    rows = analyze_layers(path, calibration, truth)
    analysis = Analysis(tuple(rows), truth.describe(), cached.sha256, chosen)
    with opened.edit(patient=True) as editor:
        text = json.dumps(analysis.to_json(), indent=1, ensure_ascii=False) + "\n"
        editor.path_for("analysis.json").write_text(text, encoding="utf-8")
        editor.add(
            "analysis.json",
            kind="analysis",
            built_from=cached.sha256,
            built_with={"vitdeploy": __version__, "images": truth.images.describe()},
        )
    return analysis
