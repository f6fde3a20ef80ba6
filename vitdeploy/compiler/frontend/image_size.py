"""The size of the pixel values: what the image processor makes, what the model takes, what the user asks for."""

from __future__ import annotations

from typing import Any

from vitdeploy.compiler.frontend.tracing import configured_size, takes_interpolation
from vitdeploy.compiler.preprocessing.spec import sizes_of
from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import PreprocessSpec

__all__ = ["check_size", "resized_processor"]


def _made_size(spec: PreprocessSpec) -> tuple[int, int] | None:
    """(height, width) of the pixel values that the preprocessing makes; None where it depends on the image."""
    if spec.crop is not None:
        return spec.crop
    resize = spec.resize
    return None if resize is None or not resize.height or not resize.width else (resize.height, resize.width)


def resized_processor(processor: Any, spec: PreprocessSpec, size: tuple[int, int]) -> Any:
    """The image processor for another image size (height, width); `spec` is what it does now.

    A crop keeps its share of the resized image: shortest edge 256 and crop 224 become 384 and 336.

    Raises:
        ModelError: it does not make images of one size, or only square ones.
    """
    height, width = size
    made, resize = _made_size(spec), spec.resize
    if made is None or resize is None or resize.longest_edge is not None:
        raise ModelError(
            "the image processor does not resize images to one size, so another size can't be asked of it",
            hint="set do_resize, and size to {'height': ..., 'width': ...}, in preprocessor_config.json",
        )
    changes: dict[str, Any] = {"size": {"height": height, "width": width}}
    if "crop_pct" in vars(processor) and not getattr(processor, "do_center_crop", None):  # ConvNeXt: before its crop
        if height != width:
            raise ModelError(
                f"{type(processor).__name__} makes square images only, not {height}x{width}",
                hint="name one number: --image-size 384",
            )
        changes["size"] = {"shortest_edge": height}
    elif spec.crop is not None:
        changes["crop_size"] = {"height": height, "width": width}
        shares = {"height": height / made[0], "width": width / made[1]}
        sizes = sizes_of(processor.size, "size")  # not those of `spec`, which LeViT and PoolFormer make longer
        changes["size"] = {key: round(edge * shares.get(key, max(shares.values()))) for key, edge in sizes.items()}
        tested = getattr(processor, "test_sizes", None)  # timm's share of its test size may be another
        if tested is not None and tested["crop_size"] == changes["crop_size"]:
            changes |= tested
    return type(processor).from_dict({**processor.to_dict(), **changes})


def check_size(module: Any, spec: PreprocessSpec, asked: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the pixel values that the preprocessing makes, which the model must take.

    Raises:
        ModelError: the processor makes no one size, or another than the model's without having been asked to.
    """
    made, wanted = _made_size(spec), configured_size(module)
    if made is None:
        raise ModelError(
            "the image processor does not make images of one size (no height and width, no centre crop)",
            hint="set size to {'height': ..., 'width': ...} in preprocessor_config.json",
        )
    # A family without the switch fits its positions to any image by itself, as DINOv2, or has none, as ConvNeXt.
    if asked is None and takes_interpolation(module) and wanted is not None and made != wanted:
        raise ModelError(
            f"the image processor makes {made[0]}x{made[1]} pixels, the model takes {wanted[0]}x{wanted[1]}",
            hint="mend preprocessor_config.json so that it fits the model's image_size, or say which size to export:"
            f" --image-size {wanted[0]}x{wanted[1]}",
        )
    return made
