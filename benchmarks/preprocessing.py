"""Preprocessing in the graph against Pillow, both in one process, taking turns: prints milliseconds and ratios.

    python benchmarks/preprocessing.py [--resample bicubic] [--target cpu] [--threads 1] [--rounds 60]
        [--processes 5] [--json FILE]

Pillow's time is that of `Image.resize` alone; "to float32" adds what the graph also does: rescale, normalise, channels
first, in NumPy. The graph's time is a whole call of the runtime with the pixels as input and the pixel values as
output. Minimum and median of the rounds; the ratio is of the minima, which other work on the machine disturbs least.
The ratio of one process still differs from the next one's by several percent, by where their memory lies. With
--processes the whole is done in so many, one after the other, and the medians and ranges of their figures are shown.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.compiler.preprocessing import build_preprocessing
from vitdeploy.core.machine import machine, versions
from vitdeploy.core.specs import PreprocessSpec, ResizeSpec

SIZES = [(32, 32), (480, 640), (1080, 1920)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PILLOW = {"bilinear": 2, "bicubic": 3, "hamming": 5, "lanczos": 1}


def photograph(height: int, width: int) -> np.ndarray:
    """A photograph that scikit-learn brings, at that size: uint8 (height, width, 3)."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((width, height), 3))


def graph_calls(
    spec: PreprocessSpec, input_size: tuple[int, int] | None, target: str, threads: int
) -> dict[str, Callable[..., Any]]:
    """One call per runtime: uint8 (1, height, width, 3) -> pixel values."""
    import onnx_ir as ir
    import onnxruntime
    import openvino

    data = ir.to_proto(build_preprocessing(spec, input_size=input_size, target=target)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", config).create_infer_request()
    return {
        "onnxruntime": lambda pixels: session.run(None, {"image": pixels}),
        "openvino": lambda pixels: request.infer({0: pixels}, share_inputs=True),
    }


def pillow_calls(resample: str, made: int) -> dict[str, Callable[..., Any]]:
    """The same by Pillow and NumPy, from an image that Pillow already holds."""
    factor = (1 / 255 / np.array(STD)).astype(np.float32)
    offset = (-np.array(MEAN) / np.array(STD)).astype(np.float32)

    def to_float32(image: Any) -> np.ndarray:
        pixels = np.asarray(image.resize((made, made), PILLOW[resample]))
        return np.ascontiguousarray((pixels * factor + offset).transpose(2, 0, 1))

    return {"pillow": lambda image: image.resize((made, made), PILLOW[resample]), "pillow to float32": to_float32}


def measure(calls: dict[str, tuple[Callable[..., Any], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round of each call, in turns, without the first five rounds, in which memory is made."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 5):
        for name, (call, argument) in calls.items():
            start = time.perf_counter()
            call(argument)
            if turn >= 5:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return taken


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each image and call, printed and returned."""
    from PIL import Image

    resize = ResizeSpec(arguments.resample, height=arguments.size, width=arguments.size)
    spec = PreprocessSpec(resize, None, 1 / 255, MEAN, STD)
    any_size = {
        f"{name}, any size": call for name, call in graph_calls(spec, None, arguments.target, arguments.threads).items()
    }
    pillow = pillow_calls(arguments.resample, arguments.size)
    results = []
    for height, width in SIZES:
        pixels = photograph(height, width)
        image = Image.fromarray(pixels)
        known = graph_calls(spec, (height, width), arguments.target, arguments.threads)
        calls: dict[str, tuple[Callable[..., Any], Any]] = {name: (call, image) for name, call in pillow.items()}
        for name, call in {**any_size, **{f"{name}, known size": call for name, call in known.items()}}.items():
            calls[name] = (call, pixels[np.newaxis])
        taken = measure(calls, arguments.rounds)
        print(f"\n{height}x{width}{'':22}minimum ms   median ms   / pillow   / pillow to float32")
        for name, times in taken.items():
            ratios = (min(times) / min(taken["pillow"]), min(times) / min(taken["pillow to float32"]))
            print(f"  {name:28}{min(times):10.2f}{np.median(times):12.2f}{ratios[0]:11.2f}{ratios[1]:13.2f}")
            results.append(
                {
                    "image": f"{height}x{width}",
                    "call": name,
                    "minimum_ms": round(min(times), 3),
                    "median_ms": round(float(np.median(times)), 3),
                    "of_pillow": round(ratios[0], 3),
                    "of_pillow_to_float32": round(ratios[1], 3),
                }
            )
    return results


def repeated(arguments: argparse.Namespace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The medians of the rows of several processes, with every ratio to Pillow; printed and returned."""
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.processes):
            file = Path(folder, "run.json")
            command = [sys.executable, __file__, *options, "--json", str(file)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            runs.append(json.loads(file.read_text())["results"])
            print(f"process {number + 1} of {arguments.processes} done", file=sys.stderr)
    rows = []
    print(f"\n{'':32}minimum ms   / pillow             / pillow to float32   (medians of the processes)")
    for same in zip(*runs, strict=True):
        ratios = sorted(row["of_pillow"] for row in same)
        figures = ("minimum_ms", "median_ms", "of_pillow", "of_pillow_to_float32")
        middle = {figure: round(statistics.median(row[figure] for row in same), 3) for figure in figures}
        rows.append({"image": same[0]["image"], "call": same[0]["call"], **middle, "each_of_pillow": ratios})
        name = f"{same[0]['image']:10}{same[0]['call']}"
        print(
            f"  {name:34}{middle['minimum_ms']:6.2f}{middle['of_pillow']:11.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
            f"{middle['of_pillow_to_float32']:13.2f}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resample", choices=sorted(PILLOW), default="bicubic")
    parser.add_argument("--target", choices=["any", "cpu"], default="cpu", help="the graph's layout (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtimes; Pillow has one (default: 1)")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--size", type=int, default=224, help="edge of the pixel values (default: 224)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the minima and the ratios there")
    arguments = parser.parse_args()
    settings = {key: getattr(arguments, key) for key in ("resample", "target", "threads", "rounds", "size")}
    made = f"{arguments.resample} to {arguments.size}x{arguments.size}"
    print(f"{made}, the graph for {arguments.target}, {arguments.threads} thread(s)")
    results = repeated(arguments, settings) if arguments.processes > 1 else measured(arguments)
    if arguments.json is not None:
        whole = {**settings, "processes": arguments.processes, "machine": machine(), "versions": versions()}
        arguments.json.write_text(json.dumps({**whole, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
