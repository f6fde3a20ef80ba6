"""Drawing with Pillow: colour maps, maps of numbers, labels, colour bars. All coordinates are pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FAINT", "INK", "LINE", "SOFT", "Canvas", "colours", "overlay"]

PAPER, INK, SOFT, FAINT, LINE = "#ffffff", "#1d2129", "#5b6472", "#8a93a1", "#c9ced6"
MARGIN = 28

# Stops of the colour maps, evenly spaced. "heat" rises in lightness from dark violet to pale yellow, so that it reads
# in grey print too; "sign" is blue below the middle, white in it, red above.
_MAPS = {
    "heat": ("#0d0829", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf"),
    "sign": ("#2b5c9e", "#7fa9d6", "#f7f6f4", "#e08a75", "#a8242f"),
}


def colours(values: np.ndarray, low: float, high: float, name: str) -> np.ndarray:
    """Values of any shape -> uint8 (..., 3): `low` is the map's first colour, `high` its last."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _MAPS[name]], dtype=np.float64)
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(stops) - 1)
    below = np.minimum(share.astype(int), len(stops) - 2)
    part = (share - below)[..., np.newaxis]
    mixed = stops[below] * (1 - part) + stops[below + 1] * part
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def overlay(pixels: np.ndarray, values: np.ndarray, size: tuple[int, int], limits: tuple[float, float]) -> np.ndarray:
    """A map (rows, columns) laid over an image, both brought to `size` (height, width).

    Where the map is at the lower of `limits` the image is dark and grey, at the upper one it has its colours under a
    warm tint. The map is cut off at its limits before it is spread over the pixels, linearly, so that a patch far above
    them colours its neighbours no more than one that just reaches them.
    """
    height, width = size
    image = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    low, high = limits
    shares = np.clip((values - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    smooth = Image.fromarray(shares).resize((width, height), Image.Resampling.BILINEAR)
    share = np.asarray(smooth, dtype=np.float64)[..., np.newaxis]
    grey = 0.45 * image.mean(axis=2, keepdims=True) + 30
    tint = colours(share[..., 0], 0, 1, "heat").astype(np.float64)
    weight = 0.45 + 0.1 * share
    mixed = (grey * (1 - share) + image * share) * (1 - weight) + tint * weight
    return np.asarray(np.clip(np.rint(mixed), 0, 255), dtype=np.uint8)


class Canvas:
    """A white page; every method takes the top left corner of what it draws, as (x, y)."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, at: tuple[float, float], words: str, *, size: int = 13, fill: str = INK, anchor: str = "la") -> None:
        """One line; `anchor` as Pillow's: "la" from the top left, "ma" centred, "ra" to the right edge."""
        self._draw.text(at, words, fill=fill, font=_font(size), anchor=anchor)

    def heading(self, title: str, lines: Sequence[str]) -> int:
        """Title and explanation at the top; returns the y below them."""
        self.text((MARGIN, 22), title, size=20)
        for number, line in enumerate(lines):
            self.text((MARGIN, 54 + 19 * number), line, fill=SOFT)
        return 54 + 19 * len(lines) + 16

    def paste(self, at: tuple[int, int], pixels: np.ndarray, size: tuple[int, int]) -> None:
        """uint8 (height, width, 3), brought to `size` (height, width) in sharp squares."""
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize((size[1], size[0]), Image.Resampling.NEAREST)
        self.image.paste(picture, at)

    def box(self, at: tuple[int, int], size: tuple[int, int], edge: int = 1) -> None:
        """A grey (height, width) box that shows `edge` pixels around what is pasted at the same place."""
        self._draw.rectangle((at[0] - edge, at[1] - edge, at[0] + size[1] - 1 + edge, at[1] + size[0] - 1 + edge), LINE)

    def bar(self, at: tuple[int, int], width: int, name: str, ticks: Sequence[tuple[float, str]]) -> None:
        """A horizontal colour bar; below it, words at shares 0..1 of its width."""
        ramp = np.repeat(np.linspace(0, 1, width)[np.newaxis], 12, axis=0)
        self.paste(at, colours(ramp, 0, 1, name), (12, width))
        for share, words in ticks:
            x = at[0] + share * width
            if 0 < share < 1:
                self._draw.line((x, at[1] + 12, x, at[1] + 16), fill=SOFT)
            anchor = "la" if share == 0 else "ra" if share == 1 else "ma"
            self.text((x, at[1] + 17), words, size=12, fill=SOFT, anchor=anchor)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
