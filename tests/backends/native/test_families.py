"""Which families of ViTs the kernels take: the table of docs/int8.md against tiny models of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.tools.backends import needs_torch
from tests.tools.families import write_family
from tests.tools.towers import write_tower
from vitdeploy.backends.native.library import VARIABLE
from vitdeploy.backends.native.plain_vit import read_plain_vit
from vitdeploy.backends.native.runner import NativeRunner, check_plain_vit
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bundle.onnx_messages import read_model
from vitdeploy.compiler.build import build
from vitdeploy.compiler.export import export
from vitdeploy.compiler.quantization.recipe import Recipe
from vitdeploy.core.errors import ModelError
from vitdeploy.core.machine import has_module
from vitdeploy.models.tasks import kind_of

PAGE = Path(__file__).parents[3] / "docs" / "int8.md"
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "ViT": partial(write_family, "vit"),
    "DeiT": partial(write_family, "deit"),
    "ViT-MSN": partial(write_family, "vit-msn"),
    "ViT, its embedding": partial(write_tower, "vit"),
    "DeiT, with its distillation token": partial(write_family, "deit-distilled"),
    "DINOv2": partial(write_family, "dinov2"),
    "DINOv2, its embedding": partial(write_tower, "dinov2"),
    "DINOv2, with registers": partial(write_family, "dinov2-registers"),
    "DINOv2, with SwiGLU": partial(write_family, "dinov2-swiglu"),
    "I-JEPA": partial(write_family, "ijepa"),
    "SigLIP": partial(write_family, "siglip"),
    "SigLIP, its embedding": partial(write_tower, "siglip-tower"),
    "CLIP": partial(write_family, "clip"),
    "CLIP, its embedding": partial(write_tower, "clip-projected"),
    "BEiT, with absolute positions": partial(write_family, "beit-absolute"),
    "BEiT": partial(write_family, "beit"),
    "DINOv3": partial(write_tower, "dinov3"),
    "Swin": partial(write_family, "swin"),
}


def table() -> dict[str, tuple[str, str]]:
    """Of each model of the page whether the kernels take it, and what runs the rest or the node that they refuse."""
    text = PAGE.read_text(encoding="utf-8").partition("| model | by the kernels |")[2].partition("\n\n")[0]
    rows = re.findall(r"^ *\| ([^|]+) \| (yes|no) \| ([\w ]+)", text, flags=re.MULTILINE)
    return {name: (taken, rest.strip()) for name, taken, rest in rows}


def test_the_page_names_what_is_tested() -> None:
    assert list(table()) == list(FAMILIES)
    assert {rest for taken, rest in table().values() if taken == "yes"} == {"kernels", "ONNX Runtime"}


@pytest.mark.full
@needs_torch
@pytest.mark.skipif(not has_module("vitdeploy.backends.native._kernels"), reason="there are no kernels")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_taken_or_refused_as_the_page_says(
    name: str, tmp_path: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of the INT8 form are no further from FP32's than ONNX Runtime's, and as near to these as both allow.

    ONNX Runtime's sums of bytes saturate where the processor has no VNNI, so that they need not be the same there.
    """
    monkeypatch.setenv(VARIABLE, "portable")
    bundle = tmp_path / "bundle"
    export(FAMILIES[name](tmp_path / "checkpoint"), bundle)
    taken, rest = table()[name]
    if taken == "no":
        with pytest.raises(ModelError, match=rf"this is not one: node '.*' \({rest}\): ") as caught:
            check_plain_vit(bundle / "model.onnx")
        assert "every form" in (caught.value.hint or "")
        return
    recipe = Recipe(dataset=str(tiny_images), count=24, smoothing=False)
    build(bundle, ["int8"], target="onnx", recipe=recipe, force=True)  # random weights are hard to quantise
    path = bundle / "model.int8-cpu.onnx"
    assert (read_plain_vit(read_model(path.read_bytes())).classifier is None) == (rest == "ONNX Runtime")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    runners = (OnnxRuntimeRunner(bundle / "model.onnx", 1), OnnxRuntimeRunner(path, 1), NativeRunner(path, 2))
    answers = []
    for runner in runners:
        with runner:
            ((kind, values),) = runner.infer({"image": pixels}).items()
        answers.append(values)
    exact, theirs, ours = answers
    error = np.sqrt(np.mean((theirs - exact) ** 2))
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 1.2 * error
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 1.3 * error
    assert kind_of(kind).same(ours, exact).mean() >= kind_of(kind).same(theirs, exact).mean() - 0.1
