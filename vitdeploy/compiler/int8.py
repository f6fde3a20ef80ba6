"""The INT8 side of a bundle: its calibration, made, found again or fitted to a budget; and the layers' analysis."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vitdeploy import __version__, progress
from vitdeploy.bundle import Artifact, Bundle, BundleEditor
from vitdeploy.compiler.budget import meet_budget
from vitdeploy.compiler.calibration import Calibration, calibrate, code_fingerprint
from vitdeploy.compiler.judging import Truth
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.compiler.selection import Chosen, choose_images
from vitdeploy.compiler.sensitivity import SCHEMA_VERSION, LayerReport, analyze_layers
from vitdeploy.errors import InputError

__all__ = ["VALIDATION_IMAGES", "Analysis", "Int8Request", "Int8Stage", "analyze", "recipe_of"]

VALIDATION_IMAGES = 2000
_FILE = "calibration.json"


@dataclass(frozen=True)
class Int8Request:
    """How INT8 is asked for.

    `recipe` None: the bundle's calibration. `max_drop` is the most top-1 that may be lost, in points, on
    `validation_images` images that are no calibration images; None: no budget.
    """

    recipe: Recipe | None = None
    max_drop: float | None = None
    validation_images: int = VALIDATION_IMAGES

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 < self.max_drop <= 100:
            raise InputError(f"max_drop is {self.max_drop} points", hint="give a number above 0, like 0.5")
        if self.validation_images < 1:
            raise InputError("a budget needs validation images", hint="give a number above 0, like 2000")
        if self.max_drop is not None and self.recipe is None:
            raise InputError(
                "a budget needs images to measure the drop on", hint="add --calibration-data or --calibration"
            )


class Int8Stage:
    """Finds or makes the calibration of a bundle, in a change of the bundle that the caller opened."""

    def __init__(
        self, bundle: Bundle, editor: BundleEditor, single: Artifact, request: Int8Request, *, force: bool
    ) -> None:
        self._bundle, self._editor, self._single = bundle, editor, single
        self.request, self._force = request, force
        self._path = bundle.file(single)

    @cached_property
    def chosen(self) -> Chosen | None:
        """The recipe's images; None where there is no recipe, or it names no dataset."""
        recipe = self.request.recipe
        return None if recipe is None else choose_images(recipe, self._path)

    def check(self) -> None:
        """Find out before any work that there is something to calibrate with.

        Raises:
            InputError: there is neither a recipe nor a calibration in the bundle.
        """
        if self.request.recipe is None and self._bundle.find(kind="calibration") is None:
            raise InputError(
                "INT8 needs calibration images",
                hint="add --calibration-data DATASET_OR_FOLDER or --calibration RECIPE.toml",
            )

    def calibration(self) -> tuple[Calibration, dict[str, str]]:
        """The calibration to use, and what ties the forms to it and to the code that makes them."""
        cached = self._bundle.find(kind="calibration")
        self.check()
        if self.request.recipe is None:
            assert cached is not None
            calibration = Calibration.load(self._bundle.file(cached), self._single.sha256)
            if calibration.code != code_fingerprint():
                progress.note("calibration.json was made by another version of the code: INT8 may differ a little.")
            return calibration, _origin(cached)
        found = self._found(cached)
        calibration = self._made() if found is None else found
        fitted = self._fitted(calibration)
        if cached is not None and fitted is found:
            progress.note("calibration.json of the bundle is for these images and settings, and is used again.")
            return fitted, _origin(cached)
        return fitted, _origin(self._write(fitted))

    def _found(self, cached: Artifact | None) -> Calibration | None:
        """The bundle's calibration, if it was made by this code from these images with these settings."""
        if cached is None or self._force or cached.built_from != self._single.sha256:
            return None
        assert self.request.recipe is not None and self.chosen is not None
        calibration = Calibration.load(self._bundle.file(cached), self._single.sha256)
        same = calibration.recipe.to_json() == self.request.recipe.to_json()
        same = same and calibration.images == self.chosen.calibration.describe()
        return calibration if same and calibration.code == code_fingerprint() else None

    def _made(self) -> Calibration:
        assert self.request.recipe is not None and self.chosen is not None
        images = self.chosen.calibration
        return calibrate(
            self._path,
            self._single.sha256,
            (images.image(index) for index in range(len(images))),
            len(images),
            self.request.recipe,
            images.describe(),
        )

    def _fitted(self, calibration: Calibration) -> Calibration:
        """The calibration with those layers left out that the budget asks for; itself where it is as wanted."""
        wanted, recipe = self.request.max_drop, self.request.recipe
        if wanted is None:
            return calibration if calibration.budget is None else calibration.leaving_out(())
        assert recipe is not None and self.chosen is not None
        validation = self.chosen.validation(self.request.validation_images, recipe.seed)
        done = calibration.budget
        if done is not None and done["max_drop"] == wanted and done["validation"] == validation.describe():
            return calibration
        truth = Truth.of(validation, self._bundle.manifest.labels)
        fitted, outcome = meet_budget(self._path, calibration, truth, wanted)
        for line in outcome.describe():
            progress.note(line)
        return fitted

    def _write(self, calibration: Calibration) -> Artifact:
        self._editor.path_for(_FILE).write_text(calibration.dumps(), encoding="utf-8")
        return self._editor.add(
            _FILE,
            kind="calibration",
            built_from=self._single.sha256,
            built_with={
                "vitdeploy": __version__,
                "recipe": calibration.recipe.to_json(),
                "images": calibration.images,
                "left_out": list(calibration.left_out),
                "budget": calibration.budget,
            },
        )


def _origin(calibration: Artifact) -> dict[str, str]:
    return {"calibration_sha256": calibration.sha256, "code": code_fingerprint()}


@dataclass(frozen=True)
class Analysis:
    """What each layer loses in INT8, and on which images that was measured."""

    rows: tuple[LayerReport, ...]
    data: dict[str, Any]
    calibration_sha256: str

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "data": self.data,
            "calibration_sha256": self.calibration_sha256,
            "rows": [row.to_json() for row in self.rows],
        }


def _no_int8(bundle: Bundle) -> InputError:
    return InputError(
        f"{bundle.path} has no INT8 to analyse", hint="run build-engine --int8 --calibration-data DATASET first"
    )


def recipe_of(bundle: Bundle) -> Recipe:
    """The recipe that a bundle was calibrated with, less its dataset (a bundle stores no paths).

    Raises:
        InputError: the bundle has no calibration.
    """
    cached = bundle.find(kind="calibration")
    if cached is None:
        raise _no_int8(bundle)
    return replace(Recipe(**cached.built_with["recipe"]), dataset=None)


def analyze(bundle: Bundle | str | os.PathLike[str], recipe: Recipe, *, count: int = 256) -> Analysis:
    """Judge each quantised layer of a bundle alone, and keep the result in it as analysis.json.

    Args:
        bundle: the bundle, or its folder, with a calibration in it.
        recipe: whose dataset and split the images come from, less those that the recipe calibrates on.
        count: how many images.

    Raises:
        InputError: the bundle has no FP32 graph or no calibration.
        DatasetError: there are no labelled images left.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    single, cached = opened.find(kind="onnx", precision="fp32"), opened.find(kind="calibration")
    if single is None:
        raise InputError(f"{opened.path} has no model.onnx", hint="export it again")
    if cached is None:
        raise _no_int8(opened)
    path = opened.file(single)
    calibration = Calibration.load(opened.file(cached), single.sha256)
    images = choose_images(recipe, path).validation(count, recipe.seed)
    rows = analyze_layers(path, calibration, Truth.of(images, opened.manifest.labels))
    analysis = Analysis(tuple(rows), images.describe(), cached.sha256)
    with opened.edit() as editor:
        text = json.dumps(analysis.to_json(), indent=1, ensure_ascii=False) + "\n"
        editor.path_for("analysis.json").write_text(text, encoding="utf-8")
        editor.add(
            "analysis.json",
            kind="analysis",
            built_from=cached.sha256,
            built_with={"vitdeploy": __version__, "images": images.describe()},
        )
    return analysis
