"""Checkpoint -> bundle: one graph from raw pixels to the answer, checked against PyTorch before it is written.

The order keeps memory low: PyTorch computes what the graph will be compared with, the graph is traced, the module is
let go, and the check runs the graph with its weights where they lie.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__
from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.bundle.selftest import Selftest, enlarged
from vitdeploy.compiler.frontend.checks import check_outputs, check_preprocessing, first_difference_of
from vitdeploy.compiler.frontend.image_size import check_size, resized_processor
from vitdeploy.compiler.frontend.parity import Check
from vitdeploy.compiler.frontend.tracing import OPSET, Reference, run_pytorch, trace
from vitdeploy.compiler.passes.clean import clean, tidy
from vitdeploy.compiler.passes.compose import prepend_preprocessing
from vitdeploy.compiler.passes.layout import lay_out
from vitdeploy.compiler.passes.result import PassResult
from vitdeploy.compiler.passes.save import save
from vitdeploy.compiler.quantization.takeover import calibrated, take_over
from vitdeploy.compiler.selftest import bounds_of, draw, own_images, write
from vitdeploy.compiler.settings import ExportSettings
from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.settings import with_options
from vitdeploy.core.specs import EXTRA_OUTPUTS, EmbeddingSpec, PreprocessSpec, TensorSpec
from vitdeploy.core.storage import check_apart, disk_errors
from vitdeploy.models.tasks import Task

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.models.checkpoints import Checkpoint

__all__ = ["export"]

_BATCH = 8  # of the self-test's images: no more memory than the check images take


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    **options: Any,
) -> Bundle:
    """Write the bundle of an image classifier, or of an image tower that gives an embedding.

    Example:
        export("runs/vit", "bundles/vit", image_size=(384, 384), overwrite=True)

    Args:
        model: Hub id or local folder of a fine-tuned checkpoint with its image processor.
        output: the bundle's folder.
        settings: what graph is made of it.
        options: fields of `ExportSettings`, those of its `request` included, that win over `settings`.

    Raises:
        InputError: an output or a task that is not known, or what does not belong to the task.
        ModelError: the checkpoint can't be loaded or exported, or the graph differs from PyTorch.
        OutputExistsError: `output` exists.
    """
    from vitdeploy.models.checkpoints import load_checkpoint

    settings = with_options(settings or ExportSettings(), options)
    other = None if settings.calibration_from is None else calibrated(settings.calibration_from)
    Bundle.check_output(output, overwrite=settings.overwrite)
    check_apart(output, (model,))
    own = settings.selftest_images
    questions = [*draw(), *(own_images(own) if own is not None else ())]
    if find_spec("torch") is None:  # who lacks it lacks the others too, and is told the extra that has them all
        require("torch", extra="build")
    require("onnx_ir", extra="build")

    def load() -> Checkpoint:
        return load_checkpoint(
            os.fspath(model),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            request=settings.request,
        )

    with disk_errors("temporary files"), tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # The checkpoint has no name here: its weights are not needed again, and a large model has no room for them.
        made = _traced(load(), settings, questions, scratch)
        lay_out(made.graph)
        checks = _checked(made, load, scratch)
    return _written(made, checks, output, other, overwrite=settings.overwrite)


@dataclass(frozen=True)
class _Traced:
    """What is left of a checkpoint when it is let go.

    `preprocessing` is the graph from raw pixels to pixel values, `graph` that from there to the outputs. `pixels` are
    pixel values of the check images and of the self-test's, `reference` and `answers` what PyTorch made of these and of
    those; `check` compared the preprocessing.
    """

    described: dict[str, Any]
    labels: tuple[str, ...]
    task: Task
    embedding: EmbeddingSpec | None
    threshold: float | None
    templates: tuple[str, ...]
    spec: PreprocessSpec
    preprocessing: ir.Model
    graph: ir.Model
    passes: list[PassResult]
    pixels: list[np.ndarray]
    reference: Reference
    answers: Reference
    selftest: Selftest
    check: Check


def _traced(checkpoint: Checkpoint, settings: ExportSettings, questions: list[np.ndarray], scratch: Path) -> _Traced:
    """Compute in PyTorch what the graph will be compared with, trace and clean the graph."""
    from vitdeploy.compiler.preprocessing import build_preprocessing, spec_from_processor

    answer, input_size = checkpoint.task.kind.output, settings.input_size
    names = (answer, *(name for name in EXTRA_OUTPUTS if name in settings.outputs))
    if "scores" in names and checkpoint.task.activation is None:
        raise ModelError(
            f"{checkpoint.source} gives {checkpoint.task.title}, so there are no scores to put into the graph",
            hint="export it without --output-scores: what it gives are the numbers",
        )
    processor, spec = checkpoint.processor, spec_from_processor(checkpoint.processor)
    if settings.image_size is not None:
        processor = resized_processor(processor, spec, settings.image_size)
        spec = spec_from_processor(processor)
    size = check_size(checkpoint.module, spec, settings.image_size)
    preprocessing = build_preprocessing(spec, input_size=input_size)
    with progress.task("Running PyTorch"):
        asked = [image if input_size is None else enlarged(image, input_size) for image in questions]
        pixels, more, check = check_preprocessing(processor, preprocessing, spec, input_size, asked, scratch)
        _accept([check])
        reference = run_pytorch(checkpoint, pixels, names)
        parts = [more[start : start + _BATCH] for start in range(0, len(more), _BATCH)]
        answers = run_pytorch(checkpoint, parts, (answer,))
        _check_finite(checkpoint, reference)
    with progress.task("Tracing the model"), ThreadPoolExecutor(1) as pool:
        digest = pool.submit(checkpoint.sha256)  # tracing needs one core
        graph = trace(checkpoint, size, names, reference.baked)
        passes = clean(graph, merged_qkv=settings.merge_qkv)
        for result in passes:
            result.report()
        described, labels = _describe(checkpoint, size, digest.result()), tuple(checkpoint.labels)
    logits = np.concatenate(answers.values[answer])
    selftest = Selftest(tuple(questions), {input_size: logits}, {}, f"PyTorch {_versions()['torch']}")
    pixels = [*pixels, *parts]
    return _Traced(
        described,
        labels,
        checkpoint.task,
        checkpoint.embedding,
        checkpoint.threshold,
        checkpoint.templates,
        spec,
        preprocessing,
        graph,
        passes,
        pixels,
        reference,
        answers,
        selftest,
        check,
    )


def _checked(made: _Traced, load: Callable[[], Checkpoint], scratch: Path) -> list[Check]:
    """Compare the graph with PyTorch; where they differ, load the checkpoint again and find the node at fault."""
    with progress.task("Checking against PyTorch"):
        checks = check_outputs(made.graph, made.pixels, made.reference, made.answers, made.task, scratch)
        passed = all(entry.passed for entry in checks)
        _accept(checks, None if passed else first_difference_of(load(), made.graph, made.pixels[0], scratch))
    return checks


def _written(
    made: _Traced, checks: list[Check], output: str | os.PathLike[str], other: Bundle | None, *, overwrite: bool
) -> Bundle:
    """Put the preprocessing in front and write the bundle."""
    whole = prepend_preprocessing(made.preprocessing, made.graph)
    tidy(whole)
    zero_shot = {"zero_shot": {"templates": list(made.templates)}} if made.templates else {}
    manifest = Manifest(
        model=made.described,
        labels=made.labels,
        task=made.task.name,
        embedding=made.embedding,
        threshold=made.threshold,
        preprocess=made.spec,
        inputs=tuple(_tensor_spec(value) for value in whole.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in whole.graph.outputs),
        provenance={
            "vitdeploy": __version__,
            "opset": OPSET,
            "passes": [result.to_json() for result in made.passes],
            "checks": [entry.to_json() for entry in (*checks, made.check)],
            **zero_shot,
        },
    )
    with Bundle.create(output, manifest, overwrite=overwrite) as editor:
        data = save(whole, editor.path_for("model.onnx"))
        single = editor.add("model.onnx", kind="onnx", precision="fp32", built_with={"versions": _versions()})
        if data is not None:
            editor.add(data.name, kind="weights", precision="fp32")
        if other is not None:
            take_over(editor, single, manifest, editor.path_for("model.onnx"), other)
        write(editor, made.selftest.with_bounds("model.onnx", bounds_of(made.selftest)), single)
    return Bundle.open(output)


def _check_finite(checkpoint: Checkpoint, reference: Reference) -> None:
    """Refuse a model that gives no numbers itself: no graph could agree with it."""
    output = checkpoint.task.kind.output
    if not all(np.isfinite(values).all() for values in reference.values[output]):
        raise ModelError(
            f"{checkpoint.source} gives numbers that are not finite in PyTorch itself",
            hint="its weights are damaged, or its training diverged: take an earlier checkpoint",
        )


def _accept(checks: list[Check], divergence: str | None = None) -> None:
    """Print what was compared, and stop at the first that differs; `divergence` describes the first differing node."""
    for check in checks:
        progress.note(str(check))
    for check in checks:
        if not check.passed:
            raise ModelError(
                f"the exported graph differs from PyTorch: {check}{f'; {divergence}' if divergence else ''}",
                hint="please report the model's config.json; nothing was written",
            )


def _describe(checkpoint: Checkpoint, size: tuple[int, int], sha256: str) -> dict[str, Any]:
    return {
        "name": checkpoint.source,
        "source": "local" if checkpoint.is_local else "hub",
        "revision": checkpoint.revision,
        "architecture": type(checkpoint.module).__name__,
        "weights_sha256": sha256,
        "parameters": sum(parameter.numel() for parameter in checkpoint.module.parameters()),
        "image_size": list(size),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "onnx", "onnxscript")}


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)
