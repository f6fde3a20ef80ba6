"""The pictures: attention rollout over the image, the layers on the way, position similarity, patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.explain.canvas import FAINT, MARGIN, SOFT, Canvas, colours, overlay
from vitdeploy.explain.inside import Inside

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["draw_patches", "draw_positions", "draw_rollout"]

_SIDE = 400  # about the longer side of a large picture
_PAGE = 3 * MARGIN + 2 * _SIDE


def draw_rollout(inside: Inside, rolled: np.ndarray, layers_alone: np.ndarray) -> Image:
    """The image, the rollout of all layers over it, and below the attention of each layer alone.

    Args:
        rolled: (rows, columns) and
        layers_alone: (layers, rows, columns) of `token_maps`, in multiples of an even spread.
    """
    height, width = _fit(inside.pixels.shape[0], inside.pixels.shape[1], _SIDE)
    layers = len(layers_alone)
    across = min(layers, 6 if layers <= 12 else 8)
    small_width = (_PAGE - 2 * MARGIN - 10 * (across - 1)) // across
    small_width = min(small_width, 128)
    small_height = max(1, round(small_width * height / width))
    rows = -(-layers // across)
    lines = [
        f"{inside.source}, {inside.form}: {inside.prediction.label}, {inside.prediction.top_k[0].text}.",
        f"From which patches {inside.looking} can have drawn, all {layers} layers multiplied (attention rollout).",
        "It tells where information flows from, not which of it decided.",
    ]
    top = 54 + 19 * len(lines) + 16
    page_height = top + height + 98 + rows * (small_height + 30) + MARGIN
    page = Canvas(_PAGE, page_height)
    page.heading("Attention rollout", lines)
    right = _PAGE - MARGIN - width
    low, high = _limits(rolled)
    for x in (MARGIN, right):
        page.box((x, top), (height, width))
    page.paste((MARGIN, top), inside.pixels, (height, width))
    page.paste((right, top), overlay(inside.pixels, rolled, (height, width), (low, high)), (height, width))
    page.text((MARGIN, top + height + 8), f"what the model sees, {_size(inside.pixels)} pixels", size=12, fill=SOFT)
    ends = (f"{low:.1f}", f"{high:.1f}" if high >= rolled.max() else f"{high:.1f} to {rolled.max():.1f}")
    even = (1 - low) / (high - low)
    page.bar((right, top + height + 8), width, "heat", [(0, ends[0]), (even, "1"), (1, ends[1])])
    page.text((right, top + height + 42), "times as much as with an even spread (1)", size=12, fill=SOFT)
    below = top + height + 72
    words = f"the attention of {inside.looking} in each layer alone, mean of its heads: from 0 (dark) to an upper end"
    page.text((MARGIN, below), f"{words} of its own; in grey its largest value", size=12, fill=SOFT)
    for layer, values in enumerate(layers_alone):
        x = MARGIN + (layer % across) * (small_width + 10)
        y = below + 22 + (layer // across) * (small_height + 30)
        page.paste((x, y), colours(values, 0, _cap(values), "heat"), (small_height, small_width))
        page.text((x, y + small_height + 4), f"layer {layer + 1}", size=12)
        page.text((x + small_width, y + small_height + 4), f"{values.max():.1f}", size=12, fill=FAINT, anchor="ra")
    return page.image


def draw_positions(inside: Inside, similarity: np.ndarray) -> Image:
    """One tile a position, and in it its cosine similarity to every position.

    Args:
        similarity: (rows, columns, rows, columns) of `position_similarity`.
    """
    rows, columns = similarity.shape[:2]
    step = max(1, -(-max(rows, columns) // 16))  # not more than 16 tiles a side
    shown_rows, shown_columns = range(0, rows, step), range(0, columns, step)
    cell = max(2, 720 // (max(len(shown_rows), len(shown_columns)) * max(rows, columns)))
    tile_height, tile_width, gap = cell * rows, cell * columns, 5
    page_width = max(2 * MARGIN + len(shown_columns) * (tile_width + gap), 560)
    lines = [
        f"{inside.source}: each tile is one position of the {rows}x{columns} patches; its colours are the cosine",
        "similarity of that position's embedding to all others. A model that knows neighbours is red near itself.",
    ]
    if step > 1:
        lines.append(f"Every {step}th position of a row and column is shown.")
    top = 54 + 19 * len(lines) + 16
    bottom = top + len(shown_rows) * (tile_height + gap)
    page = Canvas(page_width, bottom + 62)
    page.heading("Position embeddings", lines)
    for down, row in enumerate(shown_rows):
        for right, column in enumerate(shown_columns):
            at = (MARGIN + right * (tile_width + gap), top + down * (tile_height + gap))
            page.paste(at, colours(similarity[row, column], -1, 1, "sign"), (tile_height, tile_width))
    page.bar((MARGIN, bottom + 12), min(360, page_width - 2 * MARGIN), "sign", [(0, "-1"), (0.5, "0"), (1, "1")])
    return page.image


def draw_patches(inside: Inside) -> Image:
    """The image as the model cuts it, in the order of the tokens."""
    rows, columns = inside.grid
    patch_height, patch_width = inside.patch_size
    scale = max(1, 2 * _SIDE // max(rows * patch_height, columns * patch_width))
    gap = 4 if max(rows, columns) <= 20 else 2
    tile = (patch_height * scale, patch_width * scale)
    special = inside.special_tokens
    before = {0: "", 1: " behind the class token"}.get(special, f" behind {special} other tokens")
    lines = [
        f"{inside.source}: {_size(inside.pixels)} pixels in {rows}x{columns} patches of {patch_height}x{patch_width},"
        f" {rows * columns} tokens{before}.",
        "Resized and cropped as in training. Tokens run along the rows; the first and last of each row are numbered.",
    ]
    top = 54 + 19 * len(lines) + 16
    left = MARGIN + 26
    width = max(left + columns * (tile[1] + gap) + MARGIN + 26, 620)
    page = Canvas(width, top + rows * (tile[0] + gap) + MARGIN)
    page.heading("Patches", lines)
    inner = (rows * (tile[0] + gap) - gap, columns * (tile[1] + gap) - gap)
    page.box((left, top), inner, gap)  # seen between the patches, so that white ones have edges
    for row in range(rows):
        for column in range(columns):
            patch = inside.pixels[
                row * patch_height : (row + 1) * patch_height, column * patch_width : (column + 1) * patch_width
            ]
            page.paste((left + column * (tile[1] + gap), top + row * (tile[0] + gap)), patch, tile)
        middle = top + row * (tile[0] + gap) + tile[0] / 2
        page.text((left - 8, middle), str(special + row * columns), size=11, fill=FAINT, anchor="rm")
        end = left + columns * (tile[1] + gap) + 4
        page.text((end, middle), str(special + (row + 1) * columns - 1), size=11, fill=FAINT, anchor="lm")
    return page.image


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Where the rollout's colours begin and end; a map that is nearly even is drawn as such, not stretched."""
    return float(min(values.min(), 0.75)), float(max(1.5, min(values.max(), np.quantile(values, 0.95))))


def _cap(values: np.ndarray) -> float:
    """Where a colour scale ends: some models keep notes in one or two patches, which would leave all others black."""
    return float(min(values.max(), max(2.0, np.quantile(values, 0.95))))


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `side`."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
