"""INT8 by other tools and by ours: same model, same calibration images, same test images, one table.

    python benchmarks/peers.py MODEL DATASET --work FOLDER --nncf PYTHON --modelopt PYTHON --only make
    python benchmarks/peers.py MODEL DATASET --work FOLDER --only judge --test 8000
    python benchmarks/peers.py MODEL DATASET --work FOLDER --only time --rounds 40
    python benchmarks/peers.py MODEL DATASET --work FOLDER --only report --markdown OUT.md --json OUT.json

The steps keep what they make in FOLDER, and go on where they were stopped; without --only all of them run.

Each tool gets the exported graph behind the preprocessing, so that none quantises the resize, and its own documented
defaults: onnxruntime.quantization (dynamic; static after its quant_pre_process), NNCF's post-training quantisation with
the transformer preset, nvidia-modelopt's INT8. NNCF and modelopt pin other versions of things, so each may run in an
environment of its own (--nncf, --modelopt: a Python that has it); one that is not named is left out. Forms for TensorRT
are run in OpenVINO, which has a fast product for signed bytes, and for their answers in ONNX Runtime, which has none.

Drop and agreement are against FP32 on the same images, with 95 % intervals for paired proportions (Bonett-Price).
Latency is one image at a time, all forms interleaved in one process: the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.compiler.float16.cast import to_half
from vitdeploy.compiler.passes.cut import cut
from vitdeploy.compiler.passes.integer_products import fuse_integer_products
from vitdeploy.compiler.passes.prune_token_rows import prune_token_rows
from vitdeploy.compiler.quantization.calibration import calibrate
from vitdeploy.compiler.quantization.insert_qdq import quantize
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.compiler.quantization.schemes import INT8_SIGNED, INT8_UNSIGNED
from vitdeploy.core.specs import PIXEL_VALUES
from vitdeploy.data import ImageDataset, load_dataset
from vitdeploy.evaluation.statistics import paired_difference

REST_S = 0.03  # in front of each form's turn
WARM_ROUNDS = 3
Call = Callable[[np.ndarray], Any]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
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
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())

    @property
    def size_mb(self) -> float:
        weights = self.path.with_suffix(".bin")
        return (self.path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)) / 1e6


def open_form(form: Form, threads: int, name: str = PIXEL_VALUES) -> Call:
    """The input of that name -> the first output: pixel values (batch, 3, height, width) -> logits."""
    if form.backend == "openvino":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(str(form.path), "CPU", settings).create_infer_request()
        return lambda pixels: next(iter(request.infer([pixels]).values())).copy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(form.path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {name: pixels})[0]


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

    from vitdeploy.compiler.passes.values import constant, replace_constant

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
            replace_constant(model.graph, owner, index, scaled)
    ir.save(model, target)
    return target


_PLAIN: dict[str, Any] = {"smoothing": False, "bias_correction": False}
OURS: dict[str, dict[str, Any]] = {
    "vitdeploy default": {},
    "vitdeploy with attention": {"attention": True},
    "mse ranges alone": {"method": "mse", **_PLAIN},
    "min-max ranges alone": {"method": "minmax", **_PLAIN},
    "entropy ranges alone": {"method": "entropy", **_PLAIN},
    "percentile 99.99 ranges alone": {"method": "percentile", **_PLAIN},
}


def our_forms(model: Path, images: ImageDataset, work: Path, names: list[str]) -> list[Form]:
    """Ours, and with each method of choosing ranges and nothing else."""
    import onnx_ir as ir

    forms = []
    for name, settings in {name: OURS[name] for name in names}.items():
        recipe = Recipe(count=len(images), **settings)
        placement = "Linears, attention" if recipe.attention else "Linears"
        form = Form(name, work / "cpu.onnx", "onnxruntime", placement)
        form.path = work / f"{form.slug}.onnx"
        forms.append(form)
        exact = form.path.with_name(f"{form.slug}-tensorrt.onnx")
        if recipe.smoothing:
            forms.append(Form(f"{name} (OpenVINO)", form.path, "openvino", placement))
            forms.append(Form(f"{name}, TensorRT's form", exact, "openvino", placement))
            forms.append(Form(f"{name}, TensorRT's form (ONNX Runtime)", exact, "onnxruntime", placement))
        if form.path.exists():
            continue
        pictures = (images.image(index) for index in range(len(images)))
        calibration = calibrate(model, "", pictures, len(images), recipe, {})
        for target, scheme, path in (("tensorrt", INT8_SIGNED, exact), ("cpu", INT8_UNSIGNED, form.path)):
            if target == "cpu" or recipe.smoothing:
                made = ir.load(model)
                quantize(made, calibration, scheme=scheme)
                if target == "tensorrt":
                    to_half(made)
                else:
                    fuse_integer_products(made)
                    prune_token_rows(made)
                ir.save(cut(made, PIXEL_VALUES, "logits"), path)
    return forms


def pixel_reader(pixels: np.ndarray) -> Any:
    """Pixel values, image by image, as onnxruntime.quantization reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._left, None)
            return None if image is None else {PIXEL_VALUES: image[np.newaxis]}

    return Reader()


def onnxruntime_forms(core: Path, pixels: np.ndarray, work: Path) -> list[Form]:
    """onnxruntime.quantization, dynamic and static, as its documentation has them."""
    from onnxruntime.quantization import quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, dynamic, static = (work / f"ort-{name}.onnx" for name in ("prepared", "dynamic", "static"))
    if not static.exists():
        quant_pre_process(str(core), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(str(prepared), str(dynamic))
        quantize_static(str(prepared), str(static), pixel_reader(pixels))
    return [
        Form("ONNX Runtime dynamic", dynamic, "onnxruntime", "Linears, weights ahead, activations on the fly"),
        Form("ONNX Runtime static default", static, "onnxruntime", "everything"),
    ]


def elsewhere(python: str, program: str, core: Path, data: Path, out: Path) -> str:
    """Run a tool in its own environment, unless what it makes is there; its version."""
    note = out.with_suffix(".version")
    if note.exists():
        return note.read_text(encoding="utf-8")
    mine = shutil.copy(core, out.with_suffix(".source.onnx"))  # a tool may write to what it reads
    done = subprocess.run(
        [python, "-c", program, str(mine), str(data), str(out)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1][:300])
    version = done.stdout.strip().splitlines()[-1].removeprefix("version ")
    note.write_text(version, encoding="utf-8")
    return version


def peers(arguments: argparse.Namespace, core: Path, pixels: np.ndarray, work: Path) -> tuple[list[Form], list[str]]:
    """What the other tools make, and what failed."""
    data = work / "pixels.npy"
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


def make(arguments: argparse.Namespace, work: Path) -> None:
    """Write all forms, and forms.json that lists them."""
    import onnx_ir as ir

    train = load_dataset(arguments.dataset, "train", limit=arguments.calibration)
    front, core = work / "front.onnx", work / "core.onnx"
    model = arguments.model
    if arguments.outliers:
        model = with_outliers(model, work / "outliers.onnx", arguments.outliers)
    ir.save(cut(ir.load(model), None, PIXEL_VALUES), front)
    ir.save(cut(ir.load(model), PIXEL_VALUES, "logits"), core)
    pixels = np.concatenate([part for _, part in preprocess(front, train, arguments.batch)])
    np.save(work / "pixels.npy", pixels)
    names = [name for name in OURS if not arguments.forms or name in arguments.forms]
    forms = [Form("FP32", core, "onnxruntime", "nothing"), *our_forms(model, train, work, names)]
    others, failures = ([], []) if arguments.ours_only else peers(arguments, core, pixels, work)
    listed = {
        "forms": [asdict(form) | {"path": form.path.name} for form in [*forms, *others]],
        "calibration": train.describe(),
        "outlier_channels": arguments.outliers,
        "failures": failures,
    }
    (work / "forms.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")


def listed_forms(work: Path) -> tuple[list[Form], dict[str, Any]]:
    listed = json.loads((work / "forms.json").read_text(encoding="utf-8"))
    return [Form(**{**form, "path": work / form["path"]}) for form in listed["forms"]], listed


def test_images(arguments: argparse.Namespace) -> ImageDataset:
    """All of the split, shuffled: the first 2,000 of 8,000 are a sample of them. No image is one of the calibration's.

    What is chosen by these figures has to be chosen on training images: test images are for the report alone.
    """
    everything = load_dataset(arguments.dataset, arguments.judge_on)
    order = np.random.default_rng(1).permutation(len(everything))
    if arguments.judge_on != "test":
        calibrated = load_dataset(arguments.dataset, "train", limit=arguments.calibration)
        taken = {calibrated.image(index).tobytes() for index in range(len(calibrated))}
        others = (index for index in order if everything.image(int(index)).tobytes() not in taken)
        order = np.array(list(islice(others, arguments.test)))
    return everything.subset(order[: arguments.test])


def judge(arguments: argparse.Namespace, work: Path) -> None:
    """Logits of every form on the same images; what is there from an earlier run is kept."""
    forms = [form for form in listed_forms(work)[0] if not arguments.forms or form.name in arguments.forms]
    images = test_images(arguments)
    kept = {form.name: _kept_logits(work, form) for form in forms}
    calls = {form.name: open_form(form, threads=1) for form in forms if len(kept[form.name]) < len(images)}
    start = min((len(kept[name]) for name in calls), default=len(images))
    rest = images.subset(np.arange(start, len(images)))
    for part, pixels in preprocess(work / "front.onnx", rest, arguments.batch):
        for form in forms:
            if form.name in calls and len(kept[form.name]) < start + part.stop:
                found = np.asarray(calls[form.name](pixels), dtype=np.float32)
                kept[form.name] = np.concatenate([kept[form.name], found[len(kept[form.name]) - start - part.start :]])
        if part.stop % (16 * arguments.batch) == 0 or part.stop == len(rest):
            for form in forms:
                np.save(work / f"{form.slug}.npy", kept[form.name])
            print(f"{start + part.stop}/{len(images)} images", file=sys.stderr, flush=True)


def _kept_logits(work: Path, form: Form) -> np.ndarray:
    path = work / f"{form.slug}.npy"
    if path.exists():
        found: np.ndarray = np.load(path)
        return found
    return np.zeros((0, len(open_form(form, 1)(np.zeros(_shape(work), np.float32))[0])), dtype=np.float32)


def _shape(work: Path) -> tuple[int, ...]:
    return (1, *np.load(work / "pixels.npy", mmap_mode="r").shape[1:])


def interleaved(
    calls: Mapping[str, Call], pixels: np.ndarray, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of every call in every round: each in a new order, a rest and an uncounted call in front of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    generator = np.random.default_rng(0)
    for turn in range(rounds + WARM_ROUNDS):
        for name in generator.permutation(list(calls)):
            time.sleep(REST_S)
            calls[name](pixels)
            start = clock()
            calls[name](pixels)
            if turn >= WARM_ROUNDS:
                times[name].append(1e3 * (clock() - start))
    return times


def latencies(arguments: argparse.Namespace, work: Path) -> None:
    """Milliseconds of one image, interleaved, every round in a new order: latency.json."""
    forms, _ = listed_forms(work)
    pixels = np.load(work / "pixels.npy")[:1]
    calls = {form.name: open_form(form, arguments.threads) for form in forms}
    times = interleaved(calls, pixels, arguments.rounds, CLOCKS[arguments.clock])
    medians = {name: float(np.median(values)) for name, values in times.items()}
    (work / "latency.json").write_text(json.dumps(medians), encoding="utf-8")


def rows(
    forms: list[Form], logits: dict[str, np.ndarray], truth: np.ndarray, times: dict[str, float]
) -> list[dict[str, Any]]:
    """One a form, the first is FP32."""
    exact = logits[forms[0].name]
    reference = exact.argmax(axis=1)
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
                "drop": 0.0 - 100 * change,
                "drop_ci95": [-100 * interval[1], -100 * interval[0]],
                "agreement": 100 * float((answers == reference).mean()),
                "logits_mse": float(np.square(logits[form.name] - exact, dtype=np.float64).mean()),
                "latency_ms": times.get(form.name),
                "size_mb": form.size_mb,
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| form | in INT8 | top-1 | drop, points | agreement | logits' error | ms | MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        low, high = row["drop_ci95"]
        spent = "–" if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
        drop = f"{row['drop']:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(
            f"| {row['form']} | {row['placement']} | {row['top1']:.2f} % | {drop} |"
            f" {row['agreement']:.2f} % | {row['logits_mse']:.1e} | {spent} | {row['size_mb']:.1f} |"
        )
    return "\n".join(lines)


def report(arguments: argparse.Namespace, work: Path) -> None:
    """The table of what was judged and timed."""
    everything, listed = listed_forms(work)
    wanted = arguments.forms and ["FP32", *arguments.forms]
    forms = [form for form in everything if not wanted or form.name in wanted]
    logits = {form.name: _kept_logits(work, form) for form in forms}
    images = test_images(arguments)
    count = min(len(images), *(len(found) for found in logits.values()))
    images = images.subset(np.arange(count))
    timed = work / "latency.json"
    times = json.loads(timed.read_text(encoding="utf-8")) if timed.exists() else {}
    found = rows(forms, {name: part[:count] for name, part in logits.items()}, images.label_ids, times)
    text = table(found) + "".join(f"\n- failed: {failure}" for failure in listed["failures"])
    print(f"{count} images\n{text}")
    if arguments.json:
        data = {name: value for name, value in listed.items() if name != "forms"}
        data |= {"test": images.describe(), "threads": arguments.threads, "clock": arguments.clock, "rows": found}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")


STEPS = {"make": make, "judge": judge, "time": latencies, "report": report}


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.onnx of a bundle")
    parser.add_argument("dataset")
    parser.add_argument("--work", type=Path, required=True, help="a folder for forms, logits and times")
    parser.add_argument("--only", choices=list(STEPS), help="one step")
    parser.add_argument("--forms", nargs="+", help="make these of ours, judge and report these of all")
    parser.add_argument("--calibration", type=int, default=256, help="images of the training split")
    parser.add_argument("--test", type=int, default=2000, help="images to judge on")
    parser.add_argument("--judge-on", choices=["test", "train"], default="test", help="train: to choose by")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=40, help="of the latency")
    parser.add_argument("--threads", type=int, default=2, help="of the latency")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: the processor's time, one thread")
    parser.add_argument("--nncf", help="a Python that has nncf and openvino")
    parser.add_argument("--modelopt", help="a Python that has nvidia-modelopt[onnx]")
    parser.add_argument("--outliers", type=int, default=0, help="channels per LayerNorm to make outliers of")
    parser.add_argument("--ours-only", action="store_true", help="leave the other tools out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(argv)


def main() -> None:
    arguments = arguments_of()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name, step in STEPS.items():
        if arguments.only in (None, name):
            step(arguments, arguments.work)


if __name__ == "__main__":
    main()
