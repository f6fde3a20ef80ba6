"""The last layer computes the rows that the classifier reads: fewer products, the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.families import write_family
from tests.tools.quantization import calibrated, images, int8, logits
from vitdeploy.compiler.export import export
from vitdeploy.compiler.passes.integer_products import fuse_integer_products
from vitdeploy.compiler.passes.prune_token_rows import prune_token_rows
from vitdeploy.compiler.quantization.recipe import Recipe


def answers(model: ir.Model, folder: Path, backend: str = "onnxruntime") -> np.ndarray:
    return logits(model, folder, images(9, seed=5), backend)


def for_cpus(bundle: Path, recipe: Recipe) -> ir.Model:
    model = int8(bundle, calibrated(bundle, recipe))
    fuse_integer_products(model)
    return model


def rows_of_products(model: ir.Model) -> list[int]:
    """Rows of each product's result, in the order of the graph."""
    made = [node.outputs[0].shape for node in model.graph if node.op_type in ("MatMul", "MatMulIntegerToFloat")]
    return [int(shape[-2]) for shape in made if shape is not None and isinstance(shape[-2], int)]


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_answers_stay(attention: bool, backend: str, tiny_bundle: Path, tmp_path: Path) -> None:
    whole = for_cpus(tiny_bundle, Recipe(attention=attention))
    wanted = answers(whole, tmp_path, backend)
    before = rows_of_products(whole)
    result = prune_token_rows(whole)
    after = rows_of_products(whole)
    assert result.changed == 6, "queries, both products of attention, the output projection, both of the MLP"
    tokens = max(before)
    assert before.count(tokens) - after.count(tokens) == 6 and after.count(1) - before.count(1) == 6
    found = answers(whole, tmp_path, backend)
    assert np.allclose(found, wanted, rtol=0, atol=1e-4 * float(np.std(wanted)))
    again = prune_token_rows(whole)
    assert again.changed == 0 and again.declined


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "beit", "beit-absolute", "dinov2", "siglip"])
def test_families(family: str, tmp_path: Path) -> None:
    bundle = export(write_family(family, tmp_path), tmp_path / "bundle").path
    model = ir.load(bundle / "model.onnx")
    wanted = answers(model, tmp_path)
    result = prune_token_rows(model)
    assert bool(result.changed) == (family in ("vit", "deit-distilled", "beit-absolute"))
    assert result.changed or result.declined
    assert np.allclose(answers(model, tmp_path), wanted, rtol=0, atol=1e-4 * float(np.std(wanted)))


def test_it_stops_where_a_node_mixes_tokens_in_a_way_it_does_not_know(tiny_bundle: Path, tmp_path: Path) -> None:
    model = for_cpus(tiny_bundle, Recipe())
    last = [node for node in model.graph if node.op_type == "Gelu"][-1]
    odd = ir.node("CumSum", [last.outputs[0], ir.Value(name="axis", const_value=ir.tensor(np.array(1)))])
    model.graph.register_initializer(odd.inputs[1])
    odd.outputs[0].name, odd.outputs[0].type = "odd", last.outputs[0].type
    odd.outputs[0].shape = last.outputs[0].shape
    readers = [use.node for use in last.outputs[0].uses() if use.node is not odd]
    for reader in readers:
        reader.replace_input_with(0, odd.outputs[0])
    model.graph.insert_after(last, odd)
    wanted = answers(model, tmp_path)
    assert prune_token_rows(model).changed == 1, "the product behind it alone"
    assert np.allclose(answers(model, tmp_path), wanted, rtol=0, atol=1e-4 * float(np.std(wanted)))


def test_a_value_that_is_an_output_too_stays_whole(tiny_bundle: Path) -> None:
    model = for_cpus(tiny_bundle, Recipe())
    sources = [node.inputs[0] for node in model.graph if node.op_type == "Gather"]
    source = next(value for value in sources if value.shape is not None and len(value.shape) == 3)
    model.graph.outputs.append(source)
    result = prune_token_rows(model)
    assert result.changed == 0 and result.declined == "nothing reads single tokens"


def test_the_form_for_cpus_is_cut_and_the_one_for_tensorrt_is_not(tiny_bundle: Path) -> None:
    shapes = {}
    for name in ("model.int8.onnx", "model.int8-cpu.onnx"):
        softmax = [node for node in ir.load(tiny_bundle / name).graph if node.op_type == "Softmax"]
        shapes[name] = [node.outputs[0].shape[-2] for node in softmax]
    assert shapes["model.int8-cpu.onnx"] == [*shapes["model.int8.onnx"][:-1], 1] != shapes["model.int8.onnx"]
