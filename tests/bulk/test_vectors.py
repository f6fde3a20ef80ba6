"""Files of embeddings: parquet with fixed-size lists and .npy, of folders and tables, gone on with after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.command_line import invoke
from tests.tools.towers import write_tower
from vitdeploy import Classifier, embed_files, export, load, predict_files
from vitdeploy.core.errors import DependencyError, InputError, OutputExistsError

ARROW = pytest.importorskip("pyarrow")
IN_PARQUET = pytest.mark.skipif(
    int(ARROW.__version__.partition(".")[0]) < 26, reason="this pyarrow can't read back a fixed-size list that is null"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vectors")
    return export(write_tower("vit", root / "checkpoint"), root / "bundle").path


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Classifier]:
    with load(bundle, "onnxruntime", "fp32", threads=1) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path, tiny_images: Path) -> Path:
    """40 good images and one that is none."""
    import shutil

    folder = Path(shutil.copytree(tiny_images, tmp_path / "photos"))
    (folder / "broken.jpg").write_bytes(b"oops")
    return folder


def test_an_older_pyarrow_is_refused_before_anything_is_done(
    model: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest.importorskip("pyarrow"), "__version__", "25.0.1")
    with pytest.raises(DependencyError, match=r"need pyarrow 26, and 25\.0\.1") as caught:
        embed_files(model, [photos], tmp_path / "vectors.parquet")
    assert ".npy" in str(caught.value.hint)
    assert not list(tmp_path.glob("vectors*"))
    embed_files(model, [photos], tmp_path / "vectors.npy")


@IN_PARQUET
def test_a_parquet_file_has_a_list_of_fixed_size_a_row(model: Classifier, photos: Path, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "vectors.parquet"
    result = embed_files(model, [photos], output, batch=8, chunk=7)
    assert (result.images, result.failed, result.resumed) == (41, 1, 0) and not (
        tmp_path / "vectors.parquet.partial"
    ).exists()
    table = parquet.read_table(output)
    assert table.schema.names == ["image", "embedding", "error"]
    assert table.schema.field("embedding").type == arrow.list_(arrow.float32(), 48)
    origin = json.loads(table.schema.metadata[b"vitdeploy"])
    assert origin["embedding"]["dimensions"] == 48 and origin["precision"] == "fp32"
    rows = table.to_pylist()
    assert [row["image"] for row in rows] == sorted(str(path) for path in photos.rglob("*.*"))
    for row in rows:
        if row["error"] is None:
            found = np.array(row["embedding"], np.float32)
            np.testing.assert_allclose(found, model.embed(row["image"])[0], atol=1e-5)
        else:
            assert row["embedding"] is None and row["image"].endswith("broken.jpg")


def test_a_numpy_file_has_the_vectors_and_its_images_beside_it(model: Classifier, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "vectors.npy"
    embed_files(model, [photos], output, batch=8, chunk=7)
    vectors = np.load(output, allow_pickle=False)
    lines = (tmp_path / "vectors.npy.images.jsonl").read_text(encoding="utf-8").splitlines()
    names = [json.loads(line) for line in lines]
    assert vectors.dtype == np.float32 and vectors.shape == (41, 48) and len(names) == 41
    for row, vector in zip(names, vectors, strict=True):
        if row["error"] is None:
            np.testing.assert_allclose(vector, model.embed(row["image"])[0], atol=1e-5)
        else:
            assert np.isnan(vector).all() and row["image"].endswith("broken.jpg")
    with pytest.raises(OutputExistsError, match=r"vectors\.npy already exists"):
        embed_files(model, [photos], output)
    output.unlink()
    with pytest.raises(OutputExistsError, match=r"images\.jsonl already exists"):
        embed_files(model, [photos], output)


@pytest.mark.parametrize("suffix", [pytest.param(".parquet", marks=IN_PARQUET), ".npy"])
def test_rows_of_a_table(suffix: str, model: Classifier, photos: Path, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(photos.rglob("*/*.png"))[:9]
    images: list[Any] = [path.read_bytes() for path in files]
    images[4] = None
    parquet.write_table(arrow.table({"image": images}), tmp_path / "t.parquet")
    output = tmp_path / f"v{suffix}"
    embed_files(model, [tmp_path / "t.parquet"], output, batch=4)
    if suffix == ".npy":
        vectors = np.load(output)
        rows = [json.loads(line) for line in Path(f"{output}.images.jsonl").read_text().splitlines()]
    else:
        rows = parquet.read_table(output).to_pylist()
        vectors = np.array([row["embedding"] or [np.nan] * 48 for row in rows], np.float32)
    assert [row["row"] for row in rows] == list(range(9)) and rows[4]["error"]
    assert np.isnan(vectors).any(axis=1).tolist() == [place == 4 for place in range(9)]
    np.testing.assert_allclose(vectors[7], model.embed(files[7])[0], atol=1e-5)


@pytest.mark.parametrize("suffix", [pytest.param(".parquet", marks=IN_PARQUET), ".npy"])
def test_a_run_that_was_killed_is_gone_on_with(suffix: str, model: Classifier, photos: Path, tmp_path: Path) -> None:
    """A process that dies between two parts leaves those; the next run reads them, and gives the same file."""
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"v{suffix}"
    embed_files(model, [photos], whole, batch=4, chunk=5)
    program = (
        "import os, sys\n"
        "from vitdeploy import embed_files, load\n"
        "from vitdeploy.bulk.results import Results\n"
        "flush = Results.flush\n"
        "def dying(self):\n"
        "    flush(self)\n"
        "    if self.count >= 15:\n"
        "        os._exit(9)\n"
        "Results.flush = dying\n"
        "bundle, photos, output = sys.argv[1:]\n"
        "with load(bundle, 'onnxruntime', 'fp32', threads=1) as model:\n"
        "    embed_files(model, [photos], output, batch=4, chunk=5)\n"
    )
    bundle = model.describe()["bundle"]
    died = subprocess.run([sys.executable, "-c", program, bundle, str(photos), str(output)], env=dict(os.environ))
    assert died.returncode == 9 and not output.exists()
    with pytest.raises(OutputExistsError, match="a run that was stopped"):
        embed_files(model, [photos / "one"], output, batch=4)
    result = embed_files(model, [photos], output, batch=4, chunk=5)
    assert result.resumed == 15 and result.images == 41
    if suffix == ".npy":
        np.testing.assert_allclose(np.load(output), np.load(whole), atol=1e-5)
        assert Path(f"{output}.images.jsonl").read_bytes() == Path(f"{whole}.images.jsonl").read_bytes()
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        one, other = parquet.read_table(output).to_pylist(), parquet.read_table(whole).to_pylist()
        assert [row["image"] for row in one] == [row["image"] for row in other]
        for a, b in zip(one, other, strict=True):
            assert (a["embedding"] is None) == (b["embedding"] is None)
            np.testing.assert_allclose(a["embedding"] or [], b["embedding"] or [], atol=1e-5)


def test_a_damaged_part_is_named(model: Classifier, photos: Path, tmp_path: Path) -> None:
    from vitdeploy.bulk.formats import Layout
    from vitdeploy.bulk.vectors import Npy

    rows = [{"image": "a.png", "row": None, "embedding": np.zeros(3, np.float32), "error": None}]
    part, layout = tmp_path / "part.npy", Layout(False, dimensions=3)
    part.write_bytes(Npy().encode(rows, layout))
    assert list(Npy().read(part, layout)) == [("a.png", None, None)]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not as many"):
        list(Npy().read(part, layout))


def test_each_kind_of_bundle_has_its_command(
    bundle: Path, model: Classifier, tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="predict is not for"):
        predict_files(model, [photos], tmp_path / "a.csv")
    with load(tiny_bundle, "onnxruntime", "fp32") as classifier, pytest.raises(InputError, match="embed is not for"):
        embed_files(classifier, [photos], tmp_path / "a.npy")
    with pytest.raises(InputError, match="no supported format"):
        embed_files(model, [photos], tmp_path / "a.csv")
    image = photos / "one" / "0.png"
    asked = invoke("predict", bundle, image)
    assert asked.exit_code == 1 and f"vitdeploy embed {bundle}" in " ".join(asked.stderr.split())
    asked = invoke("embed", tiny_bundle, image, "--output", tmp_path / "b.npy")
    assert asked.exit_code == 1 and f"vitdeploy predict {tiny_bundle}" in " ".join(asked.stderr.split())
    assert not (tmp_path / "b.npy").exists() and not (tmp_path / "a.csv").exists()


def test_the_command(bundle: Path, photos: Path, tmp_path: Path) -> None:
    done = invoke("embed", bundle, photos, "--output", tmp_path / "v.npy", "--backend", "onnxruntime", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and (told["images"], told["failed"], told["precision"]) == (41, 1, "fp32")
    assert "broken.jpg" in done.stderr
    again = invoke("embed", bundle, photos / "one", "--output", tmp_path / "v.npy", "--overwrite")
    assert again.exit_code == 0 and np.load(tmp_path / "v.npy").shape == (4, 48)
    only = invoke("embed", bundle, photos / "broken.jpg", "--output", tmp_path / "w.npy")
    assert only.exit_code == 1
