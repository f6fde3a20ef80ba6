"""What lint is to run a graph on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ARRAYS", "ImageRequest"]

ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class ImageRequest:
    """What to run a graph on.

    Args:
        images: a dataset by name, Hub id or path; or a .npy or .npz file with what the input takes, image by image.
        split: which part of a dataset.
        count: at most so many.
        processor: a checkpoint whose image processor prepares images for a graph that takes floats.
    """

    images: str
    split: str = "train"
    count: int = 16
    processor: str | None = None

    def __str__(self) -> str:
        return self.images if self.images.endswith(ARRAYS) else f"{self.images}/{self.split}"
