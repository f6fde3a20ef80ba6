"""The exported graph against the raw one: speed on CPUs, TensorRT-RTX engines, the time of an export.

    python benchmarks/export.py --work FOLDER [--prepare] [--speed] [--engines] [--time] [--json F] [--markdown F]
        [--backend onnxruntime|openvino] [--batch N] [--rounds N]

The model is a ViT-B/16 at 224 of random weights (`--model small`: ViT-S/16). The graphs, all of the same weights, from
pixel values to logits:

    raw            torch.onnx.export of the model as transformers loads it
    optimised      raw after onnxruntime.transformers.optimizer (model_type "vit", its default level)
    cleaned        what `vitdeploy export` writes behind its preprocessing
    merged         the same with --merge-qkv
    patch product  cleaned, its patch embedding a MatMul over cut patches instead of a convolution

`--prepare` writes them to FOLDER once. `--speed` runs all of them in one process, taking turns in an order that is
shuffled every round, in ONNX Runtime and OpenVINO, at batch 1 and 8 (or as `--backend` and `--batch` say); a ratio is
the median over the rounds of a graph's time over raw's in the same round, with its 95 % interval. `--time` exports in
turns with the bare torch.onnx.export and with `vitdeploy export`, everything included. `--engines` builds them in turns
with tensorrt-rtx, which needs no GPU for that.
Calls with the same `--json` add to it, so that a long measurement can be taken in parts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.core.machine import machine, versions
from vitdeploy.evaluation.statistics import ratio_interval

GRAPHS = ("raw", "optimised", "cleaned", "merged", "patch product")
BACKENDS = ("onnxruntime", "openvino")
SIZES = {"base": (768, 12, 12), "small": (384, 12, 6)}


def write_checkpoint(folder: Path, size: str) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    hidden, layers, heads = SIZES[size]
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden,
        num_labels=1000,
    )  # fmt: skip
    module = ViTForImageClassification(config)
    with torch.no_grad():  # biases of zero are folded away, and no trained model has them
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    module.save_pretrained(folder)
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def export_raw(checkpoint: Path, path: Path) -> None:
    import torch
    from transformers import ViTForImageClassification

    with quiet():
        module = ViTForImageClassification.from_pretrained(checkpoint).eval()
        program = bare_export(module, torch)
        program.save(path)


def bare_export(module: Any, torch: Any) -> Any:
    return torch.onnx.export(
        module, (torch.zeros(2, 3, 224, 224),), dynamo=True, opset_version=20, input_names=["pixel_values"],
        output_names=["logits"], dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
    )  # fmt: skip


def prepare(work: Path, size: str) -> None:
    """Write every graph to the folder."""
    import onnx_ir as ir
    from onnxruntime.transformers import optimizer

    from vitdeploy.compiler.frontend.tracing import trace
    from vitdeploy.compiler.passes.clean import clean
    from vitdeploy.models.checkpoints import load_checkpoint

    write_checkpoint(work / "checkpoint", size)
    export_raw(work / "checkpoint", path_of(work, "raw"))
    hidden, _, heads = SIZES[size]
    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    optimised = optimizer.optimize_model(
        str(path_of(work, "raw")), model_type="vit", num_heads=heads, hidden_size=hidden
    )
    optimised.save_model_to_file(str(path_of(work, "optimised")))
    checkpoint = load_checkpoint(work / "checkpoint")
    for name, merged in (("cleaned", False), ("merged", True)):
        graph = trace(checkpoint, (224, 224), ("logits",), {})
        clean(graph, merged_qkv=merged)
        ir.save(graph, path_of(work, name))
    graph = ir.load(path_of(work, "cleaned"))
    patches_by_product(graph)
    ir.save(graph, path_of(work, "patch product"))


def path_of(work: Path, name: str) -> Path:
    return work / f"{name.replace(' ', '-')}.onnx"


def patches_by_product(model: Any) -> None:
    """Conv(stride = kernel), Reshape, Transpose -> cut into patches, one MatMul."""
    import onnx_ir as ir

    from vitdeploy.compiler.passes.values import constant, new_initializer, only_consumer

    graph = model.graph
    conv = next(node for node in graph if node.op_type == "Conv")
    last = only_consumer(only_consumer(conv.outputs[0]).outputs[0])  # type: ignore[union-attr]
    weight, bias = constant(conv.inputs[1]), constant(conv.inputs[2])
    assert weight is not None and bias is not None and last is not None and last.op_type == "Transpose"
    hidden, channels, patch, _ = weight.shape
    side = 224 // patch
    cut = new_initializer(graph, "cut", np.array([-1, channels, side, patch, side, patch], dtype=np.int64))
    rows = new_initializer(graph, "rows", np.array([-1, side * side, channels * patch * patch], dtype=np.int64))
    a = ir.node("Reshape", [conv.inputs[0], cut])
    b = ir.node("Transpose", a.outputs, attributes={"perm": [0, 2, 4, 1, 3, 5]})
    c = ir.node("Reshape", [b.outputs[0], rows])
    d = ir.node("MatMul", [c.outputs[0], new_initializer(graph, "patch.weight", weight.reshape(hidden, -1).T)])
    e = ir.node("Add", [d.outputs[0], new_initializer(graph, "patch.bias", bias)])
    graph.insert_before(conv, [a, b, c, d, e])
    ir.convenience.replace_all_uses_with(last.outputs[0], e.outputs[0])
    e.outputs[0].shape, e.outputs[0].type = last.outputs[0].shape, last.outputs[0].type
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)


def calls(work: Path, names: tuple[str, ...], backend: str, threads: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """One call a graph: pixel values -> logits."""
    made: dict[str, Callable[[np.ndarray], Any]] = {}
    for name in names:
        path = path_of(work, name)
        if backend == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            made[name] = lambda pixels, session=session: session.run(None, {"pixel_values": pixels})[0]  # type: ignore[misc]
        else:
            import openvino

            config = {
                "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
            }  # fmt: skip
            core = openvino.Core()
            request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()
            made[name] = lambda pixels, request=request: next(iter(request.infer([pixels]).values()))  # type: ignore[misc]
    return made


def speed(work: Path, threads: int, rounds: int, backend: str, batch: int) -> list[dict[str, Any]]:
    """Milliseconds of every graph in every round, and their ratios to the raw and the optimised graph."""
    names = tuple(name for name in GRAPHS if backend == "onnxruntime" or name != "optimised")  # its own operators
    run = calls(work, names, backend, threads)
    pixels = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    exact = run["raw"](pixels)
    for name in (*names, *names):  # also the warm-up
        assert np.abs(run[name](pixels) - exact).max() < 1e-3 * np.ptp(exact), name
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in random.sample(names, len(names)):
            started = time.perf_counter()
            run[name](pixels)
            times[name].append(1000 * (time.perf_counter() - started))
    found = []
    for name in names:
        row: dict[str, Any] = {
            "backend": backend,
            "batch": batch,
            "graph": name,
            "ms": [round(t, 3) for t in times[name]],
        }
        row |= {"min_ms": min(times[name]), "median_ms": float(np.median(times[name]))}
        for other in ("raw", "optimised"):
            if other in times:
                row[f"to_{other}"] = ratio_interval(times[name], times[other])
        found.append(row)
        print(f"{backend:12} batch {batch}  {name:14} median {row['median_ms']:8.1f} ms  of raw {shown(row['to_raw'])}")
    return found


def shown(ratio: Any) -> str:
    middle, (low, high) = ratio
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def engines(work: Path, rounds: int) -> list[dict[str, Any]]:
    """Build time and size of TensorRT-RTX engines, FP32 and FP16 as the graph says, batch 1 to 8, built in turns."""
    found: list[dict[str, Any]] = []
    for precision in ("fp32", "fp16"):
        rows = [{"graph": name, "precision": precision} for name in ("raw", "cleaned", "merged")]
        refused = [
            row | why for row in rows if (why := half_refused(work, row["graph"]) if precision == "fp16" else {})
        ]
        rows = [row for row in rows if row["graph"] not in {entry["graph"] for entry in refused}]
        seconds: dict[str, list[float]] = {row["graph"]: [] for row in rows}
        for _ in range(rounds):
            for row in random.sample(rows, len(rows)):
                path = path_of(work, row["graph"]) if precision == "fp32" else half_path(work, row["graph"])
                took, size_bytes, layers = build_engine(path)
                seconds[row["graph"]].append(took)
                row |= {"megabytes": size_bytes / 1e6, "layers": layers}
                print(f"TensorRT-RTX {precision} {row['graph']:8} built in {took:5.1f} s, {size_bytes / 1e6:6.1f} MB")
        for row in rows:
            times = seconds[row["graph"]]
            row |= {"build_s": float(np.median(times)), "samples_s": times}
            row |= {
                f"to_{name}": ratio_interval(times, seconds[name]) for name in ("raw", "cleaned") if name in seconds
            }
        found += [*refused, *rows]
    return found


def half_path(work: Path, name: str) -> Path:
    return work / f"{name}.fp16.onnx"


def half_refused(work: Path, name: str) -> dict[str, str]:
    """Write the graph in FP16; if it can't be, why."""
    import onnx_ir as ir

    from vitdeploy.compiler.float16.cast import to_half
    from vitdeploy.core.errors import ModelError

    model = ir.load(path_of(work, name))
    try:
        to_half(model)
    except ModelError as error:
        print(f"TensorRT-RTX fp16 {name:8} not built: {error}")
        return {"refused": str(error)}
    ir.save(model, half_path(work, name))
    return {}


def build_engine(path: Path) -> tuple[float, int, int]:
    """Seconds of the build, bytes of the engine, layers of the network that the parser made."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), parser.get_error(0)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("pixel_values", (1, 3, 224, 224), (1, 3, 224, 224), (8, 3, 224, 224))
    config.add_optimization_profile(profile)
    started = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    return time.perf_counter() - started, engine.nbytes, network.num_layers


BARE, SAVED, LOADED = "bare, in memory", "bare, to a file", "bare, to a file, with loading"


def export_time(work: Path, rounds: int) -> dict[str, Any]:
    """Seconds of the bare exporter on a loaded module, with saving, with loading too, and of `vitdeploy export`."""
    import torch
    from transformers import ViTForImageClassification

    from vitdeploy.compiler.export import export

    samples: dict[str, list[float]] = {BARE: [], SAVED: [], LOADED: [], "vitdeploy export": []}
    for _ in range(rounds):
        with quiet():
            started = time.perf_counter()
            module = ViTForImageClassification.from_pretrained(work / "checkpoint").eval()
            loaded = time.perf_counter()
            program = bare_export(module, torch)
            made = time.perf_counter()
            program.save(work / "bare.onnx")
            saved = time.perf_counter()
        for name, seconds in ((BARE, made - loaded), (SAVED, saved - loaded), (LOADED, saved - started)):
            samples[name].append(seconds)
        del module, program
        shutil.rmtree(work / "bundle", ignore_errors=True)
        os.sync()  # what the bare export left for the disk to write is not vitdeploy's to wait for
        started = time.perf_counter()
        export(work / "checkpoint", work / "bundle")
        samples["vitdeploy export"].append(time.perf_counter() - started)
    found: dict[str, Any] = {"seconds": {name: float(np.median(values)) for name, values in samples.items()}}
    ours = samples["vitdeploy export"]
    found["ratios"] = {name: ratio_interval(ours, samples[name]) for name in (BARE, SAVED, LOADED)}
    print(", ".join(f"{name} {value:.1f} s" for name, value in found["seconds"].items()))
    return {**found, "samples_s": samples}


def verdicts(found: dict[str, Any]) -> list[str]:
    """Each bar, with what was measured. A bar of "not slower" is missed where the whole interval is above 1."""
    lines = []
    for row in found.get("speed", []):
        if row["graph"] != "cleaned":
            continue
        for other in ("raw", "optimised"):
            if f"to_{other}" in row:
                middle, (low, _) = row[f"to_{other}"]
                word = "holds" if middle <= 1 else "holds within the noise" if low <= 1 else "missed"
                lines.append(
                    f"- cleaned is not slower than {other}, {row['backend']}, batch {row['batch']}: **{word}**,"
                    f" {shown(row[f'to_{other}'])}"
                )
    for name, ratio in found.get("export", {}).get("ratios", {}).items():
        word = "holds" if ratio[0] <= 1.5 else "missed"
        lines.append(f"- an export takes at most 1.5 times torch.onnx.export, {name}: **{word}**, {shown(ratio)}")
    return lines


def markdown(found: dict[str, Any]) -> str:
    """The numbers as tables."""
    processor = found["machine"]["cpu"]
    lines = [f"ViT-{found['model'].title()}/16 at 224, random weights, {found['threads']} threads of {processor}.", ""]
    if "speed" in found:
        lines += ["| runtime | batch | graph | median ms | of raw [95 %] | of optimised [95 %] |"]
        lines += ["|---|---:|---|---:|---:|---:|"]
        for row in found["speed"]:
            optimised = shown(row["to_optimised"]) if "to_optimised" in row else "–"
            lines.append(
                f"| {row['backend']} | {row['batch']} | {row['graph']} | {row['median_ms']:.1f} |"
                f" {shown(row['to_raw'])} | {optimised} |"
            )
        lines.append("")
    if "engines" in found:
        lines += [
            "| TensorRT-RTX | graph | build, s | of raw [95 %] | of cleaned [95 %] | MB | layers of the network |"
        ]
        lines += ["|---|---|---:|---:|---:|---:|---:|"]
        for row in found["engines"]:
            built = f"– | – | – | – | none: {row.get('refused')}"
            if "build_s" in row:
                ratios = [shown(row[key]) if key in row else "–" for key in ("to_raw", "to_cleaned")]
                built = f"{row['build_s']:.1f} | {' | '.join(ratios)} | {row['megabytes']:.1f} | {row['layers']}"
            lines.append(f"| {row['precision']} | {row['graph']} | {built} |")
        lines.append("")
    if "export" in found:
        lines += ["| export | seconds |", "|---|---:|"]
        lines += [f"| {name} | {value:.1f} |" for name, value in found["export"]["seconds"].items()]
        lines.append("")
    return "\n".join([*lines, *verdicts(found), ""])


def added(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a file held, with what was measured now in its place."""
    measured = {(row["backend"], row["batch"]) for row in found.get("speed", [])}
    kept = [row for row in before.get("speed", []) if (row["backend"], row["batch"]) not in measured]
    whole = {**before, **found}
    if rows := [*kept, *found.get("speed", [])]:
        whole["speed"] = sorted(rows, key=lambda row: (row["backend"], row["batch"]))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(SIZES), default="base")
    for name in ("prepare", "speed", "engines", "time"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="add the numbers to this file")
    parser.add_argument("--markdown", type=Path, help="write everything in the JSON file, or of this run, as tables")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"model": arguments.model, "threads": arguments.threads}
    found |= {"machine": machine(), "versions": versions()}
    if arguments.prepare:
        prepare(arguments.work, arguments.model)
    if arguments.speed:
        found["speed"] = []
        for backend in arguments.backend or BACKENDS:
            for batch in arguments.batch or (1, 8):
                found["speed"] += speed(arguments.work, arguments.threads, arguments.rounds, backend, batch)
    if arguments.engines:
        found["engines"] = engines(arguments.work, arguments.rounds)
    if arguments.time:
        found["export"] = export_time(arguments.work, arguments.rounds)
    if arguments.json:
        before = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
        found = added(before, found)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(verdicts(found)))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(found))


if __name__ == "__main__":
    main()
