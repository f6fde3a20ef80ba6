"""Where a run's images come from, and how often the test images are looked at."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.training import DIGITS
from vitdeploy.core.errors import InputError
from vitdeploy.data import ImageDataset, load_dataset
from vitdeploy.models.checkpoints import load_checkpoint
from vitdeploy.training import FinetuneConfig, finetune
from vitdeploy.training.objective import CrossEntropy

Short = Callable[..., FinetuneConfig]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """The digits as parquet files in which columns can't be guessed: two of images, two of classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    root = tmp_path / "tables"
    root.mkdir()
    for split, count in (("train", 200), ("test", 50)):
        digits = load_dataset("digits", split, limit=count)
        images = [image for image, _ in digits]
        classes = [digits.labels[index] for index in digits.label_ids]
        table = {
            "scan": [png(image) for image in images],
            "inverse": [png(255 - image) for image in images],
            "digit": classes,
            "parity": ["even" if int(name) % 2 == 0 else "odd" for name in classes],
        }
        pq.write_table(pa.table(table), root / f"{split}.parquet")
    return root


def test_parquet_with_columns_that_are_named(
    tables: Path, scratch: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """The class names of the column become the checkpoint's, and its images are the ones that were seen."""
    common = ("finetune", scratch, "--dataset", tables, "--max-steps", 4, "--batch-size", 20, "--threads", 1)
    columns = ("--image-column", "scan", "--label-column")
    for name, label_column in (("digits", "digit"), ("parity", "parity")):
        outcome = cli(*common, "--output", tmp_path / name, *columns, label_column)
        assert outcome.exit_code == 0, outcome.stderr
    assert load_checkpoint(tmp_path / "digits").labels == tuple(DIGITS)
    assert load_checkpoint(tmp_path / "parity").labels == ("even", "odd")
    outcome = cli(*common, "--output", tmp_path / "inverse", "--image-column", "inverse", "--label-column", "parity")
    assert outcome.exit_code == 0, outcome.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parity", "inverse")]
    assert weights[0] != weights[1]


def test_the_test_images_decide_nothing(short: Short, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation comes with every evaluation, test at the end; before that each image is decoded once, to be sure."""
    seen: Counter[tuple[str, int]] = Counter()
    order: list[str] = []
    read = ImageDataset.image

    def counted(self: ImageDataset, index: int) -> Any:
        seen[self.split, index] += 1
        order.append(self.split)
        return read(self, index)

    monkeypatch.setattr(ImageDataset, "image", counted)
    result = finetune(short())
    times = {split: {count for (name, _), count in seen.items() if name == split} for split in ("validation", "test")}
    assert times["test"] == {2} and times["validation"] == {len(result.curve.validation) + 1}
    assert sum(name == "test" for name, _ in seen) == 40
    assert order[:40] == order[-40:] == ["test"] * 40  # before anything was trained, and after everything was decided
    assert result.data["test"]["used_for"].startswith("one look")
    assert "best weights" in result.data["validation"]["used_for"]


def test_image_size_and_threads_of_a_run(short: Short, tmp_path: Path) -> None:
    import torch

    class Peek(CrossEntropy):
        def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
            seen.add((tuple(batch["pixel_values"].shape[2:]), torch.get_num_threads()))
            return super().__call__(module, batch)

    seen: set[tuple[tuple[int, ...], int]] = set()
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    finetune(short(image_size=32, threads=other), objective=Peek())
    assert seen == {((32, 32), other)} and torch.get_num_threads() == before
    made = load_checkpoint(tmp_path / "out")
    assert made.module.config.image_size == 32
    assert made.processor.size["height"] == made.processor.size["width"] == 32
    with pytest.raises(InputError, match="not a multiple of the patch size"):
        finetune(short("odd", image_size=30))
