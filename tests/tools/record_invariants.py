"""Record what a restructuring must not change: graphs, constants, files, logits, and the layout of a bench report.

    python -m tests.tools.record_invariants --output before.json --models tiny,cifar10
    python -m tests.tools.record_invariants --compare before.json after.json

`--compare` prints every difference and exits 1 if there is one. Everything is made by the command line and looked at
with onnx and onnxruntime, so that modules may be moved and renamed freely between two records. The records of two
machines or of two versions of the packages may differ in the last bits of logits and calibrated numbers.

"cifar10" is the ViT in VITDEPLOY_TEST_DATA/models, calibrated on 64 training images and run on the first 64 test
images.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.tools.tiny import write_checkpoint, write_images
from vitdeploy.bundle.graphs import exact_bytes

MODELS = ("tiny", "cifar10")
_COUNT = 64
_CIFAR10 = ("models/vit-small-patch14-112-cifar10", "cifar10")
_DIGITS = 4
"""Decimals of the logits that are stored: enough to see by how much they changed, where their digest did."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the file to write")
    parser.add_argument("--models", default="tiny", help=f"of {', '.join(MODELS)}, with commas between them")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two such files")
    options = parser.parse_args(arguments)
    if options.compare:
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in options.compare)
        differences = list(compare(old, new))
        print("\n".join(differences) or "no difference")
        return 1 if differences else 0
    models = options.models.split(",")
    if options.output is None or not set(models) <= set(MODELS):
        parser.error(f"name --output, and --models of {', '.join(MODELS)}")
    makers = {"tiny": record_tiny, "cifar10": record_cifar10}
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: makers[name](Path(scratch)) for name in models}
    options.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def record_tiny(work: Path) -> dict[str, Any]:
    """The seeded tiny ViT of the tests, in every form, and its bench report."""
    checkpoint, images, bundle = write_checkpoint(work / "tiny-vit"), write_images(work / "drawn"), work / "tiny"
    _build(checkpoint, bundle, images, 24, "--fp16", "--bf16", "--int8")
    report = work / "report.json"
    measured = ["--split", "all", "--rounds", 3, "--callers", 2, "--rate", 20, "--load-seconds", 0.5, "--threads", 1]
    _vitdeploy("bench", bundle, "--dataset", images, "--baseline", checkpoint, *measured, "--json", report)
    generator = np.random.default_rng(5)
    ramps = np.linspace(0, 150, 32)[np.newaxis, :, np.newaxis] * generator.random((_COUNT, 1, 1, 3))
    drawn = np.clip(ramps + generator.integers(0, 105, (_COUNT, 32, 32, 3)), 0, 255).astype(np.uint8)
    return {
        "forms": record_forms(bundle, drawn),
        "manifest": layout(_read(bundle / "manifest.json")),
        "calibration": layout(_read(bundle / "calibration.json")),
        "inspect": layout(json.loads(_vitdeploy("inspect", bundle, "--json"))),
        "report": layout(_read(report)),
    }


def record_cifar10(work: Path) -> dict[str, Any]:
    """The trained ViT-S of the larger test data, in every form."""
    import pyarrow.parquet as parquet
    from PIL import Image

    data = Path(os.environ["VITDEPLOY_TEST_DATA"])
    checkpoint, dataset = (data / part for part in _CIFAR10)
    bundle = work / "cifar10"
    _build(checkpoint, bundle, dataset, _COUNT, "--fp16", "--bf16", "--int8")
    rows = parquet.read_table(next(dataset.rglob("test-*.parquet"))).slice(0, _COUNT).to_pylist()
    column = next(name for name, value in rows[0].items() if isinstance(value, dict) and "bytes" in value)
    images = np.stack([np.asarray(Image.open(io.BytesIO(row[column]["bytes"])).convert("RGB")) for row in rows])
    return {"forms": record_forms(bundle, images)}


def _build(checkpoint: Path, bundle: Path, images: Path, count: int, *forms: str) -> None:
    recipe = bundle.with_suffix(".toml")
    recipe.write_text(f"count = {count}\n")
    calibrate = ["--calibration", recipe, "--calibration-data", images]
    _vitdeploy("export", checkpoint, "--output", bundle)
    _vitdeploy("build-engine", bundle, *forms, "--target", "onnx", *calibrate)


def _vitdeploy(*arguments: object) -> str:
    command = [sys.executable, "-m", "vitdeploy", "--quiet", *map(str, arguments)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone).stdout


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def record_forms(bundle: Path, images: np.ndarray) -> dict[str, Any]:
    """What is recorded of each ONNX form: `images` are uint8 (count, height, width, 3)."""
    return {path.name: {**record_graph(path), **record_logits(path, images)} for path in sorted(bundle.glob("*.onnx"))}


def record_graph(path: Path) -> dict[str, Any]:
    """Digests of a file, of its nodes with and without names, and of each constant.

    "nodes" holds operators, attributes, what feeds what and which constant is where, "structure" the same with types
    and shapes in place of the constants' values, "names" what nodes and values are called.
    """
    model = onnx.load(path)
    constants = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
    names = [[node.name, list(node.input), list(node.output)] for node in model.graph.node]
    return {
        "file": _digest(path.read_bytes()),
        "nodes": _nodes(model, constants),
        "structure": _nodes(model, {name: kind_of(text) for name, text in constants.items()}),
        "names": _digest(json.dumps(names).encode()),
        "node_count": len(names),
        "constants": constants,
    }


def _nodes(model: onnx.ModelProto, constants: dict[str, str]) -> str:
    """Digest of a graph in which each value is called after the node that makes it, each constant what `constants` says
    of it."""
    places = {**constants, **{value.name: f"input {place}" for place, value in enumerate(model.graph.input)}}
    nodes = []
    for number, node in enumerate(model.graph.node):
        attributes = sorted(_attribute(attribute) for attribute in node.attribute)
        inputs = [places.get(name, name) for name in node.input]
        nodes.append([node.domain, node.op_type, attributes, inputs, len(node.output)])
        places |= {name: f"node {number} output {place}" for place, name in enumerate(node.output)}
    ends = [[places[value.name], _type(value)] for value in model.graph.output]
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    inputs = [_type(value) for value in model.graph.input]
    return _digest(json.dumps([nodes, inputs, ends, opsets, model.ir_version, len(model.functions)]).encode())


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The constants of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _constant(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    return f"{onnx.TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)} {_digest(array.tobytes())}"


def kind_of(constant: str) -> str:
    """Type and shape alone of what `_constant` says."""
    return constant.rpartition(" ")[0]


def _attribute(attribute: onnx.AttributeProto) -> str:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return f"{attribute.name} {_constant(attribute.t)}"
    return f"{attribute.name} {_digest(attribute.SerializeToString(deterministic=True))}"


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    return f"{value.name} {tensor.elem_type} {[size.dim_param or size.dim_value for size in tensor.shape.dim]}"


def record_logits(path: Path, images: np.ndarray) -> dict[str, Any]:
    """Logits in ONNX Runtime by one thread, an image a call: their digest, and their values, rounded. BF16 has none:
    ONNX Runtime can't load it on a CPU."""
    import onnxruntime

    if "bf16" in path.name:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    exact_bytes(options)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(["logits"], {"image": image[np.newaxis]})[0] for image in images])
    values = [" ".join(f"{value:.{_DIGITS}f}" for value in row) for row in logits.astype(np.float64)]
    return {"logits": _digest(logits.astype(np.float32).tobytes()), "logit_values": values}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


# Keys below which everything is of the machine and the packages; whose values were measured; that follow from times.
_HERE = ("machine", "versions", "readings", "environment", "created")
_MEASURED = ("_ms", "_share", "seconds", "memory", "sha256", "size_bytes", "per_s", "speedup", "throughput")
_VERDICTS = ("noise", "noisy", "on_front", "outside", "keeps_up", "recommendation", "choice", "why", "bench")
_LONG = 60
"""Texts longer than this say what was measured, or are packed numbers and pictures."""


def layout(value: Any, key: str = "") -> Any:
    """A JSON document with types in place of what was measured and of long texts; other numbers are rounded."""
    if key in _VERDICTS:
        return "varies"
    if key in _HERE or any(part in key for part in _MEASURED):
        return _types(value)
    if isinstance(value, dict):
        return {name: layout(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [layout(item, key) for item in value]
    if isinstance(value, float):
        return float(f"{value:.3g}")
    return "text" if isinstance(value, str) and len(value) > _LONG else value


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _types(item) for name, item in value.items()}
    if isinstance(value, list):
        kinds = [_types(item) for item in value]
        return [kind for place, kind in enumerate(kinds) if kind not in kinds[:place]]
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def portable(record: dict[str, Any]) -> dict[str, Any]:
    """What of a model's record is the same on every machine: less calibrated numbers, logits and measurements."""
    forms = {
        name: {
            **{key: form[key] for key in ("structure", "names", "node_count")},
            "constants": {key: kind_of(text) for key, text in form["constants"].items()},
        }
        for name, form in record["forms"].items()
    }
    keys = {name: dict.fromkeys(_keys(part) - {_CHOICE}, "key") for name, part in record.items() if name != "forms"}
    return {"forms": forms, "keys": keys}


def _keys(value: Any, path: str = "") -> set[str]:
    """The paths of all keys in a JSON document, whatever their place in a list."""
    if isinstance(value, dict):
        below = {f"{path}/{key}": item for key, item in value.items()}
        return set(below).union(*(_keys(item, key) for key, item in below.items() if key not in _OWN_KEYS))
    return set().union(*(_keys(item, path) for item in value)) if isinstance(value, list) else set()


_CHOICE = "/choice"  # of a manifest: a busy machine's benchmark makes none
_OWN_KEYS = (  # of packages and backends that are installed, and what a busy machine does not give
    "/versions",
    "/disagreements/answers",
    *(f"/rows/latencies/{name}_speedup" for name in ("on_demand", "steady", "device")),
)


def compare(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Every difference between two records, a line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            place = f"{path}/{key}"
            if key not in new:
                yield f"{place}: gone"
            elif key not in old:
                yield f"{place}: new"
            elif key == "logit_values":
                yield from _compare_logits(old[key], new[key], place)
            else:
                yield from compare(old[key], new[key], place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from compare(before, after, f"{path}/{place}")
    elif old != new:
        yield f"{path}: {json.dumps(old)[:200]} -> {json.dumps(new)[:200]}"


def _compare_logits(old: list[str], new: list[str], path: str) -> Iterator[str]:
    before, after = (np.array([[float(value) for value in row.split()] for row in rows]) for rows in (old, new))
    if before.shape != after.shape:
        yield f"{path}: shape {before.shape} -> {after.shape}"
    elif (before != after).any():
        changed = int((before.argmax(1) != after.argmax(1)).sum())
        yield f"{path}: up to {np.abs(before - after).max():.4f} apart, best class of {changed} images differs"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
