"""The half-precision side of a bundle's forms: the plan of what stays in FP32, and the check of what was made."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__, progress
from vitdeploy.bundle import Artifact, Bundle, BundleEditor
from vitdeploy.compiler.half_plan import HalfPlan, plan_half
from vitdeploy.compiler.parity import Check, compare
from vitdeploy.compiler.samples import check_batches
from vitdeploy.errors import ModelError, require

if TYPE_CHECKING:
    from vitdeploy.datasets import ImageDataset

__all__ = ["TOLERANCES", "FormCheck", "check_half", "plan_for", "static_size"]

TOLERANCES = {"fp16": 0.05, "bf16": 0.1}
"""Of the logits' range. FP16 has 11 bits, BF16 8: sound models stay under 0.01 and 0.05."""
_FILE = "half.json"
_IMAGES = 32


@dataclass(frozen=True)
class FormCheck:
    """A form's logits against FP32's: the largest difference as a check, and the mean |difference| of logits."""

    check: Check
    mean_difference: float

    def to_json(self) -> dict[str, Any]:
        return {"check": self.check.to_json(), "mean_logit_difference": self.mean_difference}


def plan_for(
    bundle: Bundle, editor: BundleEditor, single: Artifact, images: ImageDataset | None, *, force: bool
) -> tuple[HalfPlan, str]:
    """The bundle's plan for half precision, made if there is none for this model and these images, and its SHA-256.

    Args:
        single: the FP32 graph.
        images: what to look for large values on; None: what the bundle's plan was made with, or else the
            photographs, shapes and noise that the export was checked with.
    """
    cached = next((a for a in bundle.select(kind="half-plan") if a.built_from == single.sha256), None)
    described = {"name": "photographs, shapes and noise"} if images is None else _describe(images)
    if cached is not None and not force:
        plan = HalfPlan.load(bundle.file(cached))
        if images is None or plan.images == described:
            return plan, cached.sha256
    path = bundle.file(single)
    if images is None:
        size = static_size(bundle)
        plan = plan_half(path, single.sha256, [image for batch in check_batches(size) for image in batch], described)
    else:
        first = (images.image(index) for index in range(min(_IMAGES, len(images))))
        plan = plan_half(path, single.sha256, first, described)
    progress.note(str(plan))
    editor.path_for(_FILE).write_text(plan.dumps(), encoding="utf-8")
    made = editor.add(
        _FILE, kind="half-plan", built_from=single.sha256, built_with={"vitdeploy": __version__, "images": described}
    )
    return plan, made.sha256


def _describe(images: ImageDataset) -> dict[str, Any]:
    return {**images.describe(), "looked_at": min(_IMAGES, len(images))}


def static_size(bundle: Bundle) -> tuple[int, int] | None:
    """(height, width) of the raw images that the bundle's graphs were made for; None if they take any."""
    height, width = bundle.manifest.inputs[0].shape[1:3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def check_half(form: Path, single: Path, precision: str, input_size: tuple[int, int] | None) -> FormCheck:
    """Compare a form with the FP32 graph on the check images, its half precision computed as a device does.

    Raises:
        ModelError: it gives no finite logits, or FP16 or BF16 is further off than its tolerance.
    """
    from vitdeploy.compiler.graph.save import save
    from vitdeploy.compiler.half_simulation import simulate
    from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

    ir = require("onnx_ir", extra="build")
    batches = check_batches(input_size)
    logits = []
    with tempfile.TemporaryDirectory() as scratch:
        rounded = Path(scratch) / "rounded.onnx"
        save(simulate(ir.load(form)), rounded, external=True)
        for path in (rounded, single):
            with OnnxRuntimeRunner(path) as runner:
                logits.append(np.concatenate([runner.infer({"image": batch})["logits"] for batch in batches]))
    name = precision.upper()
    if not np.isfinite(logits[0]).all():
        raise ModelError(
            f"the {name} form of this model gives no finite logits: an activation left its range",
            hint="give it images like yours to look for large values: --calibration-data; or use FP32",
        )
    check = compare(f"{name} graph against FP32", logits[0], logits[1], TOLERANCES.get(precision, np.inf))
    found = FormCheck(check, float(np.abs(logits[0] - logits[1]).mean()))
    if precision not in TOLERANCES:
        return replace(found, check=replace(check, tolerance=check.value))
    progress.note(f"{check}, mean |logit difference| {found.mean_difference:.2g}")
    if not check.passed:
        raise ModelError(
            f"{name} loses too much on this model: {check}",
            hint="use FP32 or INT8 (--int8 --target onnx) for this model",
        )
    return found
