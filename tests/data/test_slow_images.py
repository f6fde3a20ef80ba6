"""No image of less than a megabyte makes work out of proportion to its bytes, but one of many pixels.

Calls are counted, not seconds: a busy machine must not decide. A million calls take under a tenth of a second.
"""

from __future__ import annotations

import io
import random
import struct
import sys
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.fuzz import rounds
from vitdeploy.core.errors import ImageError
from vitdeploy.data.images import _without_comments, decode

MANY = 900_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


def gif(extra: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("P", (1, 1)).save(file, "GIF")
    return file.getvalue().replace(b"\x2c", extra + b"\x2c", 1)


SLOW = {
    "PPM of one comment": b"P6\n#" + b"x" * MANY + b"\n1 1 255\n\0\0\0",
    "PPM of spaces": b"P6" + b" " * MANY + b"1 1 255\n\0\0\0",
    "plain PPM of comments": b"P2 500 600 255\n" + b"#\n" * (MANY // 2),
    "plain PPM of numbers and comments": b"P2 5000 6000 255\n" + b"1 #\n" * (MANY // 4),
    "plain PPM of numbers": b"P3 500 600 255\n" + b"1 " * (MANY // 2),
    "plain PBM": b"P1 900 1000\n" + b"1" * MANY,
    "PNG of texts": png(chunk(b"tEXt", b"a\0b") * (MANY // 16)),
    "PNG of unknown chunks": png(chunk(b"abCd", b"") * (MANY // 12)),
    "GIF of comments": gif(b"!\xfe\x01a\0" * (MANY // 5)),
    "JPEG of APP1": b"\xff\xd8" + b"\xff\xe1\x00\x02" * (MANY // 4) + b"\xff\xd9",
    "JPEG of comments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * (MANY // 4) + b"\xff\xd9",
    "TIFF of tags": b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + struct.pack("<HHII", 256, 3, 1, 1) * 65535,
    "ICO of entries": b"\0\0\1\0" + struct.pack("<H", 56000) + b"\x10\x10\0\0\1\0\x20\0\x10\0\0\0\x16\0\0\0" * 56000,
    "JPEG 2000 of boxes": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * (MANY // 8),
}


class TooMuchWork(BaseException):
    """Not an error that the decoder would take for a damaged image."""


def steps(content: bytes, most: int) -> int:
    """The calls and returns of Python while an image is decoded or refused.

    Raises:
        TooMuchWork: there are more than ``most``; the decoder is stopped, so that a test ends.
    """
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise TooMuchWork(f"{len(content)} bytes took over {most} calls: {content[:2000].hex()}")

    before = sys.getprofile()
    sys.setprofile(step)
    try:
        with suppress(ImageError):
            decode(content)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", SLOW)
def test_the_work_grows_with_the_bytes(name: str) -> None:
    assert steps(SLOW[name], most=10 * len(SLOW[name])) > 0


@pytest.mark.parametrize("name", [name for name in SLOW if name.startswith("plain")])
def test_pillow_sees_no_comment_of_a_plain_picture(name: str) -> None:
    """It copies the rest of the file at each of them, which no call shows."""
    assert b"#" not in _without_comments(io.BytesIO(SLOW[name]), name).read()


def test_a_plain_picture_keeps_its_pixels_without_its_comments() -> None:
    plain = b"P3 # made by hand\n2 1\n# two pixels\n255\n1 2 3 # red\n4 5 6\n"
    np.testing.assert_array_equal(decode(plain), [[[1, 2, 3], [4, 5, 6]]])
    np.testing.assert_array_equal(decode(b"P6\n# a # comment\n1 1\n255\n#ab"), [[[35, 97, 98]]])
    with pytest.raises(ImageError, match="header of more than 64 KiB"):
        decode(SLOW["PPM of one comment"])


def flat(height: int, width: int, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind, **options)
    return file.getvalue()


def icon(content: bytes) -> bytes:
    """An ICO of one image, which it calls 16x16."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22) + content


def tiled(side: int) -> bytes:
    """A TIFF of 16x16 in one tile of `side`."""
    data = zlib.compress(bytes(16 * 16))
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 8)]
    tags += [(325, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


LARGE = {
    "PNG": lambda: flat(5000, 4100, "PNG"),
    "PNG of 16 bits": lambda: flat(8000, 8000, "PNG", "I;16"),
    "JPEG 2000": lambda: flat(5000, 4100, "JPEG2000"),
    "ICO of a PNG": lambda: icon(flat(5000, 4100, "PNG")),
    "TIFF of a tile": lambda: tiled(9000),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_small_file_of_very_many_pixels_is_refused_before_it_is_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = LARGE[name]()
    assert len(content) < 1_000_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="too large for its few bytes") as error:
        decode(content)
    assert "an array or an image of Pillow" in (error.value.hint or "")


def test_a_photograph_and_a_scanned_page_are_no_such_files() -> None:
    assert decode(flat(4000, 5000, "PNG")).shape == (4000, 5000, 3)
    assert decode(flat(7016, 4960, "PNG", "1")).shape == (7016, 4960, 3)  # A4 of 600 dpi
    large = flat(5000, 4100, "PNG")
    image = Image.open(io.BytesIO(large))
    assert decode(image).shape == (5000, 4100, 3)  # of one who has opened it
    assert decode(large + bytes(5000 * 4100 // 20)).shape == (5000, 4100, 3)  # as if it had a photograph's bytes


def of_scans(count: int) -> bytes:
    """A progressive JPEG whose smallest scan is there so many times more."""
    whole = flat(64, 64, "JPEG", progressive=True)
    starts = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    start, end = starts[-2], starts[-1]
    end = whole.index(b"\xff\xc4", start) if b"\xff\xc4" in whole[start:end] else end
    return whole[:end] + whole[start:end] * count + whole[end:]


def test_a_jpeg_has_few_scans() -> None:
    """Each of some bytes passes over the whole image."""
    assert decode(of_scans(0)).shape == decode(of_scans(80)).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="JPEG of more than 100 scans"):
        decode(of_scans(1000))
    behind = flat(8, 8, "JPEG") + b"\xff\xda\0\x02" * 1000  # as the film behind a phone's photograph may have them
    assert decode(behind).shape == (8, 8, 3)


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue())[0, :, 0], [0, 0, 1, 255])


@pytest.mark.fuzz
def test_mutated_pictures_take_little_work() -> None:
    draw, pixels = random.Random(0), np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    whole = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "ICO"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        whole.append(file.getvalue())
    for _ in range(rounds(2000)):
        content = bytearray(draw.choice(whole))
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(min(len(content), draw.choice([40, 10**9])))] = draw.choice([0, 1, 127, 128, 255])
        steps(bytes(content), most=50_000)
