"""INT8 on this CPU against PyTorch eager, NNCF's INT8 in OpenVINO and ONNX Runtime's own INT8, interleaved.

    python benchmarks/int8_speed.py BUNDLE CHECKPOINT --work FOLDER --prepare [--nncf PYTHON]
    python benchmarks/int8_speed.py BUNDLE CHECKPOINT --work FOLDER [--rounds 40] [--json OUT.json] [--markdown OUT.md]

The first makes the forms in FOLDER, the second times what is there. From pixel values to logits for all, ours through
our runtime; "... from the image" has its preprocessing in front too, from raw pixels of that size. One image a call,
one process, every round in a new order with a rest of 30 ms in front of each turn, one call to warm up and one that
counts. Ratios are medians over rounds with a 95 % interval by order statistics. Then ONNX Runtime's profiler says where
its INT8 forms spend their time. Weights may be random: only times are looked at.

With --clock cpu the processor's time of the process is taken, with --threads 1: on a busy machine it still tells forms
apart, where the clock on the wall does not.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from peers import CLOCKS, NNCF, Call, Form, elsewhere, interleaved, open_form, pixel_reader

from vitdeploy.backends.native.runner import NativeRunner
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.openvino.runner import OpenVinoRunner
from vitdeploy.compiler.passes.cut import cut
from vitdeploy.core.specs import PIXEL_VALUES
from vitdeploy.evaluation.statistics import speedup

OTHERS = ("PyTorch eager", "NNCF, OpenVINO", "ONNX Runtime's dynamic INT8", "ONNX Runtime's static INT8")
FROM_IMAGE = "ours, own kernels, from the image"
RUNNERS: dict[str, Any] = {"onnxruntime": OnnxRuntimeRunner, "openvino": OpenVinoRunner, "native": NativeRunner}
FILES = {
    "FP32, ONNX Runtime": ("core.onnx", "onnxruntime"),
    "FP32, OpenVINO": ("core.onnx", "openvino"),
    "ours, ONNX Runtime": ("ours.onnx", "onnxruntime"),
    "ours, OpenVINO": ("ours.onnx", "openvino"),
    "ours, own kernels": ("ours.onnx", "native"),
    FROM_IMAGE: ("image.onnx", "native"),
    OTHERS[1]: ("nncf.xml", "openvino"),
    OTHERS[2]: ("dynamic.onnx", "onnxruntime"),
    OTHERS[3]: ("static.onnx", "onnxruntime"),
}


def prepare(bundle: Path, work: Path, size: int, nncf: str | None) -> None:
    """Write the forms that are not there."""
    import onnx_ir as ir
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    work.mkdir(parents=True, exist_ok=True)
    core = work / "core.onnx"
    pixels = np.random.default_rng(1).standard_normal((8, 3, size, size)).astype(np.float32)
    ir.save(cut(ir.load(bundle / "model.onnx"), PIXEL_VALUES, "logits"), core)
    ir.save(cut(ir.load(bundle / "model.int8-cpu.onnx"), PIXEL_VALUES, "logits"), work / "ours.onnx")
    shutil.copy(bundle / "model.int8-cpu.onnx", work / "image.onnx")
    if not (work / "dynamic.onnx").exists():
        quantize_dynamic(str(core), str(work / "dynamic.onnx"))
    if not (work / "static.onnx").exists():  # at its best: products with constant weights, one scale a column
        options = {"MatMulConstBOnly": True}
        quantize_static(
            str(core),
            str(work / "static.onnx"),
            pixel_reader(pixels),
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            activation_type=QuantType.QUInt8,
            extra_options=options,
        )
    if nncf and not (work / "nncf.xml").exists():
        np.save(work / "pixels.npy", pixels)
        print("NNCF", elsewhere(nncf, NNCF, core, work / "pixels.npy", work / "nncf.xml"))


def eager(module: Any, threads: int) -> Call:
    """A classifier of transformers, in PyTorch as it is."""
    import torch

    torch.set_num_threads(threads)
    module.eval()

    def call(pixels: np.ndarray) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).logits

    return call


def opened(name: str, work: Path, threads: int, size: int) -> Call:
    """Ours through our runtime, the others as their documentation has it."""
    file, backend = FILES[name]
    if not name.startswith("ours"):
        return open_form(Form(name, work / file, backend, ""), threads)
    runner = RUNNERS[backend](work / file, threads)
    runner.__enter__()  # for as long as the process lasts
    if name == FROM_IMAGE:
        image = np.random.default_rng(2).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        return lambda _: runner.infer({"image": image})["logits"]
    return lambda pixels: runner.infer({PIXEL_VALUES: pixels})["logits"]


def by_operator(path: Path, pixels: np.ndarray, threads: int, calls: int = 12) -> dict[str, float]:
    """Milliseconds a call that ONNX Runtime spends in each kind of operator, the largest first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(calls):
        session.run(None, {PIXEL_VALUES: pixels})
    log = Path(session.end_profiling())
    spent: Counter[str] = Counter()
    for event in json.loads(log.read_text(encoding="utf-8")):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e3 / calls
    log.unlink()
    return dict(spent.most_common())


def rows(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    found = []
    for name, values in times.items():
        row: dict[str, Any] = {"form": name, "median_ms": float(np.median(values)), "samples_ms": values}
        for other in OTHERS:
            if other in times and other != name:
                ratio, (low, high) = speedup(times[other], values)
                row[f"times as fast as {other}"] = [ratio, low, high]
        found.append(row)
    return found


def markdown(found: list[dict[str, Any]], operators: dict[str, dict[str, float]]) -> str:
    heads = [other for other in OTHERS if any(row["form"] == other for row in found)]
    titles = ["form", "median, ms", *(f"times {head}" for head in heads)]
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (1 + len(heads))]
    for row in sorted(found, key=lambda row: row["median_ms"]):
        cells = []
        for head in heads:
            ratio = row.get(f"times as fast as {head}")
            cells.append("–" if ratio is None else f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]")
        lines.append(f"| {row['form']} | {row['median_ms']:.1f} | {' | '.join(cells)} |")
    most: Counter[str] = Counter()
    for spent in operators.values():
        most |= Counter(spent)
    lines += ["", f"| ms a call in ONNX Runtime | {' | '.join(operators)} |", "| --- |" + " ---: |" * len(operators)]
    for kind in [kind for kind, value in most.most_common() if value >= 0.3]:
        lines.append(f"| {kind} | {' | '.join(f'{spent.get(kind, 0):.1f}' for spent in operators.values())} |")
    lines.append(f"| all | {' | '.join(f'{sum(spent.values()):.1f}' for spent in operators.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the forms")
    parser.add_argument("--prepare", action="store_true", help="make the forms, and time nothing")
    parser.add_argument("--nncf", help="a Python that has nncf and openvino")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.bundle, arguments.work, arguments.size, arguments.nncf)
        return
    from transformers import AutoModelForImageClassification

    there = [name for name, (file, _) in FILES.items() if (arguments.work / file).exists()]
    calls = {name: opened(name, arguments.work, arguments.threads, arguments.size) for name in there}
    calls[OTHERS[0]] = eager(AutoModelForImageClassification.from_pretrained(arguments.checkpoint), arguments.threads)
    shape = (1, 3, arguments.size, arguments.size)
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = rows(interleaved(calls, pixels, arguments.rounds, CLOCKS[arguments.clock]))
    del calls
    operators = {
        name: by_operator(arguments.work / FILES[name][0], pixels, arguments.threads)
        for name in there
        if FILES[name][1] == "onnxruntime" and not name.startswith("FP32")
    }
    text = markdown(found, operators)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json:
        report = {name: getattr(arguments, name) for name in ("threads", "clock", "rounds")}
        report |= {"rows": found, "operators_ms": operators}
        arguments.json.write_text(json.dumps(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
