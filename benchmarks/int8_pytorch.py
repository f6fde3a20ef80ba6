"""The INT8 form for CPUs as PyTorch computes it, beside ONNX Runtime and PyTorch's float32 eager, interleaved.

    python benchmarks/int8_pytorch.py BUNDLE CHECKPOINT [--autotune] [--threads 2] [--rounds 30] [--json FILE]

Scales, zero points, weights and biases are those of `model.int8-cpu.onnx`, from pixel values to logits, of a ViT with a
class token (google's kind, not DINOv2's). They are written as PyTorch's compiler takes INT8: quantize, dequantize,
linear. With frozen weights torch.compile makes of that oneDNN's INT8 products, with bias, GELU or the residual inside,
and kernels of its own for LayerNorm and quantisation; with --autotune it also writes products with VNNI instructions
and keeps the faster of both for each shape. It takes a C++ compiler, and a minute or two.

This is a form that vitdeploy has not: it asks what INT8 on this processor has in another engine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from int8_speed import eager
from peers import CLOCKS, Call, Form, interleaved, open_form

from vitdeploy.bench.statistics import speedup
from vitdeploy.compiler.graph.cut import cut
from vitdeploy.machine import machine, versions
from vitdeploy.runtime import plain_vit
from vitdeploy.runtime.plain_vit import PlainVit, Product, read_plain_vit
from vitdeploy.specs import PIXEL_VALUES

PYTORCH, OURS, COMPILED = "PyTorch eager", "ours, ONNX Runtime", "the same form in PyTorch's compiler"


class Linear(torch.nn.Module):
    """x (1, tokens, inputs) -> (1, tokens, outputs)."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.scale, self.zero = product.scale, product.zero
        self.register_buffer("weight", torch.from_numpy(product.weight.T.copy()))  # (outputs, inputs)
        self.register_buffer("weight_scale", torch.from_numpy(product.weight_scale.copy()))
        self.register_buffer("weight_zero", torch.zeros(len(product.weight_scale), dtype=torch.int64))
        self.register_buffer("bias", torch.from_numpy(product.bias.copy()))

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        operators = torch.ops.quantized_decomposed
        scheme = (self.scale, self.zero, 0, 255, torch.uint8)
        return operators.dequantize_per_tensor.default(operators.quantize_per_tensor.default(x, *scheme), *scheme)

    def product(self, rounded: torch.Tensor) -> torch.Tensor:
        dequantize = torch.ops.quantized_decomposed.dequantize_per_channel.default
        weight = dequantize(self.weight, self.weight_scale, self.weight_zero, 0, -128, 127, torch.int8)
        return F.linear(rounded, weight, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(self.rounded(x))


class Norm(torch.nn.Module):
    def __init__(self, norm: plain_vit.Norm) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(norm.weight.copy()))
        self.register_buffer("bias", torch.from_numpy(norm.bias.copy()))
        self.epsilon = norm.epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Layer(torch.nn.Module):
    """One encoder layer; the last is computed for the class token alone, as in our form."""

    def __init__(self, layer: plain_vit.Layer, head: int, last: bool) -> None:
        super().__init__()
        self.before, self.after = Norm(layer.before), Norm(layer.after)
        first, others = layer.query, (layer.key, layer.value)
        self.query = Linear(first) if last else None
        self.others = Linear(side_by_side(*others) if last else side_by_side(first, *others))
        self.output, self.fc1, self.fc2 = (Linear(product) for product in (layer.output, layer.fc1, layer.fc2))
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = self.others.rounded(self.before(x))
        if self.query is None:
            query, key, value = self.others.product(rounded).chunk(3, dim=-1)
        else:
            x, query = x[:, :1], self.query.product(rounded[:, :1])
            key, value = self.others.product(rounded).chunk(2, dim=-1)
        # (1, tokens, width) -> (1, heads, tokens, head)
        query, key, value = (part.unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (query, key, value))
        mixed = torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value  # the scale is in the query's weights
        x = self.output(mixed.transpose(1, 2).flatten(2)) + x
        return self.fc2(F.gelu(self.fc1(self.after(x)))) + x


class Form8(torch.nn.Module):
    """Pixel values (1, 3, height, width) -> logits (1, classes)."""

    def __init__(self, form: PlainVit, head: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(layer, head, layer is form.layers[-1]) for layer in form.layers)
        self.norm = Norm(form.norm)
        for name in ("kernel", "kernel_bias", "positions", "classifier", "classifier_bias"):
            self.register_buffer(name, torch.from_numpy(getattr(form, name).copy()))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = F.conv2d(pixels, self.kernel, self.kernel_bias, self.kernel.shape[-1]).flatten(2).transpose(1, 2)
        x = F.pad(patches, (0, 0, 1, 0)) + self.positions
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x[:, 0]), self.classifier, self.classifier_bias)


def side_by_side(*products: Product) -> Product:
    """Products of one input as one."""
    weight, scale, bias = (
        np.concatenate([getattr(product, name) for product in products], axis=-1)
        for name in ("weight", "weight_scale", "bias")
    )
    return Product(products[0].scale, products[0].zero, weight, scale, bias)


def onnx_call(graph: Path, threads: int) -> Call:
    """ONNX Runtime's call of a graph from pixel values on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core.onnx"
        ir.save(cut(ir.load(graph), PIXEL_VALUES, "logits"), path)
        return open_form(Form(OURS, path, "onnxruntime", ""), threads)


def against_eager(calls: dict[str, Call], edge: int, rounds: int) -> dict[str, Any]:
    """Times of all calls, their ratios to PyTorch eager, and how far the compiler's logits are from ours."""
    images = np.random.default_rng(0).standard_normal((4, 1, 3, edge, edge)).astype(np.float32)
    expected, found = (
        np.concatenate([np.asarray(calls[name](image)) for image in images]) for name in (OURS, COMPILED)
    )
    spread = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f"logits differ from those of {OURS} by up to {spread:.1%} of the largest")
    times = interleaved(calls, images[0], rounds, CLOCKS["wall"])
    ratios = {name: speedup(times[PYTORCH], times[name]) for name in calls if name != PYTORCH}
    for name, values in times.items():
        print(f"{name:40}{np.median(values):8.1f} ms", end="")
        print("  {:.2f} [{:.2f}, {:.2f}]".format(ratios[name][0], *ratios[name][1]) if name in ratios else "")
    return {"rounds": rounds, "logits_spread": spread, "times_pytorch_eager": ratios, "samples_ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--autotune", action="store_true", help="let the compiler write products too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch._inductor.config as settings
    from transformers import AutoModelForImageClassification

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    settings.freezing = True
    settings.max_autotune, settings.max_autotune_gemm_backends = arguments.autotune, "CPP,ATEN"
    checkpoint = AutoModelForImageClassification.from_pretrained(arguments.checkpoint)
    config = checkpoint.config
    graph = arguments.bundle / "model.int8-cpu.onnx"
    module = Form8(read_plain_vit(onnx.load(graph)), config.hidden_size // config.num_attention_heads).eval()
    compiled = torch.compile(module, dynamic=False)
    calls: dict[str, Call] = {
        PYTORCH: eager(checkpoint, arguments.threads),
        OURS: onnx_call(graph, arguments.threads),
        COMPILED: lambda pixels: compiled(torch.from_numpy(pixels)),
    }
    found = against_eager(calls, config.image_size, arguments.rounds)
    if arguments.json is not None:
        settled = {"threads": arguments.threads, "autotune": arguments.autotune}
        document = {"machine": machine(), "versions": versions(), **settled, **found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
