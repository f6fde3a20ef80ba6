"""The one decoder: a file, bytes, a PIL image or an array -> uint8 RGB pixels.

Everything that turns an image into pixels goes through `decode`, so training, calibration, measurement and the device
see the same pixels. What it does, in this order:

1. open, refusing formats outside `FORMATS`, images of more than `max_pixels`, and small files that would take seconds
   (more than 20 megapixels with over 20 pixels of RGB to a byte) before any pixel is decoded;
2. take the first frame of an animation or a multi-page file;
3. turn the image as its EXIF orientation says (an EXIF block that can't be read counts as none);
4. make RGB of it: 16-bit greyscale keeps its high byte, as Pillow itself does with 16-bit colour; transparency is laid
   over white, as the image processors of transformers do; palettes, greyscale, CMYK and YCbCr go through Pillow.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
import numpy.typing as npt

from vitdeploy.core.addresses import is_address
from vitdeploy.core.errors import ImageError
from vitdeploy.core.machine import memory_bytes
from vitdeploy.core.storage import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Source",
    "decode",
    "image_suffixes",
    "most_pixels",
    "picture_suffixes",
    "unreadable",
]

MAX_PIXELS = 89_478_485
"""Most pixels of one image unless the caller says otherwise: 256 MiB of RGB, and Pillow's own first limit."""

_BYTES_A_PIXEL = 24  # decoded, turned, made RGB, and as float32 in the graph

_READERS = {  # Pillow's names of the formats that are read, and its modules for them
    "AVIF": "PIL.AvifImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "HEIF": "pillow_heif",
    "ICO": "PIL.IcoImagePlugin",
    "JPEG": "PIL.JpegImagePlugin",
    "JPEG2000": "PIL.Jpeg2KImagePlugin",
    "PNG": "PIL.PngImagePlugin",
    "PPM": "PIL.PpmImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
}
FORMATS = tuple(_READERS)
"""Pillow's names of the formats that are read; none of them runs another program."""
_COMMON = ("BMP", "GIF", "JPEG", "PNG", "PPM")  # tried first, since the others' libraries take 2 MB
_OTHERS = tuple(name for name in FORMATS if name not in _COMMON)

_NOT_READ = frozenset(
    [".heic", ".heif", ".hif", ".svg", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".jxl", ".jpm"]
)

_STARTS = {  # of formats: where one is read, a file of it that no reader takes is damaged
    "AVIF": rb"....ftypavi[fs]",
    "GIF": rb"GIF8[79]a",
    "HEIF": rb"....ftyp(hei|hev|mif1|msf1)",
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n",
    "TIFF": rb"II\*\0|MM\0\*",
    "WEBP": rb"RIFF....WEBP",
}
_OTHER_FILES = (  # what is not read: how it begins, what it is, what to do
    (
        _STARTS["HEIF"],
        "a HEIC image, which needs the package pillow-heif",
        "pip install pillow-heif, or convert it to JPEG",
    ),
    (_STARTS["AVIF"], "an AVIF image, which this Pillow can't read", "pip install --upgrade pillow"),
    (rb"....ftyp", "a video", "take single frames of it: see docs/examples.md"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image", "convert it to JPEG or PNG"),
    (rb"\s*<(!doctype html|html)", "a web page, not an image", "the download went wrong: get the image itself"),
    (rb"\s*<(\?xml|svg)", "an SVG drawing or other XML", "convert it to PNG"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the image itself", "run git lfs pull in its folder"),
    (rb"%PDF", "a PDF document", "convert its pages to PNG"),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
)

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, "Image", npt.NDArray[Any]]

_FREE_VALUES, _VALUES_A_BYTE = 60_000_000, 60
"""Values (pixels times channels, without alpha) that any image may have, and those for each byte of its file: 20
megapixels of RGB, and above that 20 pixels a byte. Photographs have fewer; a black image can be seconds of work."""
_MOST_SCANS = 100  # the most that libtiff takes as well; a progressive JPEG has about ten
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_PNG_SIZE = re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR(.{4})(.{4})", re.DOTALL)
_TOO_MUCH_TEXT = re.compile("Decompressed data too large|Too much memory used in text chunks")  # Pillow's words
_ORIENTATION = 0x0112  # the EXIF tag
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # where Pillow makes mode I of 16 bits, the brightest value being 65,535
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case with their dot, of the formats that this Pillow reads: what is taken from folders."""
    return frozenset(suffix for suffix, kind in _registry().items() if kind in _readers(FORMATS))


@cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes of other pictures: formats that are not read."""
    return (_NOT_READ | set(_registry())) - image_suffixes()


def _registry() -> dict[str, str]:
    from PIL import Image

    _readers(FORMATS)
    return {suffix.lower(): kind for suffix, kind in Image.registered_extensions().items()}


@cache
def _readers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of these formats those that this Pillow reads: AVIF and WebP are optional parts, HEIF is a package of its own.

    Its other modules, 30 of them, are not loaded.
    """
    from PIL import Image

    for name in names:
        with suppress(ImportError):
            reader = import_module(_READERS[name])
            if name == "HEIF":
                reader.register_heif_opener()
    return tuple(name for name in names if name in Image.OPEN)


@cache
def most_pixels() -> int:
    """`MAX_PIXELS`, or fewer where the machine, or the container, has no memory for an image of so many."""
    memory = memory_bytes("MemTotal")
    return MAX_PIXELS if memory is None else min(MAX_PIXELS, memory // _BYTES_A_PIXEL)


def unreadable(name: str, error: Exception) -> ImageError:
    """What to raise for a file that can not be opened or read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ImageError(f"can't read the image {name}: {reason}", hint="check the path")


def decode(source: Source, *, max_pixels: int | None = None, name: str | None = None) -> npt.NDArray[np.uint8]:
    """Decode one image.

    Args:
        source: path of a file, its bytes, a binary file object at its start, a PIL image, or a uint8 array of shape
            (height, width), (height, width, 1), (height, width, 3) RGB or (height, width, 4) RGBA.
        max_pixels: refuse images of more pixels (height x width), before they are decoded; None: `most_pixels`.
        name: what to call it in a message; None: the file's path, or "the image".

    Returns:
        uint8 RGB pixels (height, width, 3), C-contiguous; an array that has that form already is returned as it is.

    Raises:
        ImageError: it is not an image, damaged, too large, or of a format or pixel type that is not supported; the
            message names the file.

    >>> import numpy as np
    >>> decode(np.zeros((2, 3), np.uint8)).shape
    (2, 3, 3)
    """
    max_pixels = most_pixels() if max_pixels is None else max_pixels
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if is_address(path):
            raise ImageError(
                f"{path} is an address, and images are read from files",
                hint=f"download it first, as by curl -fLO {shlex.quote(path)}; or give its bytes",
            )
        name = name or path
        try:
            with open_regular(source) as file:
                return _from_file(file, name, max_pixels)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise unreadable(name, error) from error
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(BytesIO(source), name or "the image", max_pixels)
    from PIL import Image

    if isinstance(source, Image.Image):
        return _from_pil(source, name or str(getattr(source, "filename", "") or "the image"), max_pixels)
    if hasattr(source, "read"):
        return _from_file(source, name or str(getattr(source, "name", "the image file")), max_pixels)
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
            f"{name} is not an image", hint="give (height, width), (height, width, 3) RGB or (height, width, 4) RGBA"
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
    try:
        return _opened(_without_comments(file, name), name, max_pixels)
    except ImageError as error:
        if not isinstance(error.__cause__, ValueError) or not _TOO_MUCH_TEXT.match(str(error.__cause__)):
            raise
        return _opened(BytesIO(_without_text(file)), name, max_pixels)


def _without_comments(file: BinaryIO, name: str) -> BinaryIO:
    """A PNM file without comments, other files as they are: Pillow reads a header byte by byte, and the time that it
    takes for comments among the numbers of a plain one grows with their square.

    Raises:
        ImageError: its header does not end within 64 KiB.
    """
    head = file.read(_PNM_HEADER)
    if re.match(rb"P[123]\s", head):
        return BytesIO(_COMMENT.sub(b"", head + file.read()))
    file.seek(-len(head), os.SEEK_CUR)
    wanted = {b"P4": 3, b"P5": 4, b"P6": 4}.get(head[:2], 0)
    if len(head) == _PNM_HEADER and len(_COMMENT.sub(b" ", head).split(None, wanted)) < wanted:
        raise ImageError(f"{name} has a header of more than {_PNM_HEADER >> 10} KiB", hint="save it without comments")
    return file


_PNM_HEADER = 1 << 16
_COMMENT = re.compile(rb"#[^\r\n]*")


def _without_text(file: BinaryIO) -> bytes:
    """A PNG without its texts and colour profile: Pillow refuses long ones, and the pixels don't need them."""
    file.seek(0)
    content = file.read()
    parts, place = [content[:8]], 8
    while place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, data, checksum
        if content[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append(content[place:end])
        place = end
    return b"".join(parts)


def _opened(file: BinaryIO, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    _check_icon(file, name, max_pixels)
    try:
        try:
            image = Image.open(file, formats=_readers(_COMMON))
        except UnidentifiedImageError:
            image = Image.open(file, formats=_readers(_OTHERS))
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise _unknown(file, name) from error
    except Exception as error:  # a damaged header: Pillow's readers raise whatever they stumble over
        raise _damaged(name, error) from error
    with image:
        _check_work(image, file, name, max_pixels)
        return _from_pil(image, name, max_pixels)


def _check_work(image: Image, file: BinaryIO, name: str, max_pixels: int) -> None:
    """Refuse a file that is small and would hold the decoder for seconds: it has far more values to a byte than a
    photograph, or is a JPEG of very many scans, each of which passes over the whole image.

    Raises:
        ImageError: as said; or a part of it is too large, whatever the image's own size.
    """
    position, values = file.tell(), min(3, len(image.getbands()))
    size = file.seek(0, os.SEEK_END)
    _check_values(*image.size, values, size, name, max_pixels)
    if image.format == "TIFF":  # a tile is unpacked whole, though little of it may be in the image
        width, height = (getattr(image, "tag_v2", {}).get(tag) for tag in (322, 323))
        if isinstance(width, int) and isinstance(height, int):
            _check_values(width, height, values, size, name, max_pixels)
    if image.format in ("JPEG", "MPO"):
        file.seek(0)
        content = file.read()
        if content.count(b"\xff\xda") > _MOST_SCANS and _scans(content) > _MOST_SCANS:
            raise ImageError(f"{name} is a JPEG of more than {_MOST_SCANS} scans", hint="save it again, with a few")
    file.seek(position)


def _check_icon(file: BinaryIO, name: str, max_pixels: int) -> None:
    """`_check_work` for an ICO, which Pillow decodes as it opens it, and whose own sizes are 256x256 at most."""
    if file.read(4) == b"\0\0\1\0":
        content = file.read()
        for match in _PNG_SIZE.finditer(content):
            width, height = (int.from_bytes(edge, "big") for edge in match.groups())
            _check_values(width, height, 3, len(content), name, max_pixels)
    file.seek(0)


def _check_values(width: int, height: int, values: int, size: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(name, f"{height}x{width} = {height * width} pixels")
    if width * height * values > max(_FREE_VALUES, _VALUES_A_BYTE * size):
        raise ImageError(
            f"{name} is too large for its few bytes: {height}x{width} pixels",
            hint="make it smaller first, or decode it yourself: an array or an image of Pillow is taken as it is",
        )


def _scans(content: bytes) -> int:
    """The scans of a JPEG, or some over `_MOST_SCANS` of them."""
    scans, place = 0, 2
    while scans <= _MOST_SCANS and (marker := _JPEG_MARKER.search(content, place)):
        kind, place = content[marker.start() + 1], marker.end()
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        place += int.from_bytes(content[place : place + 2], "big")
    return scans


def _from_pil(image: Image, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    width, height = image.size
    _check_size(height, width, name, max_pixels)
    try:
        image.load()
    except Exception as error:  # damaged or truncated data: see above
        raise _damaged(name, error) from error
    width, height = image.size  # ICO files may hold another size than they announce
    _check_size(height, width, name, max_pixels)
    return np.array(_to_rgb(_turned(image), name, image.format))


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


def _to_rgb(image: Image, name: str, kind: str | None = None) -> Image:
    from PIL import Image as module

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and kind in _SIXTEEN_BIT_FORMATS):
        values = np.asarray(image).clip(0, 0xFFFF)  # in mode I there may be others
        return module.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name} has 32 bits a pixel (Pillow's mode {image.mode}): its range from black to white is not known",
            hint="save it with 8 or 16 bits a channel",
        )
    if image.mode == "La":
        image = image.convert("LA")
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
        start = file.read(64)
    except (OSError, ValueError):
        start = b"?"
    if not start:
        return ImageError(f"{name} is empty", hint="make or copy the file again")
    for kind in _readers(FORMATS):
        if kind in _STARTS and re.match(_STARTS[kind], start, re.DOTALL):
            return ImageError(f"{name} is a damaged or truncated {kind} image", hint="make or copy the file again")
    for pattern, what, hint in _OTHER_FILES:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return ImageError(f"{name} is {what}", hint=hint)
    return ImageError(
        f"{name} is not an image that can be read", hint=f"use one of these formats: {', '.join(FORMATS)}"
    )
