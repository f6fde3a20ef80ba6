"""Makes a bundle's self-test: draws its images, and finds each form's bounds by running the form as a device would.

    bound of an image = max(2 (its difference here + the median difference of all images), 0.005 range of the logits)

Another backend adds in another order and, in INT8, rounds other values up, so that an image which came off well here
need not do so there. TF32, what FP32 means on many GPUs, needs the smallest bound.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitdeploy import __version__
from vitdeploy.backends.base import Runner
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bundle import Artifact, Bundle, BundleEditor
from vitdeploy.bundle.selftest import FILE, Selftest
from vitdeploy.compiler.samples import drawn_image, static_size
from vitdeploy.core import progress
from vitdeploy.core.errors import BundleError, InputError, ModelError
from vitdeploy.core.machine import version
from vitdeploy.core.specs import ShapeRange
from vitdeploy.data.images import decode, image_suffixes
from vitdeploy.runtime.verification import answers

__all__ = ["SelftestStage", "bounds_of", "draw", "measured", "own_images", "write"]

_SIZES = ((32, 32), (24, 40), (47, 31), (64, 48))
_EACH = 8  # images of a size
_MARGIN = 2.0
_FLOOR = 0.005
_LONGEST_EDGE = 128
_MOST_OWN = 64


def draw() -> list[np.ndarray]:
    """32 small images, uint8 (height, width, 3), of four sizes: drawn in colours whose channels differ, and noise."""
    generator = np.random.default_rng(24)
    images = []
    for height, width in _SIZES:
        for number in range(_EACH):
            image: np.ndarray = generator.integers(0, 256, (height, width, 3)).astype(np.float64)
            if number % 4 != 3:  # another colour each, so that exchanged channels are another picture
                image = drawn_image(height, width, generator) * generator.permutation((1.0, 0.5, 0.1))
            images.append(image.astype(np.uint8))
    return images


def own_images(folder: str | os.PathLike[str]) -> list[np.ndarray]:
    """The pictures of a folder, made so small that their longest edge is 128 pixels.

    Raises:
        InputError: there is no such folder, or it holds none, or more than 64.
        ImageError: one can't be decoded.
    """
    from PIL import Image

    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}", hint="name a folder of pictures")
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in image_suffixes())
    if not 1 <= len(files) <= _MOST_OWN:
        raise InputError(f"{root} holds {len(files)} pictures", hint=f"give 1 to {_MOST_OWN}")
    made = []
    for file in files:
        picture = Image.fromarray(decode(file))
        picture.thumbnail((_LONGEST_EDGE, _LONGEST_EDGE))
        made.append(np.asarray(picture))
    return made


def write(editor: BundleEditor, selftest: Selftest, single: Artifact) -> Artifact:
    """Put it into the bundle; `single` is the FP32 graph that it is of."""
    selftest.write(editor.path_for(FILE))
    return editor.add(FILE, kind="selftest", built_from=single.sha256, built_with={"vitdeploy": __version__})


def bounds_of(selftest: Selftest, differences: np.ndarray | float = 0.0) -> np.ndarray:
    """The bounds of a form, (images,), by the largest difference of its logits on each."""
    floor = _FLOOR * selftest.spread(next(iter(selftest.logits)))
    found = np.maximum(_MARGIN * (differences + np.median(differences)), floor)
    bounds: np.ndarray = np.broadcast_to(found, len(selftest.images)).astype(np.float32)
    return bounds


def measured(selftest: Selftest, runner: Runner, title: str) -> np.ndarray:
    """By how much the logits of a form, which an open runner computes as a device would, are off at most, (images,).

    Raises:
        ModelError: they are not finite.
    """
    found = answers(runner, selftest)
    assert found is not None, "a graph takes the images that it was exported for"
    if not np.isfinite(found.logits).all():
        raise ModelError(
            f"the {title} form of this model gives no finite logits: an activation left its range",
            hint="give it images like yours to look for large values: --calibration-data; or use FP32",
        )
    return found.differences


class SelftestStage:
    """The self-test of a bundle under a build, in a change of the bundle that the caller opened; made from what the
    FP32 graph answers where there is none, as in a bundle of an earlier version."""

    def __init__(self, bundle: Bundle, editor: BundleEditor, single: Artifact) -> None:
        self._bundle, self._editor, self._single = bundle, editor, single
        self._before: Selftest | None = None
        if Selftest.is_current(bundle):
            with suppress(BundleError):  # damaged: it is made anew
                self._before = Selftest.of(bundle)
        self._now = self._before

    @property
    def current(self) -> Selftest:
        """As it is, or will be when it is written."""
        if self._now is None:
            size, images = static_size(self._bundle), draw()
            empty = Selftest(tuple(images), {}, {}, f"ONNX Runtime {version('onnxruntime')}, of model.onnx")
            made = self._answered(empty, size)
            self._now = made.with_bounds(self._single.path, bounds_of(made))
        return self._now

    def _answered(self, selftest: Selftest, size: tuple[int, int] | None) -> Selftest:
        """With what the FP32 graph answers to the images, enlarged to a size."""
        nothing = np.zeros((len(selftest.images), 1), np.float32)
        with OnnxRuntimeRunner(self._bundle.file(self._single)) as runner:
            found = answers(runner, replace(selftest, logits={size: nothing}))
        assert found is not None
        return selftest.with_logits(size, found.logits)

    def lacks(self, path: str) -> bool:
        """Whether a graph has no bounds yet."""
        return path not in self.current.bounds

    def add(self, path: str, runner: Runner, title: str) -> None:
        """Find a graph's bounds."""
        self._now = self.current.with_bounds(path, bounds_of(self.current, measured(self.current, runner, title)))

    def cover(self, heights: ShapeRange | None, widths: ShapeRange | None) -> None:
        """Have answers that an engine can be asked for, which takes images of these sizes; None: as the graph does."""
        if heights is None or widths is None:
            return
        current = self.current
        for size in current.logits:
            shapes = [current.shape(place, size) for place in range(len(current.images))]
            if 2 * sum(_within(heights, shape[0]) and _within(widths, shape[1]) for shape in shapes) >= len(shapes):
                return
        self._now = self._answered(current, (heights.optimum, widths.optimum))

    def write(self) -> None:
        """Put it into the bundle, where it has changed."""
        if self.current is not self._before:
            if self._before is None:
                progress.note(
                    f"{FILE}: what the FP32 graph answers to small images, and how far from it each form may be."
                )
            write(self._editor, self.current, self._single)


def _within(extent: ShapeRange, size: int) -> bool:
    return extent.minimum <= size <= extent.maximum
