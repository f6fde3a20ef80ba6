"""The layers of a graph are found once, whatever is then made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vitdeploy.compiler.build import build
from vitdeploy.compiler.quantization import layers
from vitdeploy.compiler.quantization.int8 import analyze
from vitdeploy.compiler.quantization.layers import QuantLayers
from vitdeploy.compiler.quantization.recipe import Placement, Recipe
from vitdeploy.core.errors import ModelError


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a name with each search of a graph."""
    calls: list[str] = []
    for name in ("find_groups", "find_attention"):
        real = getattr(layers, name)
        monkeypatch.setattr(layers, name, lambda *given, name=name, real=real: calls.append(name) or real(*given))
    return calls


ONCE = ["find_attention", "find_groups"]


def test_a_budget_searches_the_graph_once(tiny_bundle_copy: Path, searches: list[str]) -> None:
    """40 images can't show half a point: every layer is judged, and the build refused after several trials."""
    recipe = Recipe("digits", count=8)
    with pytest.raises(ModelError, match="groups left out|nothing left out"):
        build(tiny_bundle_copy, ["int8"], target="onnx", recipe=recipe, max_drop=0.5, validation_images=40, force=True)
    assert sorted(searches) == ONCE


def test_a_build_from_a_calibration_and_an_analysis_search_once_each(
    tiny_bundle_copy: Path, tiny_images: Path, searches: list[str]
) -> None:
    build(tiny_bundle_copy, ["int8"], target="onnx", force=True)
    assert sorted(searches) == ONCE
    searches.clear()
    analyze(tiny_bundle_copy, Recipe(str(tiny_images), count=24), count=12)
    assert sorted(searches) == ONCE


def test_layers_found_in_one_copy_are_those_of_another(tiny_bundle: Path) -> None:
    placement = Placement(patch_embedding=True, classifier=True, attention=True)
    path = tiny_bundle / "model.onnx"
    kept, model = QuantLayers.find_in_file(path, placement), ir.load(path)
    there, here = kept.on(model), QuantLayers.find(model, placement)
    assert there == here and there.groups and there.attention
    for group in there.groups.values():
        assert all(np.isfinite(weight).all() for weight in group.weights())


def test_another_graph_is_refused(tiny_bundle: Path) -> None:
    kept = QuantLayers.find_in_file(tiny_bundle / "model.onnx", Placement())
    with pytest.raises(ValueError, match="argument 2"):
        kept.on(ir.load(tiny_bundle / "model.fp16.onnx"))
