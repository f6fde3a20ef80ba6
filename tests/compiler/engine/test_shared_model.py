"""Engines of a real ViT: every form, for images of one size and with ranges, and how large they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.engines import FORMS, fixed, needs_rtx
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine
from vitdeploy.inspection.graph import read_graph

pytestmark = needs_rtx
TEXT_BYTES = 25e6  # more than the source text of an engine's fused kernels, whatever its precision and ranges


@pytest.fixture(scope="module")
def bundle(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A ViT-S of 112 pixels with every form. Read-only."""
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.quantization.recipe import Recipe

    path = tmp_path_factory.mktemp("shared") / "bundle"
    made = export(test_data / "models" / "vit-small-patch14-112-cifar10", path)
    recipe = Recipe(dataset=str(test_data / "cifar10"), count=4, smoothing=False)
    return build(made, list(FORMS), target="onnx", recipe=recipe).bundle


def test_every_form_for_one_size_and_what_it_takes(bundle: Bundle, tmp_path: Path) -> None:
    """FP16 halves the weights and INT8 quarters them; the rest is the source text of fused kernels, which the device
    compiles: 6 to 11 MB where the sizes are fixed (docs/results/engine-sizes.md)."""
    one = EngineOptions(profiles=(Profile(fixed(1), fixed(112), fixed(112)),))
    sizes = {}
    for precision, form in FORMS.items():
        info = build_engine(bundle.path / form, tmp_path / precision, one)
        assert info.precision == precision
        assert info.profiles[0]["image"] == {key: [1, 112, 112, 3] for key in ("min", "opt", "max")}
        sizes[precision] = info.size_bytes
    assert sizes["fp16"] <= 0.55 * sizes["fp32"] and sizes["bf16"] <= 0.55 * sizes["fp32"], sizes
    assert sizes["int8"] <= 0.35 * sizes["fp32"], sizes
    assert sizes["int8"] <= 0.62 * sizes["fp16"], sizes  # a ViT-B, where the same text weighs less, has 0.53


@pytest.mark.parametrize("precision", FORMS)
def test_every_form_with_ranges_for_named_gpus(bundle: Bundle, tmp_path: Path, precision: str) -> None:
    """What is not weights stays within bounds: several GPUs and sizes share the weights."""
    gpus = ("8.6", "8.9", "12.0")
    usual = EngineOptions(compute_capabilities=gpus).for_manifest(bundle.manifest)
    source = bundle.path / FORMS[precision]
    info = build_engine(source, tmp_path / "e", usual)
    assert info.precision == precision and info.compute_capabilities == gpus
    assert info.profiles[0]["image"]["min"] == [1, 1, 1, 3] and info.profiles[0]["image"]["max"] == [8, 1080, 1920, 3]
    assert source.stat().st_size < info.size_bytes < source.stat().st_size + TEXT_BYTES
    graph = read_graph(source)
    assert (info.products, len(info.int8_products)) == (graph.products, graph.int8_products)
    assert (graph.int8_products == 72) == (precision == "int8")  # six in each of twelve layers
