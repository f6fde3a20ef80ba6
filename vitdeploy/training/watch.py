"""A run as TensorBoard shows it, while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdeploy.core.errors import require
from vitdeploy.training.scoring import SCORINGS

__all__ = ["watching"]

_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "eval_loss": "validation/loss",
    **{f"eval_{name}": f"validation/{name}" for scoring in SCORINGS for name in scoring.names},
    **{
        f"{split}_{name}": f"final/{split}_{name}"
        for split in ("validation", "test")
        for scoring in SCORINGS
        for name in scoring.names
    },
}


@contextmanager
def watching(trainer: Any, folder: Path | None) -> Iterator[None]:
    """Write the trainer's log to event files in `folder` inside the block; None: don't.

    What a run that is taken up does once more replaces what was there.
    """
    if folder is None:
        yield
        return
    transformers = require("transformers", extra="build")
    require("tensorboard", extra="tensorboard")
    writer_class = require("torch.utils.tensorboard", extra="tensorboard").SummaryWriter

    class TensorBoard(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.writer: Any = None

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.writer is None:
                self.writer = writer_class(str(folder), purge_step=state.global_step)
            for name, value in (logs or {}).items():
                if name in _NAMES:
                    self.writer.add_scalar(_NAMES[name], float(value), state.global_step)
            self.writer.flush()

    callback = TensorBoard()
    trainer.add_callback(callback)
    try:
        yield
    finally:
        trainer.remove_callback(callback)
        if callback.writer is not None:
            callback.writer.close()
