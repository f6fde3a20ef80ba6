"""Image files in memory: of every format that Pillow writes, and damaged."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    """Small valid files of every format that can be written."""
    small = Image.fromarray(np.tile(PIXELS, (3, 3, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        encoded(small, "JPEG", exif=exif),
        encoded(small, "JPEG", progressive=True),
        encoded(small.convert("CMYK"), "JPEG"),
        encoded(small, "PNG", exif=exif),
        encoded(small.convert("P"), "PNG", transparency=3),
        encoded(small.convert("P"), "GIF", save_all=True, append_images=[small.convert("P")]),
        encoded(small, "BMP"),
        encoded(small, "WEBP"),
        encoded(small, "TIFF", compression="tiff_lzw"),
        encoded(small, "TIFF"),
        encoded(small, "PPM"),
        encoded(small, "ICO"),
    ]
    Image.init()
    for format in ("JPEG2000", "AVIF"):
        if format in Image.SAVE:
            files.append(encoded(small, format))
    return files


def mutated(data: bytes, random: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat or splice a few bytes."""
    result = bytearray(data)
    for _ in range(random.randint(1, 8)):
        position = random.randrange(len(result))
        kind = random.randrange(6)
        if kind == 0:
            result[position] ^= 1 << random.randrange(8)
        elif kind == 1:
            result[position] = random.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            result[position : position + 4] = random.choice(
                (bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff")
            )
        elif kind == 3 and len(result) > 20:
            del result[position : position + random.randint(1, 40)]
        elif kind == 4:
            result[position:position] = result[position : position + random.randint(1, 40)]
        elif len(result) > 40:
            result = result[: max(20, random.randrange(len(result)))]
    return bytes(result)
