"""Checkpoint -> bundle: one graph from raw pixels to logits, checked against PyTorch before it is written.

The order keeps memory low: PyTorch computes what the graph will be compared with, the graph is traced, the module is
let go, and the check runs the graph with its weights where they lie.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__, progress
from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.compiler.export_checks import check_outputs, check_preprocessing, first_difference_of
from vitdeploy.compiler.graph.clean import clean, tidy
from vitdeploy.compiler.graph.compose import put_in_front
from vitdeploy.compiler.graph.layout import lay_out
from vitdeploy.compiler.graph.result import PassResult
from vitdeploy.compiler.graph.save import save
from vitdeploy.compiler.image_size import check_size, resized_processor
from vitdeploy.compiler.parity import Check
from vitdeploy.compiler.tracing import OPSET, OUTPUTS, Reference, run_pytorch, trace
from vitdeploy.errors import InputError, ModelError, require
from vitdeploy.specs import PreprocessSpec, TensorSpec
from vitdeploy.storage import disk_errors

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.checkpoints import Checkpoint

__all__ = ["export"]


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    input_size: tuple[int, int] | None = None,
    image_size: tuple[int, int] | None = None,
    outputs: tuple[str, ...] = ("logits",),
    merge_qkv: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write the bundle of an image classifier.

    Args:
        model: Hub id or local folder of a fine-tuned checkpoint with its image processor.
        output: the bundle's folder.
        input_size: (height, width) of the raw images if they all have one size; the graph is then static in it.
        image_size: (height, width) of the pixel values that the model sees, if not the checkpoint's. Its position
            embeddings are interpolated as transformers does.
        outputs: of "logits" (always there), "scores", "features", "attention": see `vitdeploy.compiler.tracing`.
        merge_qkv: compute queries, keys and values by one product.
        revision: branch, tag or commit of a Hub id.
        overwrite: replace a bundle that is there.

    Raises:
        InputError: an output that is not known.
        ModelError: the checkpoint can't be loaded or exported, or the graph differs from PyTorch.
        OutputExistsError: `output` exists.
    """
    from vitdeploy.checkpoints import load_checkpoint

    names = _output_names(outputs)
    Bundle.check_output(output, overwrite=overwrite)
    require("onnx_ir", extra="build")

    def load() -> Checkpoint:
        return load_checkpoint(os.fspath(model), revision=revision)

    with disk_errors("temporary files"), tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # The checkpoint has no name here: its weights are not needed again, and a large model has no room for them.
        made = _traced(load(), names, input_size, image_size, merge_qkv, scratch)
        lay_out(made.graph)
        checks = _checked(made, load, scratch)
    return _written(made, checks, output, overwrite=overwrite)


@dataclass(frozen=True)
class _Traced:
    """What is left of a checkpoint when it is let go.

    `front` is the graph from raw pixels to pixel values, `graph` that from there to the outputs. `pixels` are the check
    images' pixel values, `reference` what PyTorch made of them; `check` compared the preprocessing.
    """

    described: dict[str, Any]
    labels: tuple[str, ...]
    spec: PreprocessSpec
    front: ir.Model
    graph: ir.Model
    passes: list[PassResult]
    pixels: list[np.ndarray]
    reference: Reference
    check: Check


def _traced(
    checkpoint: Checkpoint,
    names: tuple[str, ...],
    input_size: tuple[int, int] | None,
    image_size: tuple[int, int] | None,
    merge_qkv: bool,
    scratch: Path,
) -> _Traced:
    """Compute in PyTorch what the graph will be compared with, trace and clean the graph."""
    from vitdeploy.compiler.preprocessing import build_preprocessing, spec_from_processor

    processor, spec = checkpoint.processor, spec_from_processor(checkpoint.processor)
    if image_size is not None:
        processor = resized_processor(processor, spec, image_size)
        spec = spec_from_processor(processor)
    size = check_size(checkpoint.module, spec, image_size)
    front = build_preprocessing(spec, input_size=input_size)
    with progress.task("Running PyTorch"):
        pixels, check = check_preprocessing(processor, front, spec, input_size, scratch)
        _accept([check])
        reference = run_pytorch(checkpoint, pixels, names)
        _check_finite(checkpoint, reference)
    with progress.task("Tracing the model"), ThreadPoolExecutor(1) as pool:
        digest = pool.submit(checkpoint.sha256)  # tracing needs one core
        graph = trace(checkpoint, size, names, reference.baked)
        passes = clean(graph, merged_qkv=merge_qkv)
        described, labels = _describe(checkpoint, size, digest.result()), tuple(checkpoint.labels)
    return _Traced(described, labels, spec, front, graph, passes, pixels, reference, check)


def _checked(made: _Traced, load: Callable[[], Checkpoint], scratch: Path) -> list[Check]:
    """Compare the graph with PyTorch; where they differ, load the checkpoint again and find the node at fault."""
    with progress.task("Checking against PyTorch"):
        checks = check_outputs(made.graph, made.pixels, made.reference, scratch)
        passed = all(entry.passed for entry in checks)
        _accept(checks, None if passed else first_difference_of(load(), made.graph, made.pixels[0], scratch))
    return checks


def _written(made: _Traced, checks: list[Check], output: str | os.PathLike[str], *, overwrite: bool) -> Bundle:
    """Put the preprocessing in front and write the bundle."""
    whole = put_in_front(made.front, made.graph)
    tidy(whole)
    manifest = Manifest(
        model=made.described,
        labels=made.labels,
        preprocess=made.spec,
        inputs=tuple(_tensor_spec(value) for value in whole.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in whole.graph.outputs),
        provenance={
            "vitdeploy": __version__,
            "opset": OPSET,
            "passes": [result.to_json() for result in made.passes],
            "checks": [entry.to_json() for entry in (*checks, made.check)],
        },
    )
    with Bundle.create(output, manifest, overwrite=overwrite) as editor:
        data = save(whole, editor.path_for("model.onnx"))
        editor.add("model.onnx", kind="onnx", precision="fp32", built_with={"versions": _versions()})
        if data is not None:
            editor.add(data.name, kind="weights", precision="fp32")
    return Bundle.open(output)


def _output_names(outputs: tuple[str, ...]) -> tuple[str, ...]:
    """The outputs in their order; logits are always there."""
    for name in outputs:
        if name not in OUTPUTS:
            raise InputError(f"the output {name!r} is not known", hint=f"choose from {', '.join(OUTPUTS)}")
    return tuple(name for name in OUTPUTS if name == "logits" or name in outputs)


def _check_finite(checkpoint: Checkpoint, reference: Reference) -> None:
    """Refuse a model that gives no numbers itself: no graph could agree with it."""
    if not all(np.isfinite(logits).all() for logits in reference.values["logits"]):
        raise ModelError(
            f"{checkpoint.source} gives logits that are not finite in PyTorch itself",
            hint="its weights are damaged, or its training diverged: take an earlier checkpoint",
        )


def _accept(checks: list[Check], blame: str | None = None) -> None:
    """Print what was compared, and stop at the first that differs; `blame` is the node at fault, in words."""
    for check in checks:
        progress.note(str(check))
    for check in checks:
        if not check.passed:
            raise ModelError(
                f"the exported graph differs from PyTorch: {check}{f'; {blame}' if blame else ''}",
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
