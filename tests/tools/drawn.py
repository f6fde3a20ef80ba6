"""Small drawn images with several labels each, from which a tiny ViT learns in seconds which of them each has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["COLOURS", "draw", "write_tagged"]

COLOURS = {"blue": (30, 60, 230), "green": (40, 200, 60), "red": (220, 40, 30)}
SIDE = 16


def draw(count: int, seed: int) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]:
    """Images of 16 pixels with a patch of each colour that they are labelled with, in one of four places, and which
    colours those are, (count, 3)."""
    generator = np.random.default_rng(seed)
    has = generator.random((count, len(COLOURS))) < 0.45
    images = []
    for row in has:
        pixels = generator.integers(110, 140, (SIDE, SIDE, 3)).astype(np.uint8)
        places = generator.permutation(4)
        for place, colour in zip(places, np.array(list(COLOURS.values()))[row], strict=False):
            top, left = divmod(int(place), 2)
            pixels[8 * top + 1 : 8 * top + 7, 8 * left + 1 : 8 * left + 7] = colour
        images.append(pixels)
    return images, has


def write_tagged(root: Path, counts: dict[str, int], *, as_csv: bool = False) -> Path:
    """A folder of splits of drawn images, each with a metadata.jsonl (or .csv) that has a list of labels a row."""
    names = np.array(list(COLOURS))
    for seed, (split, count) in enumerate(counts.items()):
        folder = root / split
        folder.mkdir(parents=True)
        rows = []
        for number, (pixels, row) in enumerate(zip(*draw(count, seed), strict=True)):
            Image.fromarray(pixels).save(folder / f"{number}.png")
            rows.append((f"{number}.png", names[row].tolist()))
        if as_csv:
            cells = [(name, json.dumps(tags).replace('"', '""')) for name, tags in rows]
            text = "file_name,labels\n" + "".join(f'{name},"{cell}"\n' for name, cell in cells)
        else:
            text = "".join(json.dumps({"file_name": name, "labels": tags}) + "\n" for name, tags in rows)
        (folder / f"metadata.{'csv' if as_csv else 'jsonl'}").write_text(text, encoding="utf-8")
    return root
