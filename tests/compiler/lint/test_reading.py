"""Files of strangers: each that can't be read says why, and nothing waits for ever."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.tools.lint_graphs import linear, saved
from vitdeploy.compiler.lint.run import lint
from vitdeploy.core.errors import ModelError, VitdeployError


def with_weights_beside(folder: Path) -> Path:
    """A graph whose weight lies in weights.bin."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n,4,8] x) => (float[n,4,8] y) { y = MatMul (x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    onnx.save_model(model, folder / "graph.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "graph.onnx"


def point_elsewhere(path: Path, name: str) -> None:
    model = onnx.load(path, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = name
    onnx.save(model, path)


def test_weights_beside_the_graph_are_found(tmp_path: Path) -> None:
    (graph,) = lint(with_weights_beside(tmp_path)).graphs
    assert graph.macs == 4 * 8 * 8


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = with_weights_beside(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps weights in 'weights\.bin', which is not beside it"):
        lint(path)


def test_weights_that_are_cut_short_are_named(tmp_path: Path) -> None:
    path = with_weights_beside(tmp_path)
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(ModelError, match=r"the weight w lies beyond the end of weights\.bin"):
        lint(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", ""])
def test_weights_elsewhere_are_not_read(name: str, tmp_path: Path) -> None:
    path = with_weights_beside(tmp_path)
    point_elsewhere(path, name)
    with pytest.raises(ModelError, match="outside its folder"):
        lint(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        lint(tmp_path / "pipe.onnx")


def test_weights_in_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    path = with_weights_beside(tmp_path)
    (tmp_path / "weights.bin").unlink()
    os.mkfifo(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="not beside it"):
        lint(path)


def test_three_gigabytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    path.touch()
    os.truncate(path, 3 << 30)  # a hole: it takes no space
    with pytest.raises(ModelError, match=r"no ONNX file: it has 3\.2 GB"):
        lint(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"no graph", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b'{"json": true}', b"\x08\x0a", b"PK\x03\x04"],
)
def test_what_is_no_onnx_file_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"can't be read as ONNX|holds no graph"):
        lint(tmp_path / "graph.onnx")


def test_a_truncated_file_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = saved(linear(), tmp_path / "graph.onnx").read_bytes()
    for end in range(1, len(whole), 37):
        (tmp_path / "cut.onnx").write_bytes(whole[:end])
        with pytest.raises(VitdeployError) as caught:
            lint(tmp_path / "cut.onnx")
        assert caught.value.hint


def test_any_wrong_byte_gives_an_answer_or_an_error_of_ours(tmp_path: Path) -> None:
    whole = bytearray(saved(linear(), tmp_path / "graph.onnx").read_bytes())
    generator = np.random.default_rng(5)
    for _ in range(150):
        wrong = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            wrong[place] = generator.integers(0, 256)
        (tmp_path / "wrong.onnx").write_bytes(wrong)
        with contextlib.suppress(VitdeployError):
            lint(tmp_path / "wrong.onnx")


def test_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        lint(tmp_path / "none.onnx")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(VitdeployError, match="is not a bundle"):
        lint(tmp_path)


def test_a_graph_that_contradicts_itself_is_an_error_of_ours(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(linear())
    model.graph.node[0].output[0] = model.graph.node[1].output[0]  # two nodes make one value
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(ModelError, match="no sound ONNX graph"):
        lint(tmp_path / "graph.onnx")
