"""A checkpoint's module -> its raw graph, and the values that PyTorch computes for the same outputs.

The graph is written by torch.onnx.export. Attention is the plain MatMul-Softmax-MatMul where the family lets one
choose. Whatever depends on the image's size alone, position embeddings above all, is computed once by the model's own
code while PyTorch runs the check images, and stands in the graph as a constant.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.frontend.plain_attention import Weights, plain_attention
from vitdeploy.core.errors import ModelError, VitdeployError, require
from vitdeploy.core.text import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.models.checkpoints import Checkpoint

__all__ = ["OPSET", "Reference", "configured_size", "run_pytorch", "takes_interpolation", "trace"]

OPSET = 20  # Gelu as one op (20), FP16 scales of Q/DQ (19), LayerNormalization (17); TensorRT 10.3 reads up to 20
"""What a graph may give: always its answer, logits (batch, classes) or embedding (batch, dimensions); the task's scores
of logits; what the classifier reads (batch, width); the attention weights of the last layer (batch, heads, tokens,
tokens)."""
_BAKED = "baked_positions"


@dataclass
class Reference:
    """What PyTorch computed: `values` by output, one array a run; `baked` what depended on the image's size alone, by
    module."""

    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    baked: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def _pooling(module: Any) -> Iterator[None]:
    """Let pooling to one value, (batch, channels, length) -> (batch, channels, 1), be a mean inside the block: the
    exporter writes Swin's AdaptiveAvgPool1d(1) with a Gather whose indices are computed from the batch, and TensorRT
    has no window as large as EfficientNet's, which is wider than any of its maps."""
    import torch

    pools = [part for part in module.modules() if isinstance(part, torch.nn.AdaptiveAvgPool1d)]
    pools = [part for part in pools if part.output_size in (1, (1,))]
    windows = [part for part in module.modules() if isinstance(part, torch.nn.AvgPool2d) and not _pads(part)]
    try:
        for part in pools:
            part.forward = lambda values: values.mean(dim=-1, keepdim=True)
        for part in windows:
            part.forward = partial(_pooled_whole, part, part.forward)
        yield
    finally:
        for part in (*pools, *windows):
            del part.forward


def _pads(part: Any) -> bool:
    """Whether zeros, or a divisor of its own, go into an average."""
    return part.padding not in (0, (0, 0)) or part.divisor_override is not None


def _pooled_whole(part: Any, pool: Callable[[Any], Any], values: Any) -> Any:
    """The mean of a map (batch, channels, height, width) that the window covers; else what it pools."""
    sizes = (part.kernel_size,) * 2 if isinstance(part.kernel_size, int) else part.kernel_size
    whole = all(window >= edge for window, edge in zip(sizes, values.shape[-2:], strict=True))
    return values.mean(dim=(-2, -1), keepdim=True) if whole else pool(values)


def _classifiers(module: Any) -> list[Any]:
    """The linear layers that may make the logits."""
    import torch

    classes = module.config.num_labels
    linear = torch.nn.Linear
    return [part for part in module.modules() if isinstance(part, linear) and part.out_features == classes]


def _outputs_module(checkpoint: Checkpoint, names: tuple[str, ...], interpolate: bool) -> Any:
    """A module that gives the named outputs as a tuple.

    Its class refers to itself, as classes do, and so to nothing large: the module is the instance's alone.
    """
    import torch

    answer_of, task = checkpoint.answer, checkpoint.task
    softmax = task.activation == "softmax"
    activation = partial(torch.softmax, dim=-1) if softmax else torch.sigmoid

    class Outputs(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model
            self.arguments = {"interpolate_pos_encoding": True} if interpolate else {}

        def forward(self, pixel_values: Any) -> Any:
            read: list[Any] = []

            def keep(_: Any, inputs: tuple[Any, ...]) -> None:
                if inputs[0].ndim == 2:
                    read.append(inputs[0])

            watched = _classifiers(self.model) if "features" in names else []
            hooks = [part.register_forward_pre_hook(keep) for part in watched]
            Weights.last = None
            try:
                answer = answer_of(self.model(pixel_values=pixel_values, **self.arguments))
            finally:
                for hook in hooks:
                    hook.remove()
            made: dict[str, Callable[[], Any]] = {task.kind.output: lambda: answer}
            made["scores"] = lambda: activation(answer)
            made["features"] = lambda: _features(self.model, read)
            made["attention"] = lambda: _last_attention(self.model, pixel_values.shape[0])
            return tuple(made[name]() for name in names)

    return Outputs(checkpoint.module).eval()


def _features(module: Any, read: list[Any]) -> Any:
    if not read:
        raise ModelError(
            f"{type(module).__name__} has no linear classifier on a pooled embedding, so it has no features to give",
            hint="export it without --output-features",
        )
    return read[0]


def _last_attention(module: Any, batch: Any) -> Any:
    weights = Weights.last
    if weights is None or weights.shape[0] != batch:
        raise ModelError(
            f"{type(module).__name__} has no attention over all tokens that could be given as an output",
            hint="export it without --output-attention; ViT, DeiT, BEiT, DINOv2, CLIP and SigLIP have one",
        )
    return weights


def _interpolates(module: Any, size: tuple[int, int]) -> bool:
    """Whether the model must be told to fit its position embeddings to images of this size."""
    return takes_interpolation(module) and size != configured_size(module)


def takes_interpolation(module: Any) -> bool:
    """Whether the model fits its positions to other images when told so: by an argument of its own, or one that it
    hands on to its tower, as CLIP does."""
    argument = "interpolate_pos_encoding"
    own = inspect.signature(module.forward).parameters
    hands_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values())
    return argument in own or (
        hands_on and any(argument in inspect.signature(part.forward).parameters for part in module.modules())
    )


def configured_size(module: Any) -> tuple[int, int] | None:
    """(height, width) that the checkpoint was trained with, if its config says so."""
    config = module.config
    for place in (config, getattr(config, "vision_config", None)):
        size = getattr(place, "image_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


@contextlib.contextmanager
def _recording(module: Any, baked: dict[str, Any]) -> Iterator[None]:
    """Keep what the model computes from its weights and the image's size alone: positions and position biases."""
    undo = []

    def record(name: str, part: Any, method: str) -> None:
        compute = getattr(part, method)

        def recorded(*arguments: Any, **named: Any) -> Any:
            baked[f"{name}:{method}"] = compute(*arguments, **named)
            return baked[f"{name}:{method}"]

        setattr(part, method, recorded)
        undo.append((part, method))

    for name, part in module.named_modules():
        if hasattr(part, "interpolate_pos_encoding"):
            record(name, part, "interpolate_pos_encoding")
        elif type(part).__name__.endswith("RelativePositionBias"):
            record(name, part, "forward")
    try:
        yield
    finally:
        for part, method in undo:
            delattr(part, method)


@contextlib.contextmanager
def _baked(module: Any, baked: dict[str, Any]) -> Iterator[None]:
    """Let the model read what was recorded instead of computing it."""
    parts = dict(module.named_modules())
    undo = []
    try:
        for place, value in baked.items():
            name, _, method = place.partition(":")
            part = parts[name]
            part.register_buffer(_BAKED, value.detach().clone(), persistent=False)
            setattr(part, method, lambda *_, _part=part, **__: getattr(_part, _BAKED))
            undo.append((part, method))
        yield
    finally:
        for part, method in undo:
            delattr(part, method)
            delattr(part, _BAKED)


def run_pytorch(checkpoint: Checkpoint, batches: list[np.ndarray], names: tuple[str, ...]) -> Reference:
    """The outputs of the checkpoint's module for pixel values (batch, 3, height, width), as it was loaded.

    Attention weights come from a second, plain run, since fused attention never has them in memory.

    Raises:
        ModelError: the model can't give one of the outputs, or does not take images of this size.
    """
    import torch

    module, size = checkpoint.module, (batches[0].shape[2], batches[0].shape[3])
    reference = Reference({name: [] for name in names})
    own = tuple(name for name in names if name != "attention")
    try:
        with torch.inference_mode(), _recording(module, reference.baked):
            for wanted, context in ((own, contextlib.nullcontext()), (("attention",), plain_attention(module))):
                if not set(wanted) & set(names):
                    continue
                outputs = _outputs_module(checkpoint, wanted, _interpolates(module, size))
                with context:
                    for pixels in batches:
                        for name, value in zip(wanted, outputs(torch.from_numpy(pixels)), strict=True):
                            reference.values[name].append(value.numpy())
    except (VitdeployError, MemoryError):
        raise
    except Exception as error:  # what a model's own code raises for inputs that it was not written for
        raise ModelError(
            f"{checkpoint.source} ({type(module).__name__}) does not take images of {size[0]}x{size[1]}:"
            f" {first_line(error)}",
            hint="choose an --image-size that is a multiple of its patch size, or the size it was trained with;"
            " docs/export.md lists the families that are tested",
        ) from error
    return reference


def trace(checkpoint: Checkpoint, size: tuple[int, int], names: tuple[str, ...], baked: dict[str, Any]) -> ir.Model:
    """The model's graph: pixel_values float32 (batch, 3, height, width) -> the named outputs.

    Raises:
        ModelError: the exporter can't trace it.
    """
    with _set_aside():
        return _traced(checkpoint, size, names, baked)


def _traced(checkpoint: Checkpoint, size: tuple[int, int], names: tuple[str, ...], baked: dict[str, Any]) -> ir.Model:
    torch = require("torch", extra="build")
    optimizer = require("onnxscript.optimizer", extra="build")
    module = checkpoint.module
    outputs = _outputs_module(checkpoint, names, _interpolates(module, size))
    example = torch.zeros(2, 3, *size)
    try:
        with plain_attention(module), _pooling(module), _baked(module, baked), _quiet(), torch.no_grad():
            program = torch.onnx.export(
                outputs,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixel_values"],
                output_names=list(names),
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                optimize=False,
            )
            _forget_inputs(program.model.graph)
            # Once round: the exporter's own two take a third of its time, and the second finds nothing more.
            optimizer.optimize(program.model, num_iterations=1)
    except VitdeployError:
        raise
    except Exception as error:
        raise ModelError(
            f"{checkpoint.source} ({type(module).__name__}) can't be exported: {first_line(error)}",
            hint="docs/export.md lists the families that are tested; --debug shows the exporter's own report",
        ) from error
    finally:
        Weights.last = None
    model: ir.Model = program.model
    return model


def _forget_inputs(graph: ir.Graph) -> None:
    """Give each weight a value that never was an input: a graph keeps what was one, its numbers too, as long as it
    lives, and a pass that replaces a weight would not set its memory free."""
    import onnx_ir as ir

    for name, old in list(graph.initializers.items()):
        fresh = ir.Value(name=name, type=old.type, shape=old.shape, const_value=old.const_value)
        ir.convenience.replace_all_uses_with(old, fresh)
        del graph.initializers[name]
        old.const_value = None
        graph.register_initializer(fresh)


@contextlib.contextmanager
def _set_aside() -> Iterator[None]:
    """Put off Python's search for unused objects that refer to each other: tracing makes a million small ones, and
    looking through them over and over takes a twelfth of its time. Once at the end, and among the new ones alone."""
    was_enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
