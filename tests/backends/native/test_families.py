"""Which families of ViTs the kernels take: the table of docs/int8.md against graphs of tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools.backends import needs_torch
from tests.tools.families import write_family
from vitdeploy.backends.native.runner import check_plain_vit
from vitdeploy.compiler.export import export
from vitdeploy.core.errors import ModelError

PAGE = Path(__file__).parents[3] / "docs" / "int8.md"
FAMILIES = {
    "ViT": "vit",
    "DeiT": "deit",
    "DeiT, with its distillation token": "deit-distilled",
    "ViT-MSN": "vit-msn",
    "DINOv2, its LayerScale folded into the products": "dinov2",
    "DINOv2, with registers": "dinov2-registers",
    "DINOv2, with SwiGLU": "dinov2-swiglu",
    "I-JEPA": "ijepa",
    "SigLIP": "siglip",
    "CLIP": "clip",
    "BEiT": "beit",
    "Swin": "swin",
}


def table() -> dict[str, tuple[str, str]]:
    """Of each model of the page whether the kernels take it, and the kind of node that they refuse."""
    text = PAGE.read_text(encoding="utf-8").partition("| model | by the kernels |")[2].partition("\n\n")[0]
    rows = re.findall(r"^ *\| ([^|]+) \| (yes|no) \| (?:(\w+):)?", text, flags=re.MULTILINE)
    return {name: (taken, kind) for name, taken, kind in rows}


def test_the_page_names_what_is_tested() -> None:
    assert list(table()) == list(FAMILIES)
    assert all((taken == "no") == bool(kind) for taken, kind in table().values())


@pytest.mark.full
@needs_torch
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_taken_or_refused_as_the_page_says(name: str, tmp_path: Path) -> None:
    """By its FP32 graph: what the INT8 form of it has more is inside the products."""
    export(write_family(FAMILIES[name], tmp_path / "checkpoint"), tmp_path / "bundle")
    graph = tmp_path / "bundle" / "model.onnx"
    taken, kind = table()[name]
    if taken == "yes":
        check_plain_vit(graph)
        return
    with pytest.raises(ModelError, match=rf"this is not one: node '.*' \({kind}\): ") as caught:
        check_plain_vit(graph)
    assert "every form" in (caught.value.hint or "")
