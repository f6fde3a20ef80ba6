"""Tuned weights and scales -> the bundle again, whole: every form from the same weights, checked, then put in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy import __version__
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.frontend.parity import Check, compare
from vitdeploy.compiler.quantization.calibration import ALGORITHM, Calibration
from vitdeploy.core.errors import BundleError, ModelError, require
from vitdeploy.core.precisions import precisions
from vitdeploy.core.storage import locked, scratch_folder, staged_folder
from vitdeploy.qat.fake import FakeQuantized

__all__ = ["INT8_TOLERANCE", "compare_logits", "put_in_place", "rebuilt", "tuned_calibration"]

# Two float32 implementations differ in the last bits, so that some values fall on the other side of a rounding edge:
# one step of 255 there, and what later layers make of it (measured: 0.009 for 12 layers with everything in INT8).
INT8_TOLERANCE = 0.03


def tuned_calibration(before: Calibration, state: FakeQuantized, noise: dict[str, float], digest: str) -> Calibration:
    """The calibration with the tuned scales, for the graph of the hash `digest`.

    Corrections of the biases are gone: they are in the tuned biases. So is the check of the scales of before.
    """
    groups = []
    for group in before.groups:
        quantizer = state.groups.get(group.name)
        if quantizer is not None:
            ratio = quantizer.scale / group.scale
            sqnr = noise.get(group.name, group.sqnr_db)
            group = replace(group, scale=quantizer.scale, clip=group.clip * ratio, sqnr_db=sqnr)
        groups.append(replace(group, bias={}))
    attention = []
    for products in before.attention:
        parts = state.attention.get(products.name)
        if parts is not None:
            products = replace(
                products,
                query=parts["query"].scale,
                key=parts["key"].scale,
                probability=parts["probability"].scale,
                value=parts["value"].scale,
                sqnr_db=noise.get(products.name, products.sqnr_db),
            )
        attention.append(replace(products, bias=None, unsigned=None, unsigned_bias=None))
    found = replace(before, model_sha256=digest, groups=tuple(groups), attention=tuple(attention), algorithm=ALGORITHM)
    return replace(found, check=None)


@contextmanager
def rebuilt(bundle: Bundle, checkpoint: Path, make: Any, facts: dict[str, Any]) -> Iterator[Bundle]:
    """A bundle of the tuned checkpoint with the forms that `bundle` has, beside it, for as long as the block lasts.

    Args:
        make: from the hash of the new FP32 graph to its Calibration.
        facts: what the manifest says of the tune.

    Raises:
        ModelError: a form differs from PyTorch, or can't be made.
    """
    made_there = [name for name in precisions() if name != "fp32" and bundle.find(kind="onnx", precision=name)]
    shape = bundle.manifest.inputs[0].shape
    fixed = (int(shape[1]), int(shape[2])) if all(isinstance(size, int) for size in shape[1:3]) else None
    outputs = tuple(spec.name for spec in bundle.manifest.outputs)
    with scratch_folder(bundle.path, "qat") as scratch:
        made = export(checkpoint, scratch / "bundle", input_size=fixed, outputs=outputs)
        graph = made.find(kind="onnx", precision="fp32")
        assert graph is not None
        calibration = make(graph.sha256)
        with made.edit() as editor:
            editor.path_for("calibration.json").write_text(calibration.dumps(), encoding="utf-8")
            editor.add(
                "calibration.json",
                kind="calibration",
                built_from=graph.sha256,
                built_with={
                    "vitdeploy": __version__,
                    "recipe": calibration.recipe.to_json(),
                    "images": calibration.images,
                    "qat": facts,
                },
            )
            editor.update(provenance={**editor.manifest.provenance, "qat": facts})
        yield build(made.reopen(), made_there, target="onnx").bundle


def compare_logits(state: FakeQuantized, processor: Any, bundle: Bundle, images: list[np.ndarray]) -> Check:
    """The bundle's INT8 graph for CPUs against PyTorch with fake quantisation, on images as they are."""
    from vitdeploy.runtime import load

    torch = require("torch", extra="build")
    with torch.inference_mode():
        theirs = [
            state.module(**processor(image, return_tensors="pt", input_data_format="channels_last")).logits[0].numpy()
            for image in images
        ]
    with load(bundle, "onnxruntime", "int8", threads=1) as classifier:
        ours = classifier.logits(images)
    return compare("INT8 graph against fake quantisation", ours, np.stack(theirs), INT8_TOLERANCE)


def put_in_place(new: Bundle, old: Bundle, check: Check) -> Bundle:
    """Swap the new bundle in; the old one is there until the new one is whole.

    Raises:
        ModelError: the check failed, and the old bundle stays.
        BundleError: another command is writing to it, or gave it other weights or another calibration meanwhile.
    """
    if not check.passed:
        raise ModelError(
            f"the exported INT8 graph is not what was tuned: {check}",
            hint=f"{old.path} is unchanged; please report the model's config.json",
        )
    with (
        locked(old.path / ".lock"),
        staged_folder(old.path, overwrite=True, ours=Bundle.is_ours, what="bundle") as staging,
    ):
        if _tuned_parts(old.reopen()) != _tuned_parts(old):
            raise BundleError(
                f"{old.path} was exported or calibrated anew during the tune, so it is left as it is now",
                hint="tune again; one command at a time should change a bundle",
            )
        for artifact in new.manifest.artifacts:
            target = staging / artifact.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new.file(artifact), target)
        shutil.copyfile(new.path / "manifest.json", staging / "manifest.json")
    return Bundle.open(old.path)


def _tuned_parts(bundle: Bundle) -> tuple[str | None, ...]:
    """The hashes of what a tune starts from."""
    parts = (bundle.find(kind="onnx", precision="fp32"), bundle.find(kind="calibration"))
    return tuple(None if part is None else part.sha256 for part in parts)
