"""What needs CUDA and no TensorRT: memory, streams, events, graphs, tensors of PyTorch's, its rows in a benchmark.

`make test-cuda` runs these and the training, with PyTorch and cuda-python alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.on_gpu import can_compile
from vitdeploy.backends.dlpack import CUDA, view
from vitdeploy.backends.pytorch.variants import VARIANTS
from vitdeploy.backends.tensorrt.cuda import Buffer, OutOfMemory, Stream, on_device
from vitdeploy.backends.tensorrt.runner import _cuda_runtime
from vitdeploy.core.errors import EngineError
from vitdeploy.core.machine import gpus, has_module

pytestmark = pytest.mark.gpu
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)


@pytest.fixture
def cuda() -> Any:
    if not gpus():
        pytest.skip("needs an NVIDIA GPU and its driver, and there is none here")
    if not has_module("cuda.bindings.runtime") and not has_module("cuda.cudart"):
        pytest.skip("cuda-python is not installed: pip install cuda-python")
    return _cuda_runtime("gpu")


@pytest.fixture
def torch() -> Any:
    found = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not found.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    return found


@pytest.fixture
def stream(cuda: Any) -> Iterator[Stream]:
    stream = Stream(cuda, 0)
    yield stream
    stream.drain()
    stream.close()


@pytest.fixture
def memory(cuda: Any) -> Iterator[Buffer]:
    memory = Buffer(cuda)
    assert memory.reserve(PIXELS.nbytes) and not memory.reserve(1)
    yield memory
    memory.free()
    assert memory.device == memory.size_bytes == 0


def fill(memory: Buffer, content: np.ndarray[Any, Any]) -> None:
    memory.view(content.shape, content.dtype)[...] = content


def there_and_back(stream: Stream, memory: Buffer) -> None:
    stream.upload(memory, PIXELS.nbytes)
    stream.download(memory, PIXELS.nbytes)


def test_pinned_memory_goes_to_the_gpu_and_back_and_events_time_it(stream: Stream, memory: Buffer) -> None:
    fill(memory, PIXELS)
    stream.mark()
    stream.upload(memory, PIXELS.nbytes)
    stream.mark(end=True)
    stream.synchronize()
    assert 0 < stream.marked_ms() < 1000
    fill(memory, 0 * PIXELS)
    stream.download(memory, PIXELS.nbytes)
    stream.synchronize()
    np.testing.assert_array_equal(memory.view(PIXELS.shape, np.uint8), PIXELS)


def test_a_captured_call_is_launched_again_on_what_is_there_then(stream: Stream, memory: Buffer) -> None:
    fill(memory, PIXELS)
    graph = stream.capture(lambda: stream.upload(memory, PIXELS.nbytes))
    assert graph is not None
    for content in (PIXELS, 255 - PIXELS):
        fill(memory, content)
        graph.launch()
        stream.synchronize()
        fill(memory, 0 * PIXELS)
        stream.download(memory, PIXELS.nbytes)
        stream.synchronize()
        np.testing.assert_array_equal(memory.view(PIXELS.shape, np.uint8), content)
    graph.close()


def test_a_capture_that_fails_leaves_the_stream_as_it_was(stream: Stream, memory: Buffer) -> None:
    def fails() -> None:
        stream.upload(memory, PIXELS.nbytes)
        raise EngineError("in the middle of it")

    def waits() -> None:
        stream.upload(memory, PIXELS.nbytes)
        stream.synchronize()  # no stream is waited for while it is captured

    for work in (fails, waits):
        assert stream.capture(work) is None
        fill(memory, PIXELS)
        there_and_back(stream, memory)
        stream.synchronize()
        np.testing.assert_array_equal(memory.view(PIXELS.shape, np.uint8), PIXELS)


def test_out_of_memory_is_said_and_survived(cuda: Any, stream: Stream) -> None:
    memory = Buffer(cuda, pinned=False)
    with pytest.raises(OutOfMemory, match="out of memory for"):
        memory.reserve(1 << 50)
    assert memory.reserve(1 << 20)
    memory.free()
    stream.synchronize()


def test_the_callers_gpu_comes_back(cuda: Any) -> None:
    last = len(gpus()) - 1
    cuda.cudaSetDevice(0)
    with on_device(cuda, last):
        assert int(cuda.cudaGetDevice()[1]) == last
    assert int(cuda.cudaGetDevice()[1]) == 0


@pytest.mark.parametrize("own_stream", [False, True])
def test_a_tensor_that_pytorch_still_computes_is_waited_for(
    stream: Stream, memory: Buffer, torch: Any, own_stream: bool
) -> None:
    """On its default stream or on one of its own: what is copied is what comes out of the computation."""
    with torch.cuda.stream(torch.cuda.Stream() if own_stream else torch.cuda.default_stream()):
        pixels = torch.from_numpy(PIXELS).cuda()
        work = torch.rand(2048, 2048, device="cuda")
        for _ in range(200):  # some milliseconds
            work = (work @ work).clamp(0, 1)
        made = (pixels.float() * (1 + 0 * work.sum())).to(torch.uint8)
        array = view(made)
    assert array.device == (CUDA, 0) and array.shape == PIXELS.shape
    stream.wait_for_default()
    stream.copy(memory, array.address, array.nbytes)
    stream.download(memory, array.nbytes)
    stream.synchronize()
    np.testing.assert_array_equal(memory.view(PIXELS.shape, np.uint8), PIXELS)


def test_pytorchs_rows_of_a_benchmark(
    tiny_bundle: Path, torch: Any, request: pytest.FixtureRequest, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Every way to run it, with both clocks; TF32 changes digits that full FP32 has."""
    from vitdeploy.bench import BenchReport

    checkpoint = request.getfixturevalue("tiny_checkpoint")
    ways = [name for name in VARIANTS if name and ("compile" not in name or can_compile())]
    command = ["bench", tiny_bundle, "--dataset", request.getfixturevalue("tiny_images"), "--split", "all"]
    command += ["--baseline", checkpoint, "--also", ",".join(ways), "--device", "cuda", "--rounds", "10"]
    command += ["--no-memory", "--no-save", "--keep-gpu-busy", "--json", tmp_path / "bench.json"]
    assert cli(*command).exit_code == 0
    report = BenchReport.read(tmp_path / "bench.json")
    for way in ("", *ways):
        row = report.row(f"{VARIANTS[way].form}/pytorch-cuda")
        assert row.status == "ok" and row.latency is not None and row.accuracy is not None, (way, row.reason)
        assert row.latency.device_ms is not None and 0 < row.latency.device_ms.p50 <= row.latency.steady_ms.mean * 3
        assert row.tf32 is VARIANTS[way].tf32
    assert "the GPU was kept busy between turns" in report.notes and report.base is not None
    ready = report.row("fp32-preprocessed/pytorch-cuda").latency
    assert ready is not None and report.base.latency is not None and report.base.phases is not None
