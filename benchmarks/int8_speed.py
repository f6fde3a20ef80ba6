"""INT8 on this CPU against PyTorch eager, NNCF's INT8 in OpenVINO and ONNX Runtime's dynamic INT8, interleaved.

    python benchmarks/int8_speed.py BUNDLE CHECKPOINT [--nncf PYTHON] [--threads 2] [--rounds 40] [--json OUT.json]

From pixel values to logits for all; one image a call, one process, every round in a new order with a rest of 30 ms in
front of each turn. Ratios are medians over rounds with a bootstrap 95 % interval. Weights may be random: only times are
looked at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import NNCF, Form, elsewhere, open_form

from vitdeploy.bench.statistics import speedup
from vitdeploy.compiler.graph.compose import PIXEL_VALUES
from vitdeploy.compiler.graph.cut import cut

REST_S = 0.03


def eager(checkpoint: str, threads: int) -> Callable[[np.ndarray], Any]:
    import torch
    from transformers import AutoModelForImageClassification

    torch.set_num_threads(threads)
    module = AutoModelForImageClassification.from_pretrained(checkpoint).eval()

    def call(pixels: np.ndarray) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).logits

    return call


def forms(bundle: Path, work: Path, size: int, nncf: str | None) -> list[Form]:
    import onnx_ir as ir
    from onnxruntime.quantization import quantize_dynamic

    core, ours, dynamic = work / "core.onnx", work / "ours.onnx", work / "dynamic.onnx"
    ir.save(cut(ir.load(bundle / "model.onnx"), PIXEL_VALUES, "logits"), core)
    ir.save(cut(ir.load(bundle / "model.int8-cpu.onnx"), PIXEL_VALUES, "logits"), ours)
    quantize_dynamic(str(core), str(dynamic))
    made = [
        Form("FP32, ONNX Runtime", core, "onnxruntime", ""),
        Form("FP32, OpenVINO", core, "openvino", ""),
        Form("ours, ONNX Runtime", ours, "onnxruntime", ""),
        Form("ours, OpenVINO", ours, "openvino", ""),
        Form("dynamic INT8, ONNX Runtime", dynamic, "onnxruntime", ""),
    ]
    if nncf:
        data = work / "pixels.npy"
        np.save(data, np.random.default_rng(1).standard_normal((8, 3, size, size)).astype(np.float32))
        elsewhere(nncf, NNCF, core, data, work / "nncf.xml")
        made.append(Form("NNCF, OpenVINO", work / "nncf.xml", "openvino", ""))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--nncf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[np.ndarray], Any]] = {
            form.name: open_form(form, arguments.threads)
            for form in forms(arguments.bundle, Path(folder), arguments.size, arguments.nncf)
        }
        calls["PyTorch eager"] = eager(arguments.checkpoint, arguments.threads)
        shape = (1, 3, arguments.size, arguments.size)
        pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        times: dict[str, list[float]] = {name: [] for name in calls}
        generator = np.random.default_rng(0)
        for turn in range(arguments.rounds + 2):
            for name in generator.permutation(list(calls)):
                time.sleep(REST_S)
                calls[name](pixels)
                start = time.perf_counter()
                calls[name](pixels)
                if turn >= 2:
                    times[name].append(1e3 * (time.perf_counter() - start))
    report = {"threads": arguments.threads, "rounds": arguments.rounds, "rows": []}
    for name, values in times.items():
        row: dict[str, Any] = {"form": name, "median_ms": float(np.median(values)), "samples_ms": values}
        line = f"{name:28}{row['median_ms']:9.1f} ms"
        for other in ("PyTorch eager", "NNCF, OpenVINO", "dynamic INT8, ONNX Runtime"):
            if other in times:
                ratio, (low, high) = speedup(times[other], values)
                row[f"times as fast as {other}"] = [ratio, low, high]
                line += f"   {ratio:5.2f}x [{low:.2f}, {high:.2f}] of {other}"
        report["rows"].append(row)
        print(line)
    if arguments.json:
        arguments.json.write_text(json.dumps(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
