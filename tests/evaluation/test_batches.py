"""A dataset through a session: each image's answer in its place, in sizes that the graph takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tools.forms import Pictures
from vitdeploy.core.errors import InputError
from vitdeploy.evaluation import batches
from vitdeploy.evaluation.batches import answers_of, check_size, image_batches, open_session, values_of

# (n, height, width, 3) -> the sums over height and width, (n, 3), and their squares
GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
g (uint8[n,{size},3] image) => (double[n,3] logits, double[n,3] squares) {{
    axes = Constant <value_ints = [1, 2]> ()
    whole = Cast <to = 11> (image)
    logits = ReduceSum <keepdims = 0> (whole, axes)
    squares = Mul (logits, logits)
}}"""


def graph(size: str = "h,w") -> ir.Model:
    return ir.from_onnx_text(GRAPH.format(size=size))


class Counter:
    def __init__(self) -> None:
        self.counts: list[int] = []

    def advance(self, count: int) -> None:
        self.counts.append(count)


def test_each_image_has_its_answer_in_its_place() -> None:
    images, counter = Pictures(70, 5, ((4, 4), (6, 4), (4, 8))), Counter()
    wanted = np.stack([images.image(index).astype(np.float64).sum(axis=(0, 1)) for index in range(70)])
    session = open_session(graph())
    found = values_of(session, "logits", images, counter)
    assert found.dtype == np.float64 and found.shape == (70, 3)
    np.testing.assert_array_equal(found, wanted)
    assert sum(counter.counts) == 70 and max(counter.counts) == batches.BATCH
    np.testing.assert_array_equal(values_of(session, "squares", images), wanted**2)
    assert answers_of(session, images).dtype == np.float32


def test_a_session_is_opened_on_a_file_its_bytes_or_a_model(tmp_path: Path) -> None:
    ir.save(graph(), tmp_path / "sums.onnx")
    image = np.full((1, 2, 2, 3), 5, np.uint8)
    for source in (tmp_path / "sums.onnx", (tmp_path / "sums.onnx").read_bytes(), graph()):
        assert open_session(source).run(["logits"], {"image": image})[0].tolist() == [[20, 20, 20]]


def test_a_session_computes_node_by_node_where_it_is_asked_to() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    levels = [open_session(graph(), fuse=fuse).get_session_options().graph_optimization_level for fuse in (True, False)]
    known = onnxruntime.GraphOptimizationLevel
    assert levels == [known.ORT_ENABLE_ALL, known.ORT_ENABLE_BASIC]


def test_a_graph_of_one_size_is_given_no_other() -> None:
    fixed, free, tall = (open_session(graph(size)) for size in ("4,6", "h,w", "h,6"))
    check_size(fixed, np.zeros((4, 6, 3), np.uint8))
    for height, width in ((6, 4), (4, 5), (5, 6)):
        with pytest.raises(InputError, match=rf"an image is {height}x{width}; the graph was exported for 4x6 only"):
            check_size(fixed, np.zeros((height, width, 3), np.uint8))
        check_size(free, np.zeros((height, width, 3), np.uint8))
        check_size(tall, np.zeros((height, width, 3), np.uint8))  # ONNX Runtime says itself what such a graph takes
    with pytest.raises(InputError, match="6x4"):
        values_of(fixed, "logits", Pictures(3, 5, ((6, 4),)))


@pytest.mark.parametrize(("held", "sizes"), [(2 * 48, [3, 3, 2]), (3 * 48, [4, 4]), (3 * 48 - 1, [3, 3, 2])])
def test_as_many_images_wait_as_may_be_held(held: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 48 bytes each: a batch ends with the image that is one too many for the memory."""
    monkeypatch.setattr(batches, "HELD_BYTES", held)
    assert [len(indices) for indices, _ in image_batches(Pictures(8, 5, ((4, 4),)), 16)] == sizes
