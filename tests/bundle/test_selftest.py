"""selftest.npz: what it holds, and that a stranger's does no harm."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.bundle import Artifact
from vitdeploy.bundle.selftest import Selftest, enlarged


def small() -> Selftest:
    generator = np.random.default_rng(0)
    images = tuple(generator.integers(0, 256, shape, np.uint8) for shape in ((4, 6, 3), (5, 3, 3)))
    logits = generator.normal(size=(2, 2, 3)).astype(np.float32)
    bounds = {"model.onnx": np.array([0.5, 0.25], np.float32)}
    return Selftest(images, {None: logits[0], (8, 9): logits[1]}, bounds, "PyTorch 2.0")


def changed(path: Path, **arrays: np.ndarray | None) -> Path:
    """The file with other arrays in it; None takes one out."""
    with np.load(path) as data:
        held = {name: data[name] for name in data.files}
    held |= arrays
    np.savez(path, **{name: array for name, array in held.items() if array is not None})
    return path


def about(**values: object) -> np.ndarray:
    said = {"schema_version": 1, "reference": "x", "bounds": {"model.onnx": [0.5, 0.25]}, **values}
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


def test_what_is_written_is_read_and_the_bytes_do_not_vary(tmp_path: Path) -> None:
    whole, path = small(), tmp_path / "selftest.npz"
    whole.write(path)
    content = path.read_bytes()
    found = Selftest.read(path)
    for old, new in zip(whole.images, found.images, strict=True):
        np.testing.assert_array_equal(old, new)
    assert found.logits.keys() == {None, (8, 9)} and found.reference == "PyTorch 2.0"
    np.testing.assert_array_equal(found.logits[8, 9], whole.logits[8, 9])
    np.testing.assert_array_equal(found.bounds["model.onnx"], whole.bounds["model.onnx"])
    found.write(path)
    assert path.read_bytes() == content
    assert all(entry.compress_type == zipfile.ZIP_STORED for entry in zipfile.ZipFile(path).infolist())


def test_an_image_is_enlarged_by_repeating_its_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(enlarged(image, (4, 6)), image.repeat(2, axis=0).repeat(3, axis=1))
    assert enlarged(image, (3, 5)).shape == (3, 5, 3) and enlarged(image, (1, 1)).tolist() == [[[0, 1, 2]]]


def test_an_engine_has_the_bounds_of_its_graph() -> None:
    selftest = small().with_bounds("model.fp16.onnx", np.array([1, 2], np.float32))
    graph = Artifact("model.fp16.onnx", "onnx", "0" * 64, 1, "fp16")
    engine = Artifact("engines/x.engine", "engine", "0" * 64, 1, "fp16", "tensorrt")
    for artifact in (graph, engine):
        assert np.array_equal(selftest.bounds_of(artifact), [1, 2])  # type: ignore[arg-type]
    assert selftest.bounds_of(Artifact("engines/y.engine", "engine", "0" * 64, 1, "int8", "tensorrt")) is None


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"about": None}, "no 'about'"),
        ({"about": np.frombuffer(b"{", np.uint8)}, "Expecting"),
        ({"about": about(schema_version=2)}, "newer"),
        ({"about": about(bounds={"model.onnx": [1.0]})}, "bounds"),
        ({"about": about(bounds={"model.onnx": [0.5, -1.0]})}, "bounds"),
        ({"about": about(bounds={"model.onnx": [0.5, "x"]})}, "a number"),
        ({"logits": np.zeros((3, 3), np.float32)}, "images, classes"),
        ({"logits": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"logits": None, "logits_8x9": None}, "no logits"),
        ({"image_000": np.zeros((4, 6, 3), np.float32)}, "uint8"),
        ({"image_000": np.zeros((0, 6, 3), np.uint8)}, "uint8"),
        ({"image_000": None, "image_001": None}, "uint8"),
        ({"logits": np.array([[None]], dtype=object)}, "numbers"),
    ],
)
def test_a_damaged_one_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray | None], reason: str) -> None:
    path = tmp_path / "selftest.npz"
    small().write(path)
    with pytest.raises(ValueError, match=reason):
        Selftest.read(changed(path, **arrays))


def test_sizes_that_are_not_there_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, header = tmp_path / "selftest.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 20)})
    small().write(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", header.getvalue())
    with pytest.raises(ValueError, match="buffer"):
        Selftest.read(path)
    monkeypatch.setattr("vitdeploy.bundle.selftest._MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", b"\0" * (2 << 20))
    with pytest.raises(ValueError, match="more than 1 MiB"):
        Selftest.read(path)
