"""What is particular to OpenVINO: the precision it computes in, and the results of If."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.backends.openvino.runner import OpenVinoRunner, shared_core
from vitdeploy.core.errors import DependencyError, OutOfMemoryError

# An image is stretched to 112 x 112 along one axis and then the other, in the order that If picks, as the graphs of
# bundles do; a patch embedding and two layers follow. The smaller sizes at which OpenVINO is right show nothing.
WITH_IF = """
<ir_version: 9, opset_import: ["" : 20]>
stretch (uint8[batch, height, width, 3] image) => (float[batch, 64] logits)
<
    int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] first = {0}, int64[1] second = {1},
    float outputs = {112.0}, float step = {0.01}, float small = {0.001}, float none = {0.0},
    int64[3] tokens = {0, 64, -1}
>
{
    planes = Transpose <perm = [0, 3, 1, 2]> (image)
    pixels = Cast <to = 1> (planes)
    shape = Shape (image)
    h = Gather (shape, one)
    w = Gather (shape, two)
    rows = Range (zero, h, one)
    columns = Range (zero, w, one)
    rows_f = Cast <to = 1> (rows)
    columns_f = Cast <to = 1> (columns)
    rows_u = Unsqueeze (rows_f, first)
    columns_u = Unsqueeze (columns_f, second)
    targets = Range (none, outputs, one_f)
    steps = Mul (targets, step)
    down = Unsqueeze (steps, second)
    across = Unsqueeze (steps, first)
    rows_angle = Mul (down, rows_u)
    columns_angle = Mul (columns_u, across)
    vertical = Sin (rows_angle)
    horizontal = Sin (columns_angle)
    tall = Greater (h, w)
    stretched = If (tall) <
        then_branch = rows_first () => (float[b, 3, 112, 112] a2) {
            a0 = MatMul (vertical, pixels)
            a1 = Floor (a0)
            a2 = MatMul (a1, horizontal)
        },
        else_branch = columns_first () => (float[b, 3, 112, 112] b2) {
            b0 = MatMul (pixels, horizontal)
            b1 = Floor (b0)
            b2 = MatMul (vertical, b1)
        }
    >
    scaled = Mul (stretched, small)
    patches = Conv <kernel_shape = [8, 8], strides = [8, 8]> (scaled, patch_weights)
    flat = Reshape (patches, tokens)
    sequence = Transpose <perm = [0, 2, 1]> (flat)
    hidden_1 = MatMul (sequence, up_1)
    active_1 = Tanh (hidden_1)
    update_1 = MatMul (active_1, down_1)
    tokens_1 = Add (sequence, update_1)
    hidden_2 = MatMul (tokens_1, up_2)
    active_2 = Tanh (hidden_2)
    update_2 = MatMul (active_2, down_2)
    tokens_2 = Add (tokens_1, update_2)
    logits = ReduceMean <keepdims = 0> (tokens_2, second)
}
"""


def write_graph(path: Path) -> Path:
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(WITH_IF)
    weights = {
        "patch_weights": generator.normal(size=(64, 3, 8, 8)) / 10,
        "up_1": generator.normal(size=(64, 256)) / 8,
        "down_1": generator.normal(size=(256, 64)) / 16,
        "up_2": generator.normal(size=(64, 256)) / 8,
        "down_2": generator.normal(size=(256, 64)) / 16,
        "one_f": np.array(1.0),
    }
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("shape", [(1, 40, 32), (2, 32, 40)], ids=["then", "else"])
def test_the_first_answer_of_a_graph_with_if(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """OpenVINO alone reuses the memory of If's result too early when a shape is new: its first answer is far off."""
    path = write_graph(tmp_path / "model.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with OnnxRuntimeRunner(path, threads=1) as reference:
        expected = reference.infer({"image": pixels})["logits"]
    for _ in range(3):  # what lies in the memory differs from time to time
        with OpenVinoRunner(path, threads=1) as runner:
            assert [spec.name for spec in runner.outputs] == ["logits"]
            for _ in range(2):
                answer = runner.infer({"image": pixels})
                assert set(answer) == {"logits"}
                # sums of float32 in another order, of values around 1
                np.testing.assert_allclose(answer["logits"], expected, atol=1e-4, rtol=0)


def test_less_exact_only_when_asked(tiny_bundle: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    with OnnxRuntimeRunner(tiny_bundle / "model.onnx", threads=1) as reference:
        expected = reference.infer({"image": images})["logits"]
    with OpenVinoRunner(tiny_bundle / "model.onnx", threads=1) as runner:
        exact = np.abs(runner.infer({"image": images})["logits"] - expected).max()
    with OpenVinoRunner(tiny_bundle / "model.onnx", threads=1, inference_precision="bf16") as runner:
        rough = np.abs(runner.infer({"image": images})["logits"] - expected).max()
    assert exact < 1e-4  # float32 sums in another order
    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16, so asking for it changes nothing")
    assert 1e-3 < rough < 0.5  # bfloat16 keeps 8 bits


def test_a_signal_after_two_models_were_closed_kills_nothing(tiny_bundle: Path) -> None:
    """With a Core for each model, the process died of it on processors with AVX-512: see `shared_core`."""
    code = (
        "import os, signal, sys\n"
        "from vitdeploy.backends.openvino.runner import OpenVinoRunner\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "first, second = OpenVinoRunner(sys.argv[1], 1).__enter__(), OpenVinoRunner(sys.argv[1], 1).__enter__()\n"
        "for runner in (first, second):\n"
        "    runner.__exit__(None, None, None)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle / "model.onnx")], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (0, "handled\n"), answer.stderr


class Request:
    """OpenVINO's infer request, of which `infer` may do nothing and `start_async` may fail, as when memory runs out."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.calls: list[str] = []
        self.idle = False  # infer does nothing
        self.error: str | None = None

    def infer(self, *given: Any) -> Any:
        self.calls.append("infer")
        return None if self.idle else self.request.infer(*given[1:])

    def start_async(self) -> None:
        self.calls.append("start_async")
        if self.error is not None:
            raise RuntimeError(self.error)
        self.request.start_async()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


@pytest.fixture
def watched(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[OpenVinoRunner, Request]]:
    """A runner that has run once, and the infer request that it will take next."""
    with OpenVinoRunner(tiny_bundle / "model.onnx", threads=1) as runner:
        runner.infer({"image": pixels(0)})
        (own,) = runner._graph._idle
        request = Request(own._request)
        monkeypatch.setattr(own, "_request", request)
        monkeypatch.setattr(own, "_infer", request.infer)
        yield runner, request


def pixels(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, size, size, 3), dtype=np.uint8)


def test_the_same_shape_runs_in_the_callers_thread(watched: tuple[OpenVinoRunner, Request]) -> None:
    runner, request = watched
    by_size = [runner.infer({"image": pixels(1, size)})["logits"] for size in (32, 40, 40, 32, 32)]
    assert request.calls == ["infer", "start_async", "infer", "start_async", "infer"]
    for first, second in ((0, 3), (0, 4), (1, 2)):
        np.testing.assert_array_equal(by_size[first], by_size[second])


def test_an_answer_that_was_not_written_is_asked_for_again(watched: tuple[OpenVinoRunner, Request]) -> None:
    runner, request = watched
    expected = [runner.infer({"image": pixels(seed)})["logits"] for seed in (1, 2)]
    graph = runner._graph
    request.idle = True
    request.calls.clear()
    again = [runner.infer({"image": pixels(seed)})["logits"] for seed in (1, 2)]
    np.testing.assert_array_equal(again, expected)
    assert request.calls == ["infer"]  # what failed is not used again
    assert runner._graph is not graph


def test_memory_that_runs_out_is_said_and_survived(watched: tuple[OpenVinoRunner, Request]) -> None:
    runner, request = watched
    expected = runner.infer({"image": pixels(1)})["logits"]
    request.error = "Failed to allocate 576000000 bytes of memory"
    with pytest.raises(OutOfMemoryError, match="1, 40, 40, 3"):
        runner.infer({"image": pixels(1, 40)})
    request.calls.clear()
    np.testing.assert_array_equal(runner.infer({"image": pixels(1)})["logits"], expected)  # by a graph compiled anew
    assert request.calls == []


def test_a_graph_that_gives_nan_is_compiled_anew_once(tmp_path: Path) -> None:
    """NaN says that nothing was computed; a graph may also give it, and then the way that needs no NaN is taken."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        root (uint8[batch, height, width, 3] image) => (float[batch, height, width, 3] logits)
        { float_image = Cast <to = 1> (image)  one = Constant <value_float = 1.0> ()
          less = Sub (float_image, one)  logits = Sqrt (less) }"""
    )
    onnx.save(model, tmp_path / "model.onnx")
    good, bad = np.full((1, 2, 2, 3), 5, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    with OpenVinoRunner(tmp_path / "model.onnx", threads=1) as runner:
        graphs = []
        for image in (good, bad, good, bad, bad):
            answer = runner.infer({"image": image})["logits"]
            np.testing.assert_array_equal(answer, np.full(image.shape, 2 if image is good else np.nan, np.float32))
            graphs.append(runner._graph)
    assert graphs[0] is not graphs[1]
    assert all(graph is graphs[1] for graph in graphs[2:])


UNSAID = """
import resource, sys
import numpy as np
from vitdeploy.core.errors import OutOfMemoryError
from vitdeploy.backends.openvino.runner import OpenVinoRunner

small, large = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 6000, 8000, 3), np.uint8)
with OpenVinoRunner(sys.argv[1], threads=1) as runner:
    before = runner.infer({"image": small})["logits"]
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (600 << 20),) * 2)
    runner._graph._idle[0]._shapes = [large.shape]  # as if it had been run before: OpenVINO's `infer` is asked first
    try:
        print("answered", runner.infer({"image": large}))
    except OutOfMemoryError:
        print("said", np.array_equal(runner.infer({"image": small})["logits"], before))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which only Linux has")
def test_openvino_itself_leaves_the_outputs_alone_when_memory_runs_out(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", UNSAID, str(tiny_bundle / "model.onnx")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (answer.returncode, answer.stdout) == (0, "said True\n"), answer.stderr


@pytest.mark.parametrize("version", ["2025.2.0-19140-c01cd93e24d-releases/2025/2", "2026.2.1-1-a", "2024.6.0"])
def test_a_release_that_computes_int8_wrong_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvino.__version__", version)
    with pytest.raises(DependencyError, match=r"OpenVINO 202\d\.\d gives wrong answers for INT8") as caught:
        shared_core()
    assert caught.value.hint == "pip install --upgrade 'openvino>=2026.3'"


@pytest.mark.parametrize("version", ["2026.3.0-1-a", "2026.10.0", "2027.0.0", "custom"])
def test_other_releases_are_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvino.__version__", version)
    assert shared_core() is not None


NO_MEMORY = """
import resource, sys
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from vitdeploy.backends.openvino.runner import OpenVinoRunner
from vitdeploy.core.errors import OutOfMemoryError

def runner(name, side):
    weights = numpy_helper.from_array(np.zeros((side, side), np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), name)
    return OpenVinoRunner(name, 1)

small, large = runner(sys.argv[1] + "/small.onnx", 8), runner(sys.argv[1] + "/large.onnx", 6000)
with small:
    pass
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (mapped + (64 << 20), before[1]))
try:
    large.__enter__()
except OutOfMemoryError as error:
    print(error.message, error.hint)
resource.setrlimit(resource.RLIMIT_AS, before)  # what the attempt left is not the small one's to do without
with small as opened:
    print(opened.infer({"x": np.ones((1, 8), np.float32)})["y"].sum())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which only Linux has")
def test_out_of_memory_while_a_graph_is_loaded_is_not_called_a_damaged_file(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_MEMORY, str(tmp_path)], capture_output=True, text=True, check=False)
    first, second = done.stdout.splitlines()
    assert "not enough memory to load" in first and "large.onnx" in first and "take a smaller form" in first
    assert second == "0.0", done.stderr
