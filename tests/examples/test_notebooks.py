"""The notebooks of examples/ run from top to bottom in a kernel, and show what they promise."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tools.running import EXAMPLES
from vitdeploy.training import create_vit

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install ipykernel")
pytest.importorskip("torch")

QUICK = {"ROUNDS, SECONDS": (2, 1)}


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> Any:
    """The notebook, run in `folder` with other settings in its first cell."""
    book = nbformat.read(EXAMPLES / name, as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    for setting, value in settings.items():
        first.source, count = re.subn(rf"^{setting} = .*$", f"{setting} = {value!r}", first.source, flags=re.M)
        assert count == 1, setting
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    client = nbclient.NotebookClient(
        book, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return book


def outputs(book: Any, kind: str) -> list[str]:
    """All results of one MIME type, in order; "text" is what was printed."""
    found = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    if kind == "text":
        return [output.text for output in found if output.output_type == "stream" and output.name == "stdout"]
    return [output.data[kind] for output in found if kind in output.get("data", {})]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_results(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")


def test_what_is_a_vit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = run("what_is_a_vit.ipynb", tmp_path, monkeypatch, EPOCHS=0.2)
    printed = "\n".join(outputs(book, "text"))
    for words in ("32 x 32 pixels = 4 x 4 patches", "tokens (1, 17, 64)", "each row adds up to 1.000", "logit"):
        assert words in printed
    assert len(outputs(book, "image/png")) == 4  # the digit, its patches, positions, heads
    pages = "".join(outputs(book, "text/html"))
    assert pages.count("data:image/png;base64,") == 3 and "✓" in pages  # explain's pictures; bars that are done


def lecture(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> str:
    book = run("lecture.ipynb", folder, monkeypatch, **settings)
    assert "test accuracy" in "\n".join(outputs(book, "text"))
    assert len(outputs(book, "image/svg+xml")) == 1
    pages = "".join(outputs(book, "text/html"))
    for words in ("model.int8-cpu.onnx", "speed-up", "background:#2563eb", "data:image/png;base64,"):
        assert words in pages
    return pages


def test_the_lecture_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [str(number) for number in range(10)]
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "layers": 2, "heads": 2}
    start = create_vit(tmp_path / "start", labels=labels, **sizes)
    lecture(tmp_path, monkeypatch, MODEL=str(start), DATASET="digits", IMAGES=80, **QUICK)


@pytest.mark.full
def test_the_lecture_on_cifar10(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = test_data / "models" / "vit-small-patch14-224-backbone"
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    lecture(tmp_path, monkeypatch, MODEL=str(backbone), DATASET=str(test_data / "cifar10"), IMAGES=60, **QUICK)
