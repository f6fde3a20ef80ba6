"""FP16 of a model whose residual stream is as large as one likes: naive casting beside what build-engine does.

    python benchmarks/massive_activations.py CHECKPOINT DATASET --work FOLDER [--factor 1 100 10000] [--count 500]
        [--json F] [--markdown F]

All that the model writes to its residual stream (embeddings, attention output, second layer of the MLP) is multiplied
by the factor. LayerNorm divides it out again, so the FP32 logits stay; in float16 the stream itself, and whatever
squares it, can overflow. Per factor, each form in ONNX Runtime with a rounding behind every operation, as on a device:

    cast, in steps   every node to float16; LayerNormalization in single steps, as exporters below opset 17 write it
    cast             every node of our graph to float16; its LayerNormalization is one operator
    ours, in steps   nodes that 32 training images show to need it stay in FP32; LayerNormalization in single steps
    ours             what build-engine makes of our graph

Beyond some factor a bias itself lies outside float16. `to_half` refuses to cast it; the naive forms here get what a
plain cast makes of it, infinity, and the table says what was refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.compiler.export import export
from vitdeploy.compiler.graph.half import model_nodes, to_half
from vitdeploy.compiler.graph.save import save
from vitdeploy.compiler.graph.values import constant, replace_constant
from vitdeploy.compiler.half_plan import plan_half
from vitdeploy.compiler.half_simulation import simulate
from vitdeploy.datasets import load_dataset
from vitdeploy.errors import ModelError
from vitdeploy.machine import machine, versions
from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    import onnx_ir as ir

LOOKED_AT = 32
BATCH = 10


def louder(checkpoint: Path, factor: float, folder: Path) -> Path:
    """The checkpoint with all that is written to its residual stream times `factor`: LayerNorm cancels it."""
    import torch
    from transformers import AutoModelForImageClassification

    module = AutoModelForImageClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embeddings" in name or ".o_proj." in name or ".fc2." in name:
                parameter.mul_(factor)
    module.save_pretrained(folder)
    shutil.copy(checkpoint / "preprocessor_config.json", folder)
    return folder


def decompose_layer_norm(path: Path, written: Path) -> ir.Model:
    """The graph with each LayerNormalization in single steps, as exporters below opset 17 write it."""
    import onnx
    import onnx_ir as ir
    from onnx import helper, numpy_helper

    proto = onnx.load(path)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        x, scale, bias = node.input
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(epsilon), f"{node.name}.eps"))
        y, axes = node.output[0], f"{node.name}.axes"
        proto.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), axes))
        steps = [
            ("ReduceMean", [x, axes], "mean"),
            ("Sub", [x, f"{y}.mean"], "centred"),
            ("Mul", [f"{y}.centred", f"{y}.centred"], "square"),
            ("ReduceMean", [f"{y}.square", axes], "variance"),
            ("Add", [f"{y}.variance", f"{node.name}.eps"], "safe"),
            ("Sqrt", [f"{y}.safe"], "deviation"),
            ("Div", [f"{y}.centred", f"{y}.deviation"], "normal"),
            ("Mul", [f"{y}.normal", scale], "scaled"),
            ("Add", [f"{y}.scaled", bias], None),
        ]
        for op_type, inputs, name in steps:
            out = y if name is None else f"{y}.{name}"
            nodes.append(helper.make_node(op_type, inputs, [out], name=f"{node.name}/{name or 'shifted'}"))
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(nodes)
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.save(proto, written)
    return ir.load(written)


def logits_of(path: Path, images: Any, threads: int) -> np.ndarray:
    """(images, classes)."""
    parts = []
    with OnnxRuntimeRunner(path, threads) as runner:
        for start in range(0, len(images), BATCH):
            end = min(start + BATCH, len(images))
            pixels = np.stack([images.image(index) for index in range(start, end)])
            parts.append(runner.infer({"image": pixels})["logits"])
    return np.concatenate(parts)


def judge(found: np.ndarray, exact: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    finite = np.isfinite(found).all(axis=1)
    right = finite & (found.argmax(axis=1) == labels)
    mean = float(np.abs(found - exact)[finite].mean()) if finite.any() else None
    return {"top1": 100 * float(right.mean()), "not_finite": int((~finite).sum()), "mean_logit_difference": mean}


def cast_everything(path: Path) -> tuple[ir.Model, str | None]:
    """Every node and weight of a graph in float16, and why `to_half` refuses that, if it does.

    A refused weight becomes infinite in the returned graph, as a plain cast makes it.
    """
    import onnx_ir as ir

    model = ir.load(path)
    try:
        to_half(model)
        return model, None
    except ModelError as error:
        refused = str(error)
    model = ir.load(path)
    largest = np.finfo(np.float16).max
    for node in model_nodes(model):
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if array is not None and array.dtype == np.float32 and np.abs(array).max(initial=0) > largest:
                infinite = np.where(np.abs(array) > largest, np.copysign(np.float32(np.inf), array), array)
                replace_constant(model.graph, node, index, infinite)
    to_half(model)
    return model, refused


def forms_of(factor: float, graph: Path, images: Any, train: Any, work: Path, threads: int) -> list[dict[str, Any]]:
    """FP32 and the four forms of one model."""
    import onnx_ir as ir

    labels = np.asarray(images.label_ids)
    exact = logits_of(graph, images, threads)
    stepped = work / "stepped.onnx"
    decompose_layer_norm(graph, stepped)
    rows: list[dict[str, Any]] = [{"factor": factor, "form": "FP32", **judge(exact, exact, labels)}]

    def add(form: str, model: ir.Model, **found: Any) -> None:
        save(simulate(model), work / "rounded.onnx")
        judged = judge(logits_of(work / "rounded.onnx", images, threads), exact, labels)
        rows.append({"factor": factor, "form": form, **judged, **found})

    for name, path in (("cast, in steps", stepped), ("cast", graph)):
        model, refused = cast_everything(path)
        add(name, model, refused=refused)
    for name, path in (("ours, in steps", stepped), ("ours", graph)):
        plan = plan_half(path, "", (train.image(index) for index in range(min(LOOKED_AT, len(train)))), {})
        model = ir.load(path)
        to_half(model, plan.names)
        add(name, model, kept_fp32=len(plan.kept), casts=plan.casts, why=plan.kept[0].why if plan.kept else None)
    rows[0] |= {"largest": plan.largest, "largest_node": plan.largest_node}
    return rows


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """A table; `largest` is that of any value in the graph with one LayerNormalization operator."""
    made = [
        "| factor | largest value | form | top-1 | images without finite logits | mean abs. logit difference"
        " | nodes in FP32 | casts |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    refused = {}
    for row in rows:
        if row.get("refused"):
            refused[row["factor"]] = row["refused"]
        largest = f"{row['largest']:,.0f}" if "largest" in row else ""
        mean = row["mean_logit_difference"]
        made.append(
            f"| {row['factor']:g} | {largest} | {row['form']} | {row['top1']:.1f} % | {row['not_finite']} |"
            f" {'–' if mean is None or row['form'] == 'FP32' else f'{mean:.2g}'} | {row.get('kept_fp32', '')} |"
            f" {row.get('casts', '')} |"
        )
    made += [""] if refused else []
    made += [f"At {factor:g} `to_half` refuses to cast everything: {message}." for factor, message in refused.items()]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--factor", type=float, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="add the numbers to this file")
    parser.add_argument("--markdown", type=Path, help="write everything in the JSON file, or of this run, as a table")
    arguments = parser.parse_args()
    images = load_dataset(arguments.dataset, "test", limit=arguments.count)
    train = load_dataset(arguments.dataset, "train", limit=LOOKED_AT)
    data: dict[str, Any] = {"rows": []}
    if arguments.json and arguments.json.is_file():
        data = json.loads(arguments.json.read_text())
    for factor in arguments.factor:
        work: Path = arguments.work / f"{factor:g}"
        if not (work / "bundle").exists():
            export(louder(arguments.checkpoint, factor, work / "checkpoint"), work / "bundle")
        rows = forms_of(factor, work / "bundle" / "model.onnx", images, train, work, arguments.threads)
        data["rows"] = [row for row in data["rows"] if row["factor"] != factor] + rows
        data["rows"].sort(key=lambda row: row["factor"])
        data |= {"dataset": images.describe(), "count": len(images), "machine": machine(), "versions": versions()}
        if arguments.json:
            arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(lines(data["rows"])))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines(data["rows"])) + "\n")


if __name__ == "__main__":
    main()
