"""The check of a half-precision form: its logits, computed as a device would, against those of FP32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.backends.base import Runner
from vitdeploy.compiler.frontend.parity import Check, compare
from vitdeploy.compiler.samples import check_batches
from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.specs import answer_of
from vitdeploy.models.tasks import EMBEDDING, cosines, kind_of

__all__ = ["FormCheck", "check_half", "rounded"]


@dataclass(frozen=True)
class FormCheck:
    """A form's logits against FP32's: the largest difference as a check, and the mean |difference| of logits."""

    check: Check
    mean_difference: float

    def to_json(self) -> dict[str, Any]:
        return {"check": self.check.to_json(), "mean_logit_difference": self.mean_difference}


@contextmanager
def rounded(form: Path, threads: int | None = None) -> Iterator[Runner]:
    """A form, its half precision computed as a device does, open in ONNX Runtime; `threads` as of its runner."""
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
    from vitdeploy.compiler.float16.simulation import simulate
    from vitdeploy.compiler.passes.save import save

    ir = require("onnx_ir", extra="build")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rounded.onnx"
        save(simulate(ir.load(form)), path, external=True)
        with OnnxRuntimeRunner(path, threads) as runner:
            yield runner


def check_half(
    form: Runner, single: Path, title: str, tolerance: float | None, input_size: tuple[int, int] | None
) -> FormCheck:
    """Compare a form with the FP32 graph on the check images.

    Args:
        form: open, as `rounded` gives it.
        title: the form's precision, for people.
        tolerance: how far off it may be, as a part of the logits' range; of an embedding a tenth of it is the most that
            1 - cosine may be. None: however far.

    Raises:
        ModelError: it gives numbers that are not finite, or is further off than its tolerance.
    """
    from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner

    batches = check_batches(input_size)
    with OnnxRuntimeRunner(single) as exact:
        name = answer_of([spec.name for spec in exact.outputs])
        logits = [np.concatenate([r.infer({"image": batch})[name] for batch in batches]) for r in (form, exact)]
    if not np.isfinite(logits[0]).all():
        raise ModelError(
            f"the {title} form of this model gives no finite {name}: an activation left its range",
            hint="give it images like yours to look for large values: --calibration-data; or use FP32",
        )
    most, against = np.inf if tolerance is None else tolerance, f"{title} graph against FP32"
    check = compare(against, logits[0], logits[1], most)
    if kind_of(name) is EMBEDDING:
        turned = 1 - float(cosines(logits[0], logits[1]).min())
        check = Check(against, turned, most / 10, "of 1 - cosine", len(logits[0]))
    found = FormCheck(check, float(np.abs(logits[0] - logits[1]).mean()))
    if tolerance is None:
        return replace(found, check=replace(check, tolerance=check.value))
    progress.note(f"{check}, mean |difference| {found.mean_difference:.2g}")
    if not check.passed:
        raise ModelError(
            f"{title} loses too much on this model: {check}",
            hint="use FP32 or INT8 (--int8 --target onnx) for this model",
        )
    return found
