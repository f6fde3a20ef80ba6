"""A calibration for another head on the same tower: of other words, or of the embedding itself.

What a layer reads does not depend on what is done with the tower's answer, so its ranges, smoothing and corrections are
those of any bundle of the same tower, weight for weight. A budget was of that bundle's answers, and stays there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vitdeploy.bundle import CALIBRATIONS, Artifact, Bundle, BundleEditor, Manifest
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.compiler.quantization.check import check_calibration
from vitdeploy.compiler.quantization.int8 import FILES, add_calibration
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.core import progress
from vitdeploy.core.errors import InputError, ModelError

__all__ = ["calibrated", "take_over"]


def calibrated(bundle: str | os.PathLike[str]) -> Bundle:
    """A bundle whose calibration may be taken over.

    Raises:
        BundleError: it is none.
        InputError: it has no calibration.
    """
    opened = Bundle.open(bundle)
    if not any(_calibrations(opened)):
        raise InputError(
            f"{opened.path} has no calibration to take over",
            hint=f"vitdeploy build-engine {opened.path} --int8 --calibration-data DATASET makes one",
        )
    return opened


def take_over(editor: BundleEditor, single: Artifact, manifest: Manifest, path: Path, other: Bundle) -> None:
    """Put the calibrations of `other` into a bundle under its export.

    Args:
        single: the bundle's FP32 graph, at `path`.
        manifest: the bundle's.
        other: what `calibrated` gave.

    Raises:
        InputError: it is not of the same tower, or its last layer, which is another one here, is calibrated as well.
        ModelError: the ranges are no good for this graph.
    """
    for key in ("weights_sha256", "image_size"):
        own, theirs = manifest.model.get(key), other.manifest.model.get(key)
        if own != theirs:
            raise _another(other, f"its {key} is {theirs}, not {own}")
    if manifest.preprocess != other.manifest.preprocess:
        raise _another(other, "its preprocessing differs")
    for kind, file, calibration in _calibrations(other):
        layers = QuantLayers.find_in_file(path, calibration.recipe)
        names = {*layers.groups, *(layers.attention if calibration.recipe.attention else ())}
        if calibration.recipe.classifier or names != set(calibration.names):
            differing = sorted(names ^ set(calibration.names))[:3] or ["its classifier"]
            raise _another(other, f"it is calibrated for other layers ({', '.join(differing)})")
        fitted = replace(calibration.leaving_out(()), model_sha256=single.sha256)
        found = check_calibration(path, fitted, layers, tuple(manifest.model["image_size"]))
        if found.problem is not None:
            raise ModelError(
                f"the calibration of {other.path} can't be relied on here: {found.problem}",
                hint="leave --from out, and calibrate with build-engine --int8 --calibration-data DATASET",
            )
        add_calibration(editor, single, kind, file, replace(fitted, check={**found.to_json(), "forced": False}))
        left = f"; {len(calibration.left_out)} groups that a budget left out are in it again" * bool(
            calibration.left_out
        )
        progress.note(f"{file} is taken over from {other.path}{left}.")


def _calibrations(bundle: Bundle) -> Iterator[tuple[str, str, Calibration]]:
    """Kind, file and content of each that a bundle has."""
    single = bundle.find(kind="onnx", precision="fp32")
    for numbers, file in FILES.items():
        kind = CALIBRATIONS[numbers.precision]
        cached = bundle.find(kind=kind)
        if cached is not None and single is not None:
            yield kind, file, Calibration.load(bundle.file(cached), single.sha256)


def _another(other: Bundle, why: str) -> InputError:
    return InputError(
        f"the calibration of {other.path} is not for this tower: {why}",
        hint="name a bundle of the same checkpoint and options, or leave --from out",
    )
