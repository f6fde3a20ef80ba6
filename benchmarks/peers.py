"""INT8 by other tools and by ours: same model, same calibration images, same test images, one table.

    python benchmarks/peers.py MODEL DATASET --test 2000 --nncf PYTHON --modelopt PYTHON --markdown OUT.md

Each tool gets the exported graph behind the preprocessing, so that none quantises the resize, and its own documented
defaults: onnxruntime.quantization (dynamic; static after its quant_pre_process), NNCF's post-training quantisation with
the transformer preset, nvidia-modelopt's INT8. NNCF and modelopt pin other versions of things, so each may run in an
environment of its own (--nncf, --modelopt: a Python that has it); one that is not named is left out.

Drop and agreement are against FP32 on the same images, with 95 % intervals for paired proportions (Bonett-Price).
Latency is one image at a time, all forms interleaved in one process; the fastest half of the rounds, its median.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.bench.statistics import paired_difference
from vitdeploy.compiler.calibration import calibrate
from vitdeploy.compiler.graph.compose import PIXEL_VALUES
from vitdeploy.compiler.graph.cut import cut
from vitdeploy.compiler.graph.half import to_half
from vitdeploy.compiler.quantize import quantize
from vitdeploy.compiler.recipe import Recipe
from vitdeploy.datasets import ImageDataset, load_dataset

NNCF = """
import sys, numpy as np, openvino, nncf
core, pixels, out = openvino.Core(), np.load(sys.argv[2]), sys.argv[3]
model = core.read_model(sys.argv[1])
data = nncf.Dataset([pixels[i : i + 1] for i in range(len(pixels))])
model = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pixels))
openvino.save_model(model, out, compress_to_fp16=False)
print("version", nncf.__version__)
"""
MODELOPT = """
import sys, numpy as np, modelopt
from modelopt.onnx.quantization import quantize
quantize(sys.argv[1], quantize_mode="int8", calibration_data={"pixel_values": np.load(sys.argv[2])},
         output_path=sys.argv[3], calibration_eps=["cpu"])
print("version", modelopt.__version__)
"""


@dataclass
class Form:
    """One file to judge."""

    name: str
    path: Path
    backend: str
    placement: str
    note: str = ""

    @property
    def size_mb(self) -> float:
        weights = self.path.with_suffix(".bin")
        return (self.path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)) / 1e6


def open_form(form: Form, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Pixel values (batch, 3, height, width) -> logits."""
    if form.backend == "openvino":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(str(form.path), "CPU", settings).create_infer_request()
        return lambda pixels: next(iter(request.infer([pixels]).values())).copy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(form.path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {PIXEL_VALUES: pixels})[0]


def preprocess(front: Path, images: ImageDataset, batch: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Pixel values of the images by the graph's own preprocessing."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(front), providers=["CPUExecutionProvider"])
    for start in range(0, len(images), batch):
        part = range(start, min(start + batch, len(images)))
        pixels = np.stack([images.image(index) for index in part])
        yield slice(part.start, part.stop), session.run(None, {"image": pixels})[0]


def with_outliers(source: Path, target: Path, channels: int) -> Path:
    """The same FP32 function with outliers: LayerNorm channels times 20 to 100, the next weights divided by as much."""
    import onnx_ir as ir

    from vitdeploy.compiler.graph.values import constant, new_initializer

    model, generator = ir.load(source), np.random.default_rng(0)
    for node in list(model.graph):
        readers = [use.node for use in node.outputs[0].uses()]
        if node.op_type != "LayerNormalization" or any(reader.op_type != "MatMul" for reader in readers):
            continue
        factors = np.ones(constant(node.inputs[1]).size, dtype=np.float32)
        chosen = generator.choice(len(factors), channels, replace=False)
        factors[chosen] = np.exp(generator.uniform(np.log(20), np.log(100), channels))
        places = [(node, 1, factors), (node, 2, factors), *((r, 1, 1 / factors[:, np.newaxis]) for r in readers)]
        for owner, index, by in places:
            scaled = (constant(owner.inputs[index]) * by).astype(np.float32)
            owner.replace_input_with(index, new_initializer(model.graph, f"{owner.name}.{index}.outliers", scaled))
    ir.save(model, target)
    return target


def our_forms(model: Path, images: ImageDataset, work: Path) -> list[Form]:
    """Ours, and with the methods that others use."""
    import onnx_ir as ir

    plain = {"smoothing": False, "bias_correction": False}
    recipes = {
        "vitdeploy default": Recipe(count=len(images)),
        "vitdeploy with attention": Recipe(count=len(images), attention=True),
        "vitdeploy min-max": Recipe(count=len(images), method="minmax", **plain),
        "vitdeploy entropy": Recipe(count=len(images), method="entropy", **plain),
        "vitdeploy percentile 99.99": Recipe(count=len(images), method="percentile", **plain),
    }
    forms = []
    for name, recipe in recipes.items():
        pictures = (images.image(index) for index in range(len(images)))
        solved = calibrate(model, "", pictures, len(images), recipe, {})
        placement = "Linears, attention" if recipe.attention else "Linears"
        path = work / f"{name.replace(' ', '-')}.onnx"
        made = ir.load(model)
        quantize(made, solved, target="cpu")
        ir.save(cut(made, PIXEL_VALUES, "logits"), path)
        forms.append(Form(name, path, "onnxruntime", placement))
        if not recipe.smoothing:
            continue
        forms.append(Form(f"{name} (OpenVINO)", path, "openvino", placement))
        made = ir.load(model)
        quantize(made, solved, target="tensorrt")
        to_half(made)
        exact = path.with_name(f"{path.stem}-tensorrt.onnx")
        ir.save(cut(made, PIXEL_VALUES, "logits"), exact)
        forms.append(Form(f"{name}, TensorRT's form", exact, "onnxruntime", placement, "its arithmetic, not its speed"))
    return forms


def onnxruntime_forms(core: Path, pixels: np.ndarray, work: Path) -> list[Form]:
    """onnxruntime.quantization, dynamic and static, as its documentation has them."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._left, None)
            return None if image is None else {PIXEL_VALUES: image[np.newaxis]}

    prepared, dynamic, static = (work / f"ort-{name}.onnx" for name in ("prepared", "dynamic", "static"))
    quant_pre_process(str(core), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(dynamic))
    quantize_static(str(prepared), str(static), Reader())
    return [
        Form("ONNX Runtime dynamic", dynamic, "onnxruntime", "Linears, weights ahead, activations on the fly"),
        Form("ONNX Runtime static default", static, "onnxruntime", "everything"),
    ]


def elsewhere(python: str, program: str, core: Path, data: Path, out: Path) -> str:
    """Run a tool in its own environment; its version."""
    done = subprocess.run(
        [python, "-c", program, str(core), str(data), str(out)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1][:300])
    return done.stdout.strip().splitlines()[-1].removeprefix("version ")


def peers(arguments: argparse.Namespace, core: Path, pixels: np.ndarray, work: Path) -> tuple[list[Form], list[str]]:
    """What the other tools make, and what failed."""
    data = work / "pixels.npy"
    np.save(data, pixels)
    forms, failures = [], []
    try:
        forms += onnxruntime_forms(core, pixels, work)
    except Exception as error:
        failures.append(f"onnxruntime.quantization: {error}")
    for name, python, program, file, backend in (
        ("NNCF transformer preset", arguments.nncf, NNCF, "nncf.xml", "openvino"),
        ("nvidia-modelopt default", arguments.modelopt, MODELOPT, "modelopt.onnx", "onnxruntime"),
    ):
        if python is None:
            continue
        try:
            version = elsewhere(python, program, core, data, work / file)
            forms.append(Form(name, work / file, backend, "everything", f"version {version}"))
        except RuntimeError as error:
            failures.append(f"{name}: {error}")
    return forms, failures


def judge(forms: list[Form], front: Path, images: ImageDataset, batch: int) -> dict[str, np.ndarray]:
    """Logits of every form on the same images."""
    calls = {form.name: open_form(form, threads=1) for form in forms}
    logits: dict[str, list[np.ndarray]] = {name: [] for name in calls}
    for part, pixels in preprocess(front, images, batch):
        for name, call in calls.items():
            logits[name].append(np.asarray(call(pixels), dtype=np.float32))
        print(f"\r{part.stop}/{len(images)} images", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {name: np.concatenate(parts) for name, parts in logits.items()}


def latencies(forms: list[Form], pixels: np.ndarray, rounds: int, threads: int) -> dict[str, float]:
    """Milliseconds of one image, interleaved."""
    calls = {form.name: open_form(form, threads) for form in forms}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call(pixels)
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(sorted(values)[: max(1, len(values) // 2)])) for name, values in times.items()}


def rows(
    forms: list[Form], logits: dict[str, np.ndarray], truth: np.ndarray, times: dict[str, float]
) -> list[dict[str, Any]]:
    """One a form, the first is FP32."""
    reference = logits[forms[0].name].argmax(axis=1)
    found = []
    for form in forms:
        answers = logits[form.name].argmax(axis=1)
        lost = int(((reference == truth) & (answers != truth)).sum())
        won = int(((reference != truth) & (answers == truth)).sum())
        change, interval = paired_difference(lost, won, len(truth))
        found.append(
            {
                "form": form.name,
                "backend": form.backend,
                "placement": form.placement,
                "note": form.note,
                "top1": 100 * float((answers == truth).mean()),
                "drop": -100 * change,
                "drop_ci95": [-100 * interval[1], -100 * interval[0]],
                "agreement": 100 * float((answers == reference).mean()),
                "latency_ms": times.get(form.name),
                "size_mb": form.size_mb,
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| form | in INT8 | top-1 | drop, points | agreement | ms | MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        low, high = row["drop_ci95"]
        spent = "–" if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
        drop = f"{row['drop']:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(
            f"| {row['form']} | {row['placement']} | {row['top1']:.2f} % | {drop} |"
            f" {row['agreement']:.2f} % | {spent} | {row['size_mb']:.1f} |"
        )
    return "\n".join(lines)


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx of a bundle")
    parser.add_argument("dataset")
    parser.add_argument("--calibration", type=int, default=256, help="images of the training split")
    parser.add_argument("--test", type=int, default=2000, help="images of the test split")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=0, help="of the latency; 0: not measured")
    parser.add_argument("--threads", type=int, default=2, help="of the latency")
    parser.add_argument("--nncf", help="a Python that has nncf and openvino")
    parser.add_argument("--modelopt", help="a Python that has nvidia-modelopt[onnx]")
    parser.add_argument("--outliers", type=int, default=0, help="channels per LayerNorm to make outliers of")
    parser.add_argument("--ours-only", action="store_true", help="leave the other tools out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(argv)


def main() -> None:
    import onnx_ir as ir

    arguments = arguments_of()
    train = load_dataset(arguments.dataset, "train", limit=arguments.calibration)
    test = load_dataset(arguments.dataset, "test", limit=arguments.test, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        front, core = work / "front.onnx", work / "core.onnx"
        model = arguments.model
        if arguments.outliers:
            model = with_outliers(model, work / "outliers.onnx", arguments.outliers)
        ir.save(cut(ir.load(model), None, PIXEL_VALUES), front)
        ir.save(cut(ir.load(model), PIXEL_VALUES, "logits"), core)
        pixels = np.concatenate([part for _, part in preprocess(front, train, arguments.batch)])
        forms = [Form("FP32", core, "onnxruntime", "nothing"), *our_forms(model, train, work)]
        others, failures = ([], []) if arguments.ours_only else peers(arguments, core, pixels, work)
        forms += others
        times = latencies(forms, pixels[:1], arguments.rounds, arguments.threads) if arguments.rounds else {}
        found = rows(forms, judge(forms, front, test, arguments.batch), test.label_ids, times)
    report = {
        "outlier_channels": arguments.outliers,
        "calibration": train.describe(),
        "test": test.describe(),
        "rows": found,
        "failures": failures,
    }
    text = table(found) + "".join(f"\n- failed: {failure}" for failure in failures)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
