"""How fast INT8 could be at most on this CPU: the Linears of a ViT-B/16 alone against PyTorch eager, interleaved.

    python benchmarks/int8_floor.py [--bundle BUNDLE] [--batch 1] [--threads 2] [--rounds 30] [--json FILE]

The model is a ViT-B/16 at 224 with random weights, one image a call or a batch. Against a whole call of PyTorch FP32
eager stand, by turns in one process and with a rest of 30 ms in front of each turn:

- all INT8 products of its Linears in one ONNX Runtime graph (`MatMulInteger`, uint8 by int8, 197 rows an image; of the
  last layer keys and values alone, since a classifier reads one token of it). Nothing else is in it: no quantisation,
  no attention, no GELU, no LayerNorm. Eager's time over this one's is a ceiling that no form with these products
  passes.
- with --bundle, the form for CPUs of a ViT-B/16 by our kernels, pixel values to logits: their share of the ceiling.
- the same products of one layer, again and again: their weights stay in the cache, which a model's don't.
- a float32 product of 2048 x 2048 x 2048 in PyTorch, for the processor's peak. VNNI has four times the float32 rate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from int8_speed import eager
from peers import CLOCKS, Call, interleaved

from vitdeploy.backends.native.packing import Encoder
from vitdeploy.backends.native.plain_vit import read_plain_vit
from vitdeploy.bundle.onnx_messages import read_model
from vitdeploy.core.machine import machine, versions
from vitdeploy.evaluation.statistics import speedup

LAYERS, TOKENS, WIDTH, HIDDEN = 12, 197, 768, 3072
ATTENTION = [(WIDTH, WIDTH)] * 4
LINEARS = [*ATTENTION, (WIDTH, HIDDEN), (HIDDEN, WIDTH)]
LAST = ATTENTION[:2]
PEAK_EDGE = 2048


def products(layers: list[list[tuple[int, int]]], threads: int, batch: int) -> Call:
    """Every product of `layers`, (inputs, outputs) each, in one session; the call's argument is not looked at."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    feeds = {f"x{width}": rng.integers(0, 256, (batch * TOKENS, width), np.uint8) for width in (WIDTH, HIDDEN)}
    nodes, weights, outputs = [], [], []
    for number, (inputs, made) in enumerate(shape for layer in layers for shape in layer):
        weights.append(numpy_helper.from_array(rng.integers(-127, 128, (inputs, made), np.int8), f"w{number}"))
        nodes.append(helper.make_node("MatMulInteger", [f"x{inputs}", f"w{number}", "zero"], [f"y{number}"]))
        # one number of each product is asked for, so that none is left out and nothing is copied
        nodes.append(helper.make_node("Slice", [f"y{number}", "from", "to"], [f"part{number}"]))
        outputs.append(helper.make_tensor_value_info(f"part{number}", TensorProto.INT32, [1, 1]))
    constants = {"zero": np.array(128, np.uint8), "from": np.array([0, 0]), "to": np.array([1, 1])}
    weights += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.UINT8, value.shape) for name, value in feeds.items()]
    graph = helper.make_graph(nodes, "linears", given, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda _: session.run(None, feeds)


def float_product() -> Call:
    import torch

    matrix = torch.rand(PEAK_EDGE, PEAK_EDGE)
    return lambda _: matrix @ matrix


def kernels(bundle: Path, threads: int) -> Call:

    form = read_plain_vit(read_model((bundle / "model.int8-cpu.onnx").read_bytes()))
    shape = (len(form.kernel), len(form.positions), len(form.layers), form.layers[0].fc1.weight.shape[1])
    if shape != (WIDTH, TOKENS, LAYERS, HIDDEN):
        raise SystemExit(f"{bundle} is not a ViT-B/16 at 224: {shape}")
    return Encoder(form, threads).run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a ViT-B/16 with an INT8 form for CPUs, of any weights")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the samples and what follows from them there")
    arguments = parser.parse_args()
    from transformers import ViTConfig, ViTForImageClassification

    layers = [LINEARS] * (LAYERS - 1) + [LAST]
    rows = arguments.batch * TOKENS
    macs = sum(rows * inputs * made for layer in layers for inputs, made in layer)
    one_layer = sum(rows * inputs * made for inputs, made in LINEARS)
    calls = {
        "PyTorch eager": eager(ViTForImageClassification(ViTConfig()), arguments.threads),
        "all Linears in INT8": products(layers, arguments.threads, arguments.batch),
        "one layer's Linears in INT8": products([LINEARS], arguments.threads, arguments.batch),
        "float32 product": float_product(),
    }
    if arguments.bundle is not None:
        calls["our kernels"] = kernels(arguments.bundle, arguments.threads)
    pixels = np.random.default_rng(1).standard_normal((arguments.batch, 3, 224, 224)).astype(np.float32)
    times = interleaved(calls, pixels, arguments.rounds, CLOCKS["wall"])
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ceiling = speedup(times["PyTorch eager"], times["all Linears in INT8"])
    rate = {
        "all Linears in INT8": macs / medians["all Linears in INT8"] / 1e6,
        "one layer's Linears in INT8": one_layer / medians["one layer's Linears in INT8"] / 1e6,
        "float32 product": PEAK_EDGE**3 / medians["float32 product"] / 1e6,
    }
    settings = f"batches of {arguments.batch}, {arguments.threads} threads, {arguments.rounds} rounds"
    print(f"ViT-B/16 at 224, {macs / 1e9:.1f} GMACs in its Linears, {settings}")
    for name, median in medians.items():
        print(f"  {name:28}{median:8.1f} ms" + (f"{rate[name]:8.0f} GMACs a second" if name in rate else ""))
    ratio, (low, high) = ceiling
    print(f"PyTorch eager over all Linears in INT8: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    share = None
    if arguments.bundle is not None:
        share = speedup(times["all Linears in INT8"], times["our kernels"])
        print("our kernels reach {:.3f} [{:.3f}, {:.3f}] of that".format(share[0], *share[1]))
    peak = macs / (4 * rate["float32 product"] * 1e6)
    quarter = medians["PyTorch eager"] / 4
    print(
        f"at four times the float32 rate they would take {peak:.1f} ms; a quarter of PyTorch eager is {quarter:.1f} ms"
    )
    if arguments.json is not None:
        document = {
            "machine": machine(),
            "versions": versions(),
            "threads": arguments.threads,
            "batch": arguments.batch,
            "gmacs": macs / 1e9,
            "gmacs_per_s": rate,
            "at_peak_ms": peak,
            "ceiling": [ratio, low, high],
            "share_of_kernels": share,
            "samples_ms": times,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
