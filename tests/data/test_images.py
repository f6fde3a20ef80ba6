"""The one decoder: every kind of image, every kind of damage."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.fuzz import rounds
from tests.tools.image_files import PIXELS, encoded
from vitdeploy.core.errors import ImageError
from vitdeploy.data.images import FORMATS, MAX_PIXELS, decode, image_suffixes

RGBA = np.dstack([PIXELS, np.random.default_rng(1).integers(0, 256, (9, 14), dtype=np.uint8)])


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Blend by arithmetic; Pillow's integers may be one level off."""
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def check(pixels: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.flags.c_contiguous
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).max() <= tolerance


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(PIXELS))
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with open(path, "rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file, PIXELS]
        for source in [*sources, Image.open(path), Image.fromarray(PIXELS), PIXELS[::-1][::-1]]:
            check(decode(source), PIXELS)


def test_arrays_of_one_and_four_channels() -> None:
    grey = PIXELS[..., 0]
    check(decode(grey), np.dstack([grey] * 3))
    check(decode(grey[..., np.newaxis]), np.dstack([grey] * 3))
    check(decode(RGBA), over_white(RGBA), tolerance=1)  # Pillow blends in integers
    check(decode(np.asfortranarray(PIXELS)), PIXELS)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (PIXELS.astype(np.float32), "float32"),
        (PIXELS.astype(np.int64), "int64"),
        (np.zeros((2, 3, 4, 3), np.uint8), "(2, 3, 4, 3)"),
        (np.zeros((3, 20, 20), np.uint8), "(3, 20, 20)"),
        (np.zeros(7, np.uint8), "(7,)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(array)
    assert words in caught.value.message and caught.value.hint


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(PIXELS), format, exif=exif, **options)
    check(decode(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))
    check(decode(Image.open(io.BytesIO(data))), decode(data))
    assert decode(data).shape == ((14, 9, 3) if orientation >= 5 else (9, 14, 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_orientation_that_says_nothing_is_ignored() -> None:
    for value in (0, 9, 4000):
        exif = Image.Exif()
        exif[0x0112] = value
        check(decode(encoded(Image.fromarray(PIXELS), "PNG", exif=exif)), PIXELS)
    broken = encoded(Image.fromarray(PIXELS), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(20))
    assert decode(broken).shape == PIXELS.shape


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "GIF", "BMP"])
def test_modes_are_converted_as_pillow_does(mode: str, format: str) -> None:
    try:
        data = encoded(Image.fromarray(PIXELS).convert(mode), format)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, ValueError):
        pytest.skip(f"this Pillow's {format} holds no {mode}")
    check(decode(data), expected)


def test_transparency_is_laid_over_white_as_the_image_processor_does() -> None:
    from transformers.image_transforms import convert_to_rgb

    if "return_numpy" not in inspect.signature(convert_to_rgb).parameters:
        pytest.skip("the image processors of this transformers drop transparency")  # 5.20
    paletted = Image.fromarray(PIXELS).convert("P")
    sources = {
        "RGBA": encoded(Image.fromarray(RGBA)),
        "LA": encoded(Image.fromarray(RGBA).convert("LA")),
        "P, one colour": encoded(paletted, transparency=3),
        "P, alphas": encoded(paletted, transparency=bytes(range(256))),
        "RGB, one colour": encoded(Image.fromarray(PIXELS), transparency=tuple(int(v) for v in PIXELS[0, 0])),
        "L, one level": encoded(Image.fromarray(PIXELS).convert("L"), transparency=100),
        "GIF": encoded(paletted, "GIF", transparency=3),
    }
    for name, data in sources.items():
        expected = convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
        np.testing.assert_array_equal(decode(data), expected, err_msg=name)
    check(decode(sources["RGBA"]), over_white(RGBA), tolerance=1)
    assert (decode(sources["RGB, one colour"])[0, 0] == 255).all()


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.linspace(0, 65535, 9 * 14).astype(np.uint16).reshape(9, 14)
    expected = np.dstack([(values >> 8).astype(np.uint8)] * 3)
    image = Image.fromarray(values)
    check(decode(encoded(image)), expected)
    check(decode(encoded(image, "TIFF")), expected)
    check(decode(image), expected)
    big_endian = Image.frombytes("I;16B", (14, 9), values.astype(">u2").tobytes())
    check(decode(big_endian), expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_a_pixel_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="32 bits"):
        decode(encoded(Image.fromarray(PIXELS).convert("L").convert(mode), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    check(decode(data), np.full((4, 6, 3), (255, 0, 0)))


def test_formats_that_are_named_are_read() -> None:
    Image.init()
    for format in FORMATS:
        if format not in Image.OPEN or format not in Image.SAVE:
            continue
        data = encoded(Image.new("RGB", (16, 16), (200, 100, 50)), format)
        check(decode(data), np.full((16, 16, 3), (200, 100, 50)), tolerance=12)  # some formats lose a little


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
class TestLimits:
    def test_too_many_pixels_are_refused_before_decoding(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.png"
        path.write_bytes(encoded(Image.new("1", (12_000, 12_000))))
        assert path.stat().st_size < 30_000  # 144 million pixels
        tracemalloc.start()
        with pytest.raises(ImageError, match="too large") as caught:
            decode(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()
        assert str(path) in caught.value.message and "12000x12000" in caught.value.message and caught.value.hint

    def test_pillows_own_limit_is_told_as_ours(self) -> None:
        with pytest.raises(ImageError, match="too large"):
            decode(encoded(Image.new("1", (20_000, 20_000))), max_pixels=10**9)

    def test_the_limit_can_be_set(self) -> None:
        data = encoded(Image.fromarray(PIXELS))
        check(decode(data, max_pixels=9 * 14), PIXELS)
        for source in (data, PIXELS, Image.fromarray(PIXELS)):
            with pytest.raises(ImageError, match="too large"):
                decode(source, max_pixels=9 * 14 - 1)
        assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS + 1  # so Pillow never warns


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "data", "words"),
        [
            ("empty.jpg", b"", "is empty"),
            ("text.png", b"hello, I am no image\n" * 20, "not an image"),
            ("page.png", b"<!DOCTYPE html><html></html>", "is a web page"),
            ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
            ("cut.png", encoded(Image.fromarray(PIXELS))[:200], "damaged or truncated"),
            ("cut.jpg", encoded(Image.fromarray(np.tile(PIXELS, (20, 20, 1))), "JPEG")[:4000], "damaged or truncated"),
            ("head.jpg", encoded(Image.fromarray(PIXELS), "JPEG")[:30], "damaged or truncated"),
        ],
    )
    def test_the_error_names_the_file(self, tmp_path: Path, name: str, data: bytes, words: str) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ImageError) as caught:
            decode(path)
        assert str(path) in caught.value.message and words in caught.value.message and caught.value.hint
        with pytest.raises(ImageError, match=words):
            decode(data)

    def test_paths_that_can_not_be_read(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing.png", tmp_path, "nul\0byte.png"):
            with pytest.raises(ImageError, match="can't read"):
                decode(path)

    def test_other_things(self) -> None:
        for thing in (5, None, [PIXELS], object()):
            with pytest.raises(ImageError, match="can't make an image"):
                decode(thing)

    def test_the_others_of_a_batch_still_get_their_answer(self, tmp_path: Path) -> None:
        good = encoded(Image.fromarray(PIXELS))
        answers: list[Any] = []
        for data in (good, good[:100], b"", good):
            try:
                answers.append(decode(data))
            except ImageError as error:
                answers.append(error)
        assert [isinstance(answer, ImageError) for answer in answers] == [False, True, True, False]
        check(answers[3], PIXELS)


FUZZ = """
import resource, signal, sys, random
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))  # unbounded memory ends in an error here
sys.path.insert(0, sys.argv[1])
from tests.tools.fuzz import rounds
from tests.tools.image_files import mutated, seeds
from vitdeploy.core.errors import ImageError
from vitdeploy.data.images import decode
generator, files = random.Random(int(sys.argv[2])), seeds()
decoded = refused = 0
for index in range(int(sys.argv[3])):
    data = mutated(files[index % len(files)], generator)
    signal.alarm(20)  # a hang ends the process
    try:
        pixels = decode(data, max_pixels=4_000_000)
        assert pixels.dtype == "uint8" and pixels.shape[2:] == (3,) and pixels.size <= 12_000_000
        decoded += 1
    except ImageError as error:
        assert error.message and error.hint and "the image" in error.message
        refused += 1
print(decoded, refused)
"""


def fuzz(seed: int, count: int) -> None:
    """In a process of its own: a crash, a hang or another exception than ImageError is a failure."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, str(root), str(seed), str(count)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"exit {result.returncode}: {result.stderr[-2000:]}"
    decoded, refused = map(int, result.stdout.split())
    assert decoded + refused == count
    assert decoded > count / 20 and refused > count / 20, "the mutations are too weak or too strong to say anything"


@pytest.mark.fuzz
def test_mutated_files_are_decoded_or_refused() -> None:
    fuzz(seed=1, count=rounds(500))


@pytest.mark.full
def test_thousands_of_mutated_files_are_decoded_or_refused() -> None:
    fuzz(seed=2, count=6000)


@pytest.mark.parametrize("largest", [65535, 4095, 1023])
def test_portable_greymaps_of_more_than_8_bits_keep_their_high_byte(largest: int, tmp_path: Path) -> None:
    values = np.linspace(0, largest, 90).round().astype(np.uint16).reshape(9, 10)
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 10 9 %d\n" % largest + values.astype(">u2").tobytes())
    expected = np.round(values / largest * 65535).astype(np.int64) >> 8
    check(decode(path), np.dstack([expected] * 3), tolerance=1)


@pytest.mark.parametrize("where", ["zTXt", "tEXt", "iTXt", "iCCP"])
def test_a_png_with_a_long_text_or_profile_is_sound(where: str) -> None:
    from PIL import PngImagePlugin

    info, options = PngImagePlugin.PngInfo(), {}
    if where == "iCCP":
        options["icc_profile"] = b"x" * 3_000_000
    elif where == "iTXt":
        info.add_itxt("Raw", "x" * 3_000_000, zip=True)
    else:
        for number in range(1 if where == "zTXt" else 30):
            info.add_text(f"Raw{number}", "x" * 3_000_000, zip=where == "zTXt")
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info, **options)
    check(decode(buffer.getvalue()), PIXELS)
    damaged = buffer.getvalue()[:-60]  # the text is no reason to take what else is wrong
    with pytest.raises(ImageError, match="damaged"):
        decode(damaged)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "a HEIC image", "pip install pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + b"\0" * 99, "a HEIC image", "pip install pillow-heif"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "a video", "single frames"),
        (b"<!DOCTYPE html><html>404</html>", "a web page", "download"),
        (b"\n <HTML>", "a web page", "download"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing", "PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS", "git lfs pull"),
        (b"%PDF-1.7", "a PDF document", "PNG"),
        (b"\xff\x0a\0\0", "a JPEG XL image", "convert"),
        (b"PK\3\4", "a zip archive", "unpack"),
        (b"", "is empty", "copy"),
        (b"something", "not an image that can be read", "JPEG"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content: bytes, message: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"IMG_1\.jpg is .*{message}|IMG_1\.jpg {message}") as caught:
        decode(path)
    assert hint in str(caught.value.hint)
    with pytest.raises(ImageError, match="row 3 of a.parquet"):
        decode(content, name="row 3 of a.parquet")
    with pytest.raises(ImageError, match="^the image "):
        decode(content)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("AVIF", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1"),
        ("GIF", b"GIF89a\x01\0\x01\0\0\0\0;"),
        ("JPEG", b"\xff\xd8\xff\xe0"),
        ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\0\0\0\0\0\x08\x02\0\0\0\xb3\xb5\xa9\xb9"),  # of no pixels
        ("TIFF", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        ("WEBP", b"RIFF\0\0\0\0WEBPVP8 "),
    ],
)
def test_a_damaged_file_is_not_taken_for_one_of_a_format_that_is_not_read(kind: str, content: bytes) -> None:
    if f".{kind.lower()}" not in image_suffixes() and kind != "JPEG":
        pytest.skip(f"this Pillow does not read {kind}")
    with pytest.raises(ImageError, match="damaged or truncated") as caught:
        decode(content)
    assert caught.value.hint == "make or copy the file again"


def test_an_address_is_not_fetched() -> None:
    with pytest.raises(ImageError, match="https://example.com/cat.png is an address") as caught:
        decode("https://example.com/cat.png")
    assert "download" in str(caught.value.hint)


def test_heic_is_read_where_pillow_heif_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that registers a reader, as the real one does."""
    import types

    from PIL import BmpImagePlugin

    from vitdeploy.data import images

    def register() -> None:
        Image.register_open("HEIF", BmpImagePlugin.DibImageFile, lambda start: start[4:8] == b"ftyp")
        Image.register_extension("HEIF", ".heic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    for name in ("_readers", "image_suffixes"):
        getattr(images, name).cache_clear()
    try:
        assert ".heic" in images.image_suffixes() and "HEIF" in images._readers(images.FORMATS)
    finally:
        for registry in (Image.OPEN, Image.EXTENSION):
            registry.pop("HEIF" if registry is Image.OPEN else ".heic", None)
        Image.ID.remove("HEIF")
        for name in ("_readers", "image_suffixes"):
            getattr(images, name).cache_clear()


@pytest.mark.parametrize(
    ("name", "why"),
    [("none.png", "No such file or directory"), (".", "Is a directory"), ("a\0b", "embedded null byte")],
)
def test_what_can_not_be_read_says_why_and_nothing_else(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        decode(tmp_path / name)
    assert caught.value.message == f"can't read the image {tmp_path / name}: {why}"
