"""Graphs that TensorRT can't take, damaged ones among them: an error that says where and why, never a crash."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.tools.engines import graph, needs_rtx, square
from vitdeploy.compiler.engine import EngineOptions, build_engine, why_not
from vitdeploy.core.errors import InputError, ModelError


@needs_rtx
@pytest.mark.parametrize(
    ("nodes", "reason", "hint"),
    [
        (
            "f = Cast<to=1>(image) y = Det(f)",
            "(op Det) of the layer vit.layers.3.mlp: TensorRT has no such operator",
            "--target onnx",
        ),
        (
            "f = Cast<to=1>(image) y = Foo(f)",
            "(op Foo) of the layer vit.layers.3.mlp: TensorRT has no such operator",
            "--target onnx",
        ),
        ("y = Transpose<perm=[0,1,2,3]>(image)", "first input has type UInt8", "cast the image before"),
    ],
)
def test_parser_errors_name_node_and_operator(tmp_path: Path, nodes: str, reason: str, hint: str) -> None:
    path = graph(nodes, tmp_path / "odd.onnx")
    with pytest.raises(ModelError) as raised:
        build_engine(path, tmp_path / "e", square(8))
    assert "odd.onnx" in raised.value.message
    assert "node vit.layers.3.mlp/Weird (op " in raised.value.message
    assert "of the layer vit.layers.3.mlp: " in raised.value.message
    assert reason in raised.value.message
    assert hint in str(raised.value.hint)
    assert "checkMacros" not in raised.value.message
    assert not (tmp_path / "e").exists()


@needs_rtx
@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"<html>not found</html>" * 50])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes, options: EngineOptions) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx") as raised:
        build_engine(path, tmp_path / "e", options)
    assert "again" in str(raised.value.hint)


@needs_rtx
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_graph(tiny_bundle: Path, tmp_path: Path, options: EngineOptions, share: float) -> None:
    whole = (tiny_bundle / "model.fp16.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=r"cut\.onnx.*(damaged|cut off)"):
        build_engine(path, tmp_path / "e", options)
    assert not (tmp_path / "e").exists()


BROKEN = """
    import json, random, sys
    from pathlib import Path
    from vitdeploy.compiler.engine import EngineOptions, Profile, build_engine
    from vitdeploy.core.errors import VitdeployError
    from vitdeploy.core.specs import ShapeRange

    whole, folder, seed = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
    size = ShapeRange(32, 32, 32)
    options = EngineOptions(profiles=(Profile(ShapeRange(1, 1, 1), size, size),))
    chance, counts = random.Random(seed), {}
    for number in range(int(sys.argv[4])):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 3, 40))):  # bits that flip, in the graph or in its weights
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        if number % 3 == 0:  # a block of zeros, as after a crash
            start = chance.randrange(len(content))
            content[start : start + 4096] = bytes(len(content[start : start + 4096]))
        (folder / "broken.onnx").write_bytes(content)
        try:
            build_engine(folder / "broken.onnx", folder / "e", options)
            kind = "built"
        except VitdeployError as error:
            assert error.hint, error.message
            kind = type(error).__name__
        print(number, kind, flush=True)
"""


@needs_rtx
def test_a_corrupted_graph_never_ends_the_process(tiny_bundle: Path, tmp_path: Path) -> None:
    """Flipped bits give an error with a hint, or an engine where they hit weights; TensorRT itself never crashes."""
    arguments = [tiny_bundle / "model.fp16.onnx", tmp_path, "0", "12"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BROKEN), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:])
    kinds = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(kinds) == 12 and set(kinds) <= {"built", "ModelError", "EngineError", "InputError"}
    assert "ModelError" in kinds


def test_a_missing_graph(tmp_path: Path, options: EngineOptions) -> None:
    if why_not("tensorrt-rtx"):
        pytest.skip("tensorrt-rtx can't build here")
    with pytest.raises(ModelError, match="there is no graph"):
        build_engine(tmp_path / "none.onnx", tmp_path / "e", options)


@needs_rtx
def test_a_graph_that_takes_no_images(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["":20]>\n'
        "g (float[batch,3,8,8] pixels) => (float[batch,3,8,8] y) { y = Relu(pixels) }"
    )
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(InputError, match=r"pixels \(-1, 3, 8, 8\)"):
        build_engine(tmp_path / "old.onnx", tmp_path / "e", EngineOptions())
