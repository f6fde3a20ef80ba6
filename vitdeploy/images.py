"""The one decoder: a file, bytes, a PIL image or an array -> uint8 RGB pixels.

Everything that turns an image into pixels goes through `decode`, so training, calibration, measurement and the device
see the same pixels. What it does, in this order:

1. open, refusing formats outside `FORMATS` and images of more than `max_pixels` before any pixel is decoded;
2. take the first frame of an animation or a multi-page file;
3. turn the image as its EXIF orientation says (an EXIF block that can't be read counts as none);
4. make RGB of it: 16-bit greyscale keeps its high byte, as Pillow itself does with 16-bit colour; transparency is laid
   over white, as the image processors of transformers do; palettes, greyscale, CMYK and YCbCr go through Pillow.
"""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "MAX_PIXELS", "Source", "decode"]

MAX_PIXELS = 89_478_485
"""Most pixels of one image unless the caller says otherwise: 256 MiB of RGB, and Pillow's own first limit."""

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read; none of them runs another program."""

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, "Image", npt.NDArray[Any]]

_ORIENTATION = 0x0112  # the EXIF tag
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}


def decode(source: Source, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode one image.

    Args:
        source: path of a file, its bytes, a binary file object at its start, a PIL image, or a uint8 array of shape
            (height, width), (height, width, 1), (height, width, 3) RGB or (height, width, 4) RGBA.
        max_pixels: refuse images of more pixels (height x width), before they are decoded.

    Returns:
        uint8 RGB pixels (height, width, 3), C-contiguous; an array that has that form already is returned as it is.

    Raises:
        ImageError: it is no image, it is damaged, its format or pixel type is not supported, or it is too large; the
            message names the file.

    >>> import numpy as np
    >>> decode(np.zeros((2, 3), np.uint8)).shape
    (2, 3, 3)
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        try:
            with open(source, "rb") as file:
                return _from_file(file, name, max_pixels)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageError(f"can't read the image {name}: {reason}", hint="check the path") from error
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(BytesIO(source), f"the image of {len(source)} bytes", max_pixels)
    from PIL import Image

    if isinstance(source, Image.Image):
        return _from_pil(source, str(getattr(source, "filename", "") or "the image"), max_pixels)
    if hasattr(source, "read"):
        return _from_file(source, str(getattr(source, "name", "the image file")), max_pixels)
    raise ImageError(
        f"can't make an image of a {type(source).__name__}",
        hint="give a path, bytes, a binary file, a PIL image, or a uint8 array (height, width, 3)",
    )


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> npt.NDArray[np.uint8]:
    name = f"the array of shape {array.shape}"
    if array.dtype != np.uint8:
        raise ImageError(
            f"{name} holds {array.dtype}, and pixels are uint8",
            hint="scale the pixels to 0..255 and convert them with .astype(numpy.uint8)",
        )
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in (1, 3, 4):
        raise ImageError(
            f"{name} is no image", hint="give (height, width), (height, width, 3) RGB or (height, width, 4) RGBA"
        )
    height, width = array.shape[:2]
    _check_size(height, width, name, max_pixels)
    if channels == 3:
        return np.ascontiguousarray(array)
    if channels == 1:
        # (height, width) -> (height, width, 3)
        return np.repeat(array.reshape(height, width, 1), 3, axis=2)
    from PIL import Image

    return np.array(_to_rgb(Image.fromarray(np.ascontiguousarray(array)), name))


def _from_file(file: BinaryIO, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        # AVIF and WebP are optional parts of Pillow
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise _unknown(file, name) from error
    except Exception as error:  # a damaged header: Pillow's readers raise whatever they stumble over
        raise _damaged(name, error) from error
    with image:
        return _from_pil(image, name, max_pixels)


def _from_pil(image: Image, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    width, height = image.size
    _check_size(height, width, name, max_pixels)
    try:
        image.load()
    except Exception as error:  # damaged or truncated data: see above
        raise _damaged(name, error) from error
    width, height = image.size  # ICO files may hold another size than they announce
    _check_size(height, width, name, max_pixels)
    return np.array(_to_rgb(_turned(image), name))


def _turned(image: Image) -> Image:
    """The image as its EXIF orientation shows it."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels are good: a broken EXIF block is no reason to refuse them
        return image
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image, name: str) -> Image:
    from PIL import Image as module

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.int64)
        return module.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name} has 32 bits a pixel (Pillow's mode {image.mode}): its range from black to white is not known",
            hint="save it with 8 or 16 bits a channel",
        )
    try:
        if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
            white = module.new("RGBA", image.size, (255, 255, 255, 255))
            return module.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        raise ImageError(
            f"can't make RGB of {name} (Pillow's mode {image.mode}): {error}", hint="save it as an RGB image"
        ) from error


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name} has no pixels ({height}x{width})", hint="give an image of at least 1x1")
    if height * width > max_pixels:
        raise _too_large(name, f"{height}x{width} = {height * width} pixels")


def _too_large(name: str, what: str) -> ImageError:
    return ImageError(
        f"{name} is too large: {what}",
        hint="make it smaller first, or raise max_pixels of load() or decode()",
    )


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name} is damaged or truncated: {error or type(error).__name__}", hint="make or copy the file again"
    )


def _unknown(file: BinaryIO, name: str) -> ImageError:
    try:
        file.seek(0)
        empty = not file.read(1)
    except (OSError, ValueError):
        empty = False
    if empty:
        return ImageError(f"{name} is empty", hint="make or copy the file again")
    return ImageError(f"{name} is no image that can be read", hint=f"use one of these formats: {', '.join(FORMATS)}")
