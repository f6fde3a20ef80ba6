"""Images that can't be decoded, classes that are missing, and datasets larger than the memory."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.core.errors import DatasetError, ImageError
from vitdeploy.data import find_bad_images, load_dataset, without_images
from vitdeploy.training import FinetuneConfig, finetune

Short = Callable[..., FinetuneConfig]


@pytest.fixture
def photos(tiny_images: Path, tmp_path: Path) -> Path:
    """Class folders with splits; three files are damaged in three ways."""
    root = tmp_path / "photos"
    for split in ("train", "test"):
        shutil.copytree(tiny_images, root / split)
    whole = (root / "train" / "two" / "1.png").read_bytes()
    (root / "train" / "two" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "six" / "0.png").write_bytes(b"")
    (root / "test" / "nine" / "3.png").write_text("<html>404</html>")
    return root


def test_bad_images_are_found_and_named(photos: Path) -> None:
    train = load_dataset(photos, "train")
    bad = find_bad_images(train)
    assert [image.where for image in bad] == ["train/six/0.png", "train/two/1.png"]
    assert all(image.problem for image in bad)
    left = without_images(train, [image.index for image in bad])
    assert len(left) == 38 and find_bad_images(left) == []
    with pytest.raises(DatasetError, match="no image of"):
        without_images(train, range(40))


def test_damaged_test_images_are_named_before_training(
    photos: Path, short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.training import run

    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("it trains"))
    (photos / "test" / "one" / "0.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"2 of the 40 images of photos/test .*nine/3\.png is a web page") as error:
        finetune(short(dataset=photos, limit_train=None, limit_test=None))
    assert "one/0.png is empty" in error.value.message and "--skip-bad" in str(error.value.hint)


def test_without_skip_bad_the_image_is_named(photos: Path, short: Short) -> None:
    (photos / "test" / "nine" / "3.png").unlink()
    config = short(dataset=photos, limit_train=None, limit_test=None, batch_size=4)
    with pytest.raises(ImageError, match=r"(six/0|two/1)\.png") as error:
        finetune(config)
    assert "--skip-bad" in str(error.value.hint)
    assert not (config.output if isinstance(config.output, Path) else Path(config.output)).exists()


def test_with_skip_bad_they_are_listed_and_left_out(
    photos: Path, scratch: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    import json

    options = ("--output", tmp_path / "out", "--max-steps", 4, "--batch-size", 4, "--threads", 1, "--skip-bad")
    outcome = cli("finetune", scratch, "--dataset", photos, *options)
    assert outcome.exit_code == 0, outcome.stderr
    for name in ("train/six/0.png", "train/two/1.png", "test/nine/3.png"):
        assert name in outcome.stdout
    saved = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert {split: len(bad) for split, bad in saved["skipped"].items()} == {"train": 2, "test": 1}
    counts = {name: data["count"] for name, data in saved["data"].items()}
    assert counts["train"] + counts["validation"] == 38 and counts["test"] == 39


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_a_split_lacks_is_named(split: str, photos: Path, short: Short) -> None:
    shutil.rmtree(photos / split / "seven")
    with pytest.raises(DatasetError, match=f"photos/{split} has no image of seven"):
        finetune(short(dataset=photos, limit_train=None, limit_test=None))


def test_a_class_whose_images_are_all_bad_is_named(photos: Path, short: Short) -> None:
    for path in (photos / "test" / "four").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="photos/test has no image of four"):
        finetune(short(dataset=photos, limit_train=None, limit_test=None, skip_bad=True))


def test_classes_too_rare_for_validation_are_noted(short: Short) -> None:
    result = finetune(short(validation=4))
    assert any("too few for every class: none of" in note for note in result.notes)


MEASURE = """
import resource, sys
from vitdeploy.training import FinetuneConfig, finetune
small = FinetuneConfig(sys.argv[1], "digits", sys.argv[3] + "-small", max_steps=1, limit_train=40, limit_test=20)
finetune(small)  # everything is imported after it
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
finetune(FinetuneConfig(sys.argv[1], sys.argv[2], sys.argv[3], epochs=1, batch_size=4, threads=1))
print("grown:", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded) // 1024)
"""


@pytest.mark.parametrize("layout", ["folders", pytest.param("parquet", marks=pytest.mark.full)])
def test_the_decoded_dataset_is_never_in_memory(layout: str, scratch: Path, tmp_path: Path) -> None:
    """50 images of 2000x2000 pixels are 600 MB decoded; training on them takes a small part of that."""
    from PIL import Image

    def jpeg(label: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((2000, 2000, 3), 20 * label, np.uint8)).save(buffer, "JPEG", quality=30)
        return buffer.getvalue()

    contents = [jpeg(label) for label in range(10)]
    root = tmp_path / "photos"
    if layout == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        root.mkdir()
        for split, count in (("train", 4), ("test", 1)):
            table = pa.table({"image": contents * count, "label": list(range(10)) * count})
            pq.write_table(table, root / f"{split}.parquet")
    else:
        for split, count in (("train", 4), ("test", 1)):
            for label in range(10):
                (root / split / str(label)).mkdir(parents=True)
                for number in range(count):
                    (root / split / str(label) / f"{number}.jpg").write_bytes(contents[label])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(scratch), str(root), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.rpartition("grown:")[2])
    assert grown < 300, f"{grown} MiB"  # a batch of 4 decoded images is 48 MB, and as much while they are resized
