"""Checkpoint -> bundle: one graph from raw pixels to logits, checked against PyTorch before it is written.

The graph is written by torch.onnx.export from a model whose attention is the plain MatMul-Softmax-MatMul, cleaned by
the passes in `vitdeploy.compiler.graph`, and given the image processor's work in front.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__, progress
from vitdeploy.bundle import Bundle, Manifest
from vitdeploy.compiler.graph import PassResult
from vitdeploy.compiler.graph.attention_scale import fold_attention_scale
from vitdeploy.compiler.graph.class_token import fold_class_token
from vitdeploy.compiler.graph.compose import put_in_front
from vitdeploy.compiler.graph.layer_names import name_layers
from vitdeploy.compiler.parity import Check, compare, compare_levels
from vitdeploy.errors import ModelError, VitdeployError, require
from vitdeploy.specs import PreprocessSpec, TensorSpec
from vitdeploy.storage import disk_errors

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.checkpoints import Checkpoint

__all__ = ["export"]

OPSET = 20  # Gelu as one op (20), FP16 scales of Q/DQ (19), LayerNormalization (17); TensorRT 10.3 reads up to 20
LOGIT_TOLERANCE = 1e-4
_ATTENTION = "vitdeploy_plain"


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    input_size: tuple[int, int] | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write the bundle of an image classifier.

    Args:
        model: Hub id or local folder of a fine-tuned checkpoint with its image processor.
        output: the bundle's folder.
        input_size: (height, width) of the raw images if they all have one size; the graph is then static in it.
        revision: branch, tag or commit of a Hub id.
        overwrite: replace a bundle that is there.

    Raises:
        ModelError: the checkpoint can't be loaded or exported, or the graph differs from PyTorch.
        OutputExistsError: `output` exists.
    """
    from vitdeploy.checkpoints import load_checkpoint
    from vitdeploy.compiler.preprocessing import build_preprocessing, spec_from_processor

    Bundle.check_output(output, overwrite=overwrite)
    ir = require("onnx_ir", extra="build")
    checkpoint = load_checkpoint(os.fspath(model), revision=revision)
    spec = spec_from_processor(checkpoint.processor)
    with progress.task("Tracing the model"):
        size = _model_input_size(checkpoint, spec)
        graph = _trace(checkpoint, size)
        passes = _clean(graph)
    with (
        progress.task("Checking against PyTorch"),
        disk_errors("temporary files"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        checks = [_check_model(checkpoint, graph, size, Path(scratch))]
        front = build_preprocessing(spec, input_size=input_size)
        checks.append(_check_preprocessing(checkpoint, front, spec, input_size, Path(scratch)))
        whole = put_in_front(front, graph)
        _tidy(whole)
        for check in checks:
            progress.note(str(check))
            if not check.passed:
                raise ModelError(
                    f"the exported graph differs from PyTorch: {check}",
                    hint="please report the model's config.json; nothing was written",
                )
    manifest = _manifest(checkpoint, spec, whole, passes, checks)
    with Bundle.create(output, manifest, overwrite=overwrite) as editor:
        path = editor.path_for("model.onnx")
        ir.save(whole, path)
        editor.add("model.onnx", kind="onnx", precision="fp32", built_with={"versions": _versions()})
    return Bundle.open(output)


def _manifest(
    checkpoint: Checkpoint,
    spec: PreprocessSpec,
    whole: ir.Model,
    passes: list[PassResult],
    checks: list[Check],
) -> Manifest:
    return Manifest(
        model={
            "name": checkpoint.source,
            "source": "local" if checkpoint.is_local else "hub",
            "revision": checkpoint.revision,
            "architecture": type(checkpoint.module).__name__,
            "weights_sha256": checkpoint.sha256,
            "parameters": sum(parameter.numel() for parameter in checkpoint.module.parameters()),
        },
        labels=tuple(checkpoint.labels),
        preprocess=spec,
        inputs=tuple(_tensor_spec(value) for value in whole.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in whole.graph.outputs),
        provenance={
            "vitdeploy": __version__,
            "opset": OPSET,
            "passes": [result.to_json() for result in passes],
            "checks": [check.to_json() for check in checks],
        },
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "onnx", "onnxscript")}


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)


def _model_input_size(checkpoint: Checkpoint, spec: PreprocessSpec) -> tuple[int, int]:
    """(height, width) of the pixel values that the preprocessing makes, which the model must take."""
    made: tuple[int, int] | None = spec.crop
    if made is None and spec.resize is not None and spec.resize.height and spec.resize.width:
        made = (spec.resize.height, spec.resize.width)
    configured = getattr(checkpoint.module.config, "image_size", None)
    wanted = (configured, configured) if isinstance(configured, int) else None
    if isinstance(configured, (list, tuple)) and len(configured) == 2:
        wanted = (int(configured[0]), int(configured[1]))
    if made is None:
        raise ModelError(
            "the image processor does not make images of one size (no height and width, no centre crop)",
            hint="set size to {'height': ..., 'width': ...} in preprocessor_config.json",
        )
    if wanted is not None and made != wanted:
        raise ModelError(
            f"the image processor makes {made[0]}x{made[1]} pixels, the model takes {wanted[0]}x{wanted[1]}",
            hint="mend preprocessor_config.json so that it fits the model's image_size",
        )
    return made


def _plain_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *, scaling: float, **_: Any
) -> tuple[Any, Any]:
    """Attention in the form that every backend fuses; encoders of images have no mask.

    query, key, value: (batch, heads, tokens, head_dim). Returns (batch, tokens, heads, head_dim) and the weights.
    """
    import torch

    weights = torch.softmax((query * scaling) @ key.transpose(-1, -2), dim=-1)  # (batch, heads, tokens, tokens)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@contextlib.contextmanager
def _attention(module: Any) -> Iterator[None]:
    """Give the model plain attention inside the block, where its family lets one choose."""
    transformers = require("transformers", extra="build")
    before = module.config._attn_implementation
    transformers.AttentionInterface.register(_ATTENTION, _plain_attention)
    try:
        try:
            module.set_attn_implementation(_ATTENTION)
        except (ValueError, KeyError, AttributeError):
            module.set_attn_implementation("eager")
        yield
    finally:
        module.set_attn_implementation(before)


def _trace(checkpoint: Checkpoint, size: tuple[int, int]) -> ir.Model:
    """The model's graph: pixel_values float32 (batch, 3, height, width) -> logits float32 (batch, classes)."""
    torch = require("torch", extra="build")
    require("onnxscript", extra="build")

    class Logits(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values).logits

    example = torch.zeros(2, 3, *size)
    try:
        with _attention(checkpoint.module), _quiet(), torch.no_grad():
            program = torch.onnx.export(
                Logits(checkpoint.module).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            )
    except VitdeployError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{checkpoint.source} ({type(checkpoint.module).__name__}) can't be exported: {first}",
            hint="ViT, DeiT and DINOv2 classifiers export; run with --debug for the exporter's own report",
        ) from error
    model: ir.Model = program.model
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: ir.Model) -> list[PassResult]:
    passes: list[Callable[[ir.Model], PassResult]] = [name_layers, fold_attention_scale, fold_class_token]
    results = [run(model) for run in passes]
    _tidy(model)
    return results


def _tidy(model: ir.Model) -> None:
    """Drop what nothing reads, give every value its type again, and leave no trace of the exporting machine."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "vitdeploy", __version__
    model.graph.name = "vitdeploy"


def _run(model: ir.Model, feeds: dict[str, np.ndarray], scratch: Path) -> np.ndarray:
    import onnx_ir as ir

    from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

    path = scratch / "graph.onnx"
    ir.save(model, path)
    with OnnxRuntimeRunner(path) as runner:
        return next(iter(runner.infer(feeds).values()))


def _check_model(checkpoint: Checkpoint, graph: ir.Model, size: tuple[int, int], scratch: Path) -> Check:
    """Logits of the graph and of PyTorch on pixel values of batches 1, 2 and 7."""
    import torch

    generator = np.random.default_rng(0)
    ours, theirs = [], []
    for batch in (1, 2, 7):
        pixels = generator.standard_normal((batch, 3, *size), dtype=np.float32)
        ours.append(_run(graph, {"pixel_values": pixels}, scratch))
        with torch.inference_mode():
            theirs.append(checkpoint.module(pixel_values=torch.from_numpy(pixels)).logits.numpy())
    return compare("FP32 graph against PyTorch", np.concatenate(ours), np.concatenate(theirs), LOGIT_TOLERANCE)


def _check_preprocessing(
    checkpoint: Checkpoint, front: ir.Model, spec: PreprocessSpec, input_size: tuple[int, int] | None, scratch: Path
) -> Check:
    """Pixel values of the graph and of the image processor on images of several sizes."""
    generator = np.random.default_rng(1)
    sizes = [input_size] if input_size else [(32, 32), (17, 45), (240, 320), (301, 97)]
    ours, theirs = [], []
    for height, width in sizes:
        image = _test_image(height, width, generator)
        ours.append(_run(front, {"image": image[np.newaxis]}, scratch)[0])
        theirs.append(
            np.asarray(
                checkpoint.processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
            )
        )
    level = np.full(3, spec.rescale if spec.rescale is not None else 1.0)
    if spec.std is not None:
        level = level / np.asarray(spec.std)
    return compare_levels("preprocessing against the image processor", ours, theirs, np.abs(level))


def _test_image(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth gradients, edges and noise: uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * y / height, 255 * x / width, 127 + 127 * np.sin(x / 7.0) * np.cos(y / 5.0)], axis=-1)
    smooth[(x // 9 + y // 11) % 5 == 0] = 250
    noise = generator.integers(-20, 21, size=smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)
