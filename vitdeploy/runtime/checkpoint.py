"""A checkpoint that is not exported yet, in PyTorch: what it says of images, for a first look right after training."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from vitdeploy.core.errors import ImageError
from vitdeploy.core.specs import TOP_K, Prediction
from vitdeploy.data.images import Source, decode
from vitdeploy.runtime.predictions import Namer

__all__ = ["predict_checkpoint"]


def predict_checkpoint(
    model: str | os.PathLike[str],
    images: Sequence[Source],
    top_k: int = TOP_K,
    *,
    threads: int | None = None,
    threshold: float | None = None,
    trust_remote_code: bool = False,
) -> list[Prediction | ImageError]:
    """Classify images, one at a time, with a checkpoint and the image processor that it was trained with.

    Args:
        model: a checkpoint: its folder, or a Hub id.
        images: as `vitdeploy.data.images.decode` takes them.
        top_k: how many of the best classes each prediction lists.
        threads: CPU threads of PyTorch; None: its own choice.
        threshold: the score from which one of several labels counts; None: the checkpoint's own, else 0.5.
        trust_remote_code: run Python code that comes with the checkpoint.

    Returns:
        In order, a prediction for each image, or the error of one that can't be used.

    Raises:
        ModelError: the checkpoint can't be loaded.
        InputError: a threshold that is not between 0 and 1, or for a model that has no use for it.
    """
    from vitdeploy.backends.pytorch.runner import PyTorchRunner

    answers: list[Prediction | ImageError] = []
    with PyTorchRunner(model, threads, trust_remote_code=trust_remote_code) as runner:
        given = runner.threshold if threshold is None else threshold
        namer = Namer(runner.labels, f"{os.fspath(model)} in PyTorch", runner.task, given)
        for image in images:
            try:
                pixels = decode(image)
            except ImageError as error:
                answers.append(error)
            else:
                answers.append(namer.prediction(runner.infer({"image": pixels[np.newaxis]})["logits"], top_k))
    return answers
