"""Another image size is asked of an image processor in the settings that its own code reads."""

from __future__ import annotations

from typing import Any

import pytest

from vitdeploy.compiler.frontend.image_size import resized_processor
from vitdeploy.compiler.preprocessing import spec_from_processor
from vitdeploy.core.specs import ResizeSpec

SHORTEST = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}

CROPPED = {"size": {"shortest_edge": 64}, "crop_pct": 0.5}


@pytest.mark.parametrize(
    ("name", "settings", "resize", "crop"),
    [
        ("ViT", {"size": 64}, ResizeSpec("bilinear", height=112, width=112), None),
        ("Bit", SHORTEST, ResizeSpec("bicubic", shortest_edge=128), (112, 112)),
        ("ConvNext", CROPPED, ResizeSpec("bicubic", shortest_edge=224), (112, 112)),
        ("Levit", SHORTEST, ResizeSpec("bicubic", shortest_edge=146), (112, 112)),  # 128 * 256 / 224
        ("PoolFormer", {**SHORTEST, "crop_pct": 0.5}, ResizeSpec("bicubic", shortest_edge=256), (112, 112)),
        ("MobileViT", SHORTEST, ResizeSpec("bicubic", shortest_edge=128), (112, 112)),
        ("DPT", {"size": 64, "ensure_multiple_of": 16}, ResizeSpec("bicubic", height=112, width=112), None),
    ],
)  # fmt: skip
def test_the_size_is_asked_and_the_share_is_kept(
    name: str, settings: dict[str, Any], resize: ResizeSpec, crop: tuple[int, int] | None
) -> None:
    import transformers

    processor = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    made = spec_from_processor(resized_processor(processor, spec_from_processor(processor), (112, 112)))
    assert (made.resize, made.crop) == (resize, crop)
