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
from pathlib import Path

import onnx_ir as ir
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from int8_speed import OTHERS, against_eager, cpu_form, eager
from peers import Call

from vitdeploy.compiler.graph.values import constant
from vitdeploy.machine import machine, versions

OURS, COMPILED = "ours, ONNX Runtime", "the same form in PyTorch's compiler"
LINEARS = 6  # of a layer: query, key, value, attention's output, FC1, FC2


def tensor(value: ir.Value | None) -> torch.Tensor:
    array = constant(value)
    assert array is not None, f"{value} is no constant"
    return torch.from_numpy(array.copy())


class Linear(torch.nn.Module):
    """Some MatMulIntegerToFloat of one input, side by side: x (1, tokens, inputs) -> (1, tokens, outputs of all)."""

    def __init__(self, *products: ir.Node) -> None:
        super().__init__()
        self.scale, self.zero = (tensor(products[0].inputs[place]).item() for place in (2, 4))
        weights, scales, biases = (
            torch.cat([tensor(product.inputs[place]) for product in products], dim=-1) for place in (1, 3, 6)
        )
        self.register_buffer("weight", weights.t().contiguous())  # (outputs, inputs)
        self.register_buffer("weight_scale", scales)
        self.register_buffer("weight_zero", torch.zeros(len(scales), dtype=torch.int64))
        self.register_buffer("bias", biases)

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
    def __init__(self, node: ir.Node) -> None:
        super().__init__()
        self.register_buffer("weight", tensor(node.inputs[1]))
        self.register_buffer("bias", tensor(node.inputs[2]))
        self.epsilon = node.attributes["epsilon"].as_float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Layer(torch.nn.Module):
    """One encoder layer; the last is computed for the class token alone, as in our form."""

    def __init__(self, products: list[ir.Node], norms: list[ir.Node], head: int, last: bool) -> None:
        super().__init__()
        self.before, self.after = Norm(norms[0]), Norm(norms[1])
        self.query, self.others = (
            (Linear(products[0]), Linear(*products[1:3])) if last else (None, Linear(*products[:3]))
        )
        self.output, self.fc1, self.fc2 = (Linear(product) for product in products[3:])
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

    def __init__(self, model: ir.Model, head: int) -> None:
        super().__init__()
        by_kind = {
            kind: [node for node in model.graph if node.op_type == kind]
            for kind in ("MatMulIntegerToFloat", "LayerNormalization", "Conv", "Gemm", "Add")
        }
        products, norms = by_kind["MatMulIntegerToFloat"], by_kind["LayerNormalization"]
        count = len(products) // LINEARS
        self.layers = torch.nn.ModuleList(
            Layer(
                products[LINEARS * place : LINEARS * (place + 1)],
                norms[2 * place : 2 * place + 2],
                head,
                place == count - 1,
            )
            for place in range(count)
        )
        self.norm = Norm(norms[-1])
        positions = next(value for node in by_kind["Add"] for value in node.inputs if constant(value) is not None)
        self.register_buffer("positions", tensor(positions))  # (1, tokens, width), the class token's in the first row
        kernel = by_kind["Conv"][0].inputs
        self.register_buffer("patches", tensor(kernel[1]))
        self.register_buffer("patches_bias", tensor(kernel[2]) if len(kernel) > 2 else None)
        classifier = by_kind["Gemm"][0].inputs
        self.register_buffer("classifier", tensor(classifier[1]))
        self.register_buffer("bias", tensor(classifier[2]) if len(classifier) > 2 else None)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = F.conv2d(pixels, self.patches, self.patches_bias, self.patches.shape[-1]).flatten(2).transpose(1, 2)
        x = F.pad(patches, (0, 0, 1, 0)) + self.positions
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x[:, 0]), self.classifier, self.bias)


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
    core, onnx_call = cpu_form(arguments.bundle, arguments.threads)
    form = Form8(core, config.hidden_size // config.num_attention_heads).eval()
    compiled = torch.compile(form, dynamic=False)
    calls: dict[str, Call] = {
        OTHERS[0]: eager(checkpoint, arguments.threads),
        OURS: onnx_call,
        COMPILED: lambda pixels: compiled(torch.from_numpy(pixels)),
    }
    found = against_eager(calls, config.image_size, OURS, arguments.rounds)
    if arguments.json is not None:
        settled = {"threads": arguments.threads, "autotune": arguments.autotune}
        document = {"machine": machine(), "versions": versions(), **settled, **found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
