"""What INT8 of a ViT would take on this CPU by kernels of its own, against PyTorch eager and ONNX Runtime, interleaved.

    python benchmarks/int8_kernels.py BUNDLE CHECKPOINT [--threads 2] [--rounds 30] [--json FILE]
                                      [--dataset D --split test --count 2000]

Weights, scales and zero points are those of `model.int8-cpu.onnx`, and the logits are compared with ONNX Runtime's.
`int8_kernels.cpp` is compiled for this processor (a C++ compiler, AVX-512 with VNNI) and computes from pixel values to
the class token, for one image, heads of 64, widths that are multiples of 64. It is no backend of
vitdeploy: it says how much the engines leave. With a dataset, its answers are compared with ONNX Runtime's on images.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import cpu_form as cpu
import numpy as np
import onnx_ir as ir
from cpu_form import OURS, PYTORCH, PlainVit, Product, against_eager, cpu_form, side_by_side
from int8_speed import eager
from peers import Call, Form, open_form

from vitdeploy.bundle import Bundle
from vitdeploy.compiler.preprocessing import build_preprocessing
from vitdeploy.datasets import ImageDataset, load_dataset
from vitdeploy.machine import machine, versions

KERNELS = "the same form, kernels of its own"
COLUMNS = 64  # of a tile
Pointer = ctypes.c_void_p


def structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Linear = structure(
    "Linear",
    inputs=ctypes.c_int,
    outputs=ctypes.c_int,
    weights=Pointer,
    scale=Pointer,
    bias=Pointer,
    inverse=ctypes.c_float,
    zero=ctypes.c_float,
)
Norm = structure("Norm", weight=Pointer, bias=Pointer, epsilon=ctypes.c_float)
Layer = structure("Layer", before=Norm, after=Norm, qkv=Linear, output=Linear, fc1=Linear, fc2=Linear)
Patches = structure(
    "Patches", side=ctypes.c_int, across=ctypes.c_int, inputs=ctypes.c_int, weights=Pointer, positions=Pointer
)
Classifier = structure("Classifier", classes=ctypes.c_int, weights=Pointer, bias=Pointer)


class Packed:
    """The constants of a form as C structures; keeps the arrays that they point to."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def keep(self, array: np.ndarray) -> int:
        """The address of a copy that is aligned for vectors."""
        room = np.empty(array.nbytes + 64, np.uint8)
        start = -room.ctypes.data % 64
        room[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self._kept.append(room)
        return int(room.ctypes.data + start)

    def linear(self, product: Product) -> Any:
        inputs, outputs = product.weight.shape
        scale = product.weight_scale * product.scale
        bias = product.bias - scale * product.zero * product.weight.astype(np.int32).sum(axis=0)
        # (inputs, outputs) -> (outputs / 64, inputs / 4, 64, 4)
        packed = product.weight.reshape(inputs // 4, 4, outputs // COLUMNS, COLUMNS).transpose(2, 0, 3, 1)
        floats = (self.keep(values.astype(np.float32)) for values in (scale, bias))
        return Linear(inputs, outputs, self.keep(packed), *floats, 1 / product.scale, product.zero)

    def norm(self, norm: cpu.Norm) -> Any:
        return Norm(self.keep(norm.weight), self.keep(norm.bias), norm.epsilon)

    def layer(self, layer: cpu.Layer) -> Any:
        products = (side_by_side(layer.query, layer.key, layer.value), layer.output, layer.fc1, layer.fc2)
        return Layer(self.norm(layer.before), self.norm(layer.after), *(self.linear(each) for each in products))

    def patches(self, form: PlainVit, edge: int) -> Any:
        positions = form.positions.copy()
        positions[:, 1:] += form.kernel_bias
        width, side = form.kernel.shape[0], form.kernel.shape[-1]
        # (width, inputs) -> (width / 64, inputs, 64)
        packed = form.kernel.reshape(width // COLUMNS, COLUMNS, -1).transpose(0, 2, 1)
        return Patches(side, edge // side, packed.shape[1], self.keep(packed), self.keep(positions))


def compiled(folder: Path) -> ctypes.CDLL:
    source, library = Path(__file__).with_suffix(".cpp"), folder / "kernels.so"
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["c++", *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def by_kernels(form: PlainVit, edge: int, threads: int) -> Call:
    packed = Packed()
    layers = [packed.layer(layer) for layer in form.layers]
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
    library.encoder_open.restype = Pointer
    library.encoder_run.argtypes = (Pointer, Pointer, Pointer)
    width, hidden = layers[0].fc1.inputs, layers[0].fc1.outputs
    classes = len(form.classifier)
    classifier = Classifier(classes, packed.keep(form.classifier), packed.keep(form.classifier_bias))
    parts = ((Layer * len(layers))(*layers), packed.norm(form.norm), packed.patches(form, edge), classifier)
    encoder = library.encoder_open(width, hidden, len(layers), *parts, threads)
    assert encoder, "a model of another shape than these kernels take"

    def call(pixels: np.ndarray, kept: Packed = packed) -> np.ndarray:
        logits = np.empty((1, classes), np.float32)
        library.encoder_run(encoder, pixels.ctypes.data, logits.ctypes.data)
        return logits

    return call


def answers(bundle: Path, ours: Call, kernels: Call, images: ImageDataset) -> dict[str, Any]:
    """Top-1 of both in percent, and how often they agree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "front.onnx"
        ir.save(build_preprocessing(Bundle.open(bundle).manifest.preprocess, target="cpu"), path)
        front = open_form(Form("", path, "onnxruntime", ""), 2, "image")
    found = []
    for image, label in images:
        pixels = front(np.ascontiguousarray(image)[np.newaxis])
        found.append([int(np.argmax(call(pixels))) for call in (ours, kernels)] + [label])
    first, second, truth = np.array(found).T
    shares = {"agreement": first == second, "top1_ours": first == truth, "top1_kernels": second == truth}
    percent = {name: 100 * float(values.mean()) for name, values in shares.items()}
    print(f"{images.describe()['name']}, {len(images)} images: {percent}")
    return {**percent, "images": images.describe()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    from transformers import AutoModelForImageClassification

    checkpoint = AutoModelForImageClassification.from_pretrained(arguments.checkpoint)
    edge = checkpoint.config.image_size
    form, onnx_call = cpu_form(arguments.bundle, arguments.threads)
    calls = {
        PYTORCH: eager(checkpoint, arguments.threads),
        OURS: onnx_call,
        KERNELS: by_kernels(form, edge, arguments.threads),
    }
    found = against_eager(calls, edge, arguments.rounds)
    if arguments.dataset:
        images = load_dataset(arguments.dataset, split=arguments.split).subset(range(arguments.count))
        found["answers"] = answers(arguments.bundle, calls[OURS], calls[KERNELS], images)
    if arguments.json is not None:
        document = {"machine": machine(), "versions": versions(), "threads": arguments.threads, **found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
