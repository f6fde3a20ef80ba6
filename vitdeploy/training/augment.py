"""Random changes to training images; RandAugment, mixup and CutMix are kornia's.

Every draw depends on (seed, epoch, position of the image) alone, so that an interrupted run, worker processes and
several processes see the same images as one that was never disturbed.

- RandAugment: https://arxiv.org/abs/1909.13719. Two operations an image, on pixels of 0..1, then normalised again.
- mixup: https://arxiv.org/abs/1710.09412. x = l x_i + (1 - l) x_j, the targets alike (of several labels an image each
  label's), l ~ Beta(alpha, alpha).
- CutMix: https://arxiv.org/abs/1905.04899. A box of x_j in x_i; targets by area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vitdeploy.core.errors import require

__all__ = ["Augmenter", "Mixer", "RandAugmenter"]

_SHIFT_FRACTION = 8  # up to an eighth of the side, as 4 of 32 pixels is usual for CIFAR-10
_OPERATIONS = 2
_FLIP_SHIFT, _RANDAUGMENT, _MIX = 1, 2, 3  # so that the same image gets other draws for other purposes
Draw = tuple[int, int]  # (epoch, position of the image)


class Augmenter:
    """Shifts and flips on (batch, 3, height, width), each image on its own; then RandAugment, if there is one."""

    def __init__(self, kind: str, seed: int, randaugmenter: RandAugmenter | None = None) -> None:
        self._torch = require("torch", extra="build")
        self._flip, self._shift = kind == "flip-shift", kind in ("shift", "flip-shift")
        self._seed, self._randaugmenter = seed, randaugmenter

    def __call__(self, pixels: Any, draws: Sequence[Draw]) -> Any:
        """A changed copy (or `pixels` itself where nothing is asked for)."""
        torch = self._torch
        count, _, height, width = pixels.shape
        uniform = np.array([np.random.default_rng([_FLIP_SHIFT, self._seed, *draw]).random(3) for draw in draws])
        if self._flip:
            mirrored = torch.from_numpy(uniform[:, 0] < 0.5).view(count, 1, 1, 1)
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        if self._shift:
            rows, columns = _moved(torch, uniform[:, 1], height), _moved(torch, uniform[:, 2], width)  # (batch, side)
            image = torch.arange(count)
            pixels = pixels.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
            pixels = pixels.permute(0, 3, 1, 2).contiguous()  # (batch, 3, height, width)
        return pixels if self._randaugmenter is None else self._randaugmenter(pixels, draws)


def _moved(torch: Any, uniform: Any, side: int) -> Any:
    """Which row (or column) each one is taken from after a shift: (batch, side), edges repeated."""
    most = side // _SHIFT_FRACTION
    offsets = torch.from_numpy(np.floor(uniform * (2 * most + 1)).astype(np.int64)) - most  # (batch,)
    return (torch.arange(side)[None, :] + offsets[:, None]).clamp(0, side - 1)


class RandAugmenter:
    """RandAugment of magnitude 1..29 on normalised images; `mean` and `deviation` (3,) are the image processor's."""

    def __init__(self, magnitude: int, seed: int, mean: Sequence[float], deviation: Sequence[float]) -> None:
        self._torch = require("torch", extra="build")
        auto = require("kornia.augmentation.auto", extra="augment")
        self._operations = auto.RandAugment(n=_OPERATIONS, m=magnitude, transformation_matrix_mode="skip")
        self._seed = seed
        self._mean = self._torch.tensor(mean).view(1, 3, 1, 1)
        self._deviation = self._torch.tensor(deviation).view(1, 3, 1, 1)

    def __call__(self, pixels: Any, draws: Sequence[Draw]) -> Any:
        """(batch, 3, height, width), each image with operations of its own."""
        raw = (pixels * self._deviation + self._mean).clamp(0, 1)
        changed = []
        for image, draw in zip(raw.split(1), draws, strict=True):
            with _seeded(self._torch, _RANDAUGMENT, self._seed, *draw):
                changed.append(self._operations(image))
        return (self._torch.cat(changed).clamp(0, 1) - self._mean) / self._deviation


class Mixer:
    """Mixup and CutMix over a batch; where both are on, each batch gets one of them."""

    def __init__(self, mixup: float, cutmix: float, classes: int, seed: int) -> None:
        self._torch = require("torch", extra="build")
        augmentation = require("kornia.augmentation", extra="augment")
        keys = ["input", "class"]
        self._mixup = augmentation.RandomMixUpV2(data_keys=keys) if mixup else None
        cut = augmentation.RandomCutMixV2
        self._cutmix = cut(data_keys=keys, beta=cutmix, use_correct_lambda=True) if cutmix else None
        self._alpha, self._classes, self._seed = mixup, classes, seed

    def __call__(self, pixels: Any, labels: Any, draw: Draw) -> tuple[Any, Any]:
        """(batch, 3, height, width) and (batch,) class ids, or (batch, classes) of several labels -> mixed pixels and
        (batch, classes) probabilities."""
        torch = self._torch
        wanted = torch.nn.functional.one_hot(labels, self._classes).float() if labels.ndim == 1 else labels
        places = torch.arange(len(labels))  # kornia takes one number an image, and says which two were mixed
        with _seeded(torch, _MIX, self._seed, *draw):
            both = self._mixup is not None and self._cutmix is not None
            if self._cutmix is None or (both and bool(torch.rand(()) < 0.5)):
                pixels, mixed = self._mix(pixels, places)
            else:
                pixels, mixed = self._cutmix(pixels, places)
                mixed = mixed[0]  # (mixes, batch, 3) with one mix
                mixed[:, 2] = 1 - mixed[:, 2]  # kornia's CutMix gives the first image's share, its mixup the second's
        first, second, share = mixed[:, 0].long(), mixed[:, 1].long(), mixed[:, 2:].float()
        targets = (1 - share) * wanted[first] + share * wanted[second]
        return pixels, targets  # (batch, 3, height, width), (batch, classes)

    def _mix(self, pixels: Any, labels: Any) -> Any:
        """kornia draws its shares evenly; mixup's are Beta(alpha, alpha), so they are given to it."""
        assert self._mixup is not None
        parameters = self._mixup.forward_parameters(pixels.shape)
        alpha = self._torch.tensor(float(self._alpha))
        shares = self._torch.distributions.Beta(alpha, alpha).sample((len(pixels),))
        parameters["mixup_lambdas"] = shares.to(parameters["mixup_lambdas"].dtype)
        return self._mixup(pixels, labels, params=parameters)


@contextmanager
def _seeded(torch: Any, *key: int) -> Iterator[None]:
    """PyTorch's own randomness, seeded by `key` inside the block and put back after it."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
