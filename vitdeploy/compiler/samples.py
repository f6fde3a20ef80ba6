"""The images that an export is checked with: photographs, drawn shapes and noise, in batches of 1, 2 and 7; and drawn
images with the statistics of photographs, on which a calibration is checked."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vitdeploy.bundle import Bundle
from vitdeploy.data.images import decode

__all__ = ["check_batches", "dead_leaves", "drawn_image", "static_size"]

_SIZES = ((427, 640), (32, 32), (301, 97))


def check_batches(input_size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """uint8 (batch, height, width, 3): one photograph; two images of noise; seven parts of photographs, shapes, noise.

    Every batch has a size of its own, or all have `input_size`. Without scikit-learn, which brings the photographs,
    drawn shapes take their place.
    """
    generator = np.random.default_rng(0)
    sizes = _SIZES if input_size is None else (input_size,) * 3
    photographs = _photographs(sizes[0], generator)
    noise = generator.integers(0, 256, (2, *sizes[1], 3), dtype=np.uint8)
    mixed = [_cut(photographs[index % len(photographs)], sizes[2], generator) for index in range(4)]
    mixed += [drawn_image(*sizes[2], generator) for _ in range(2)]
    mixed.append(generator.integers(0, 256, (*sizes[2], 3), dtype=np.uint8))
    return [_cut(photographs[0], sizes[0], generator)[np.newaxis], noise, np.stack(mixed)]


def _photographs(size: tuple[int, int], generator: np.random.Generator) -> list[np.ndarray]:
    """The two that scikit-learn brings; its files are read without importing it, which takes a second."""
    found = find_spec("sklearn")
    folders = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in (folder / "datasets" / "images").glob("*.jpg"))
    return [decode(file) for file in files] or [drawn_image(*size, generator) for _ in range(2)]


def _cut(image: np.ndarray, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A part of the image; where it is too small, it is repeated beside itself."""
    height, width = size
    times = (-(-height // image.shape[0]), -(-width // image.shape[1]), 1)
    whole = np.tile(image, times) if times != (1, 1, 1) else image
    top, left = (int(generator.integers(0, have - want + 1)) for have, want in zip(whole.shape, size, strict=False))
    return whole[top : top + height, left : left + width]


def drawn_image(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth gradients, edges and noise: uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * y / height, 255 * x / width, 127 + 127 * np.sin(x / 7.0) * np.cos(y / 5.0)], axis=-1)
    smooth[(x // 9 + y // 11) % 5 == 0] = 250
    noise = generator.integers(-20, 21, size=smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def static_size(bundle: Bundle) -> tuple[int, int] | None:
    """(height, width) of the raw images that the bundle's graphs were made for; None if they take any."""
    height, width = bundle.manifest.inputs[0].shape[1:3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def dead_leaves(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Shaded discs and boxes of all scales that cover each other, and grain: uint8 (height, width, 3).

    Dead leaves have the edges and the spectrum of photographs (Lee, Mumford and Huang 2001). One in five is grey.
    """
    y, x = np.mgrid[:height, :width]
    edge = min(height, width)
    grey = generator.random() < 0.2
    image = np.empty((height, width, 3))
    image[:] = _colour(grey, generator)
    for _ in range(40):
        radius = edge * min(0.6, 0.04 / (np.sqrt(generator.random()) + 1e-3))
        top, left = generator.uniform(-0.1, 1.1, 2) * (height, width)
        angle, narrow = generator.uniform(0, np.pi), generator.uniform(0.3, 1)
        u = (x - left) * np.cos(angle) + (y - top) * np.sin(angle)
        v = ((y - top) * np.cos(angle) - (x - left) * np.sin(angle)) / narrow
        inside = u**2 + v**2 < radius**2 if generator.random() < 0.5 else np.maximum(abs(u), abs(v)) < radius
        shade = generator.normal(0, 30) * u / radius
        image[inside] = (_colour(grey, generator) + shade[..., np.newaxis])[inside]
    image += generator.normal(0, generator.uniform(0, 12), image.shape)
    return image.clip(0, 255).astype(np.uint8)


def _colour(grey: bool, generator: np.random.Generator) -> np.ndarray:
    colour: np.ndarray = np.full(3, generator.uniform(0, 255)) if grey else generator.uniform(0, 255, 3)
    return colour
