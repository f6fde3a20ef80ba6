"""The ways in which PyTorch may be asked to be faster, and the two halves of its call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vitdeploy.backends.pytorch.runner import PyTorchRunner
from vitdeploy.backends.pytorch.variants import VARIANTS
from vitdeploy.backends.registry import RunnerSpec, open_runner
from vitdeploy.core.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), dtype=np.uint8)


def logits(checkpoint: Path, **options: object) -> np.ndarray:
    with PyTorchRunner(checkpoint, threads=1, **options) as runner:  # type: ignore[arg-type]
        return np.asarray(runner.infer({"image": PIXELS})["logits"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_changes_the_last_digits_and_no_more(tiny_checkpoint: Path, precision: str) -> None:
    exact, cast = logits(tiny_checkpoint), logits(tiny_checkpoint, autocast=precision)
    assert cast.dtype == np.float32
    # bfloat16 keeps 8 bits, summed over three layers.
    assert 0 < np.abs(cast - exact).max() < 0.1 * np.ptp(exact)


def test_an_unknown_type_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="fp8"):
        PyTorchRunner(tiny_checkpoint, autocast="fp8")


def test_the_image_processor_can_be_run_alone(tiny_checkpoint: Path) -> None:
    with PyTorchRunner(tiny_checkpoint, threads=1) as runner:
        assert runner.preprocess(PIXELS).shape == (3, 3, 32, 32)
        runner.infer({"image": PIXELS})
        assert runner.device_ms is None  # the CPU has no GPU time


@pytest.mark.full
def test_a_compiled_module_answers_the_same(tiny_checkpoint: Path) -> None:
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ on a CPU, and there is none here")
    assert np.allclose(logits(tiny_checkpoint, compiled=True), logits(tiny_checkpoint), atol=1e-4, rtol=0)


def test_events_are_recorded_on_the_models_own_gpu(tiny_checkpoint: Path) -> None:
    """Where there are two GPUs the second one's; without one, on a stand-in of torch.cuda that keeps the order."""
    import torch

    if torch.cuda.device_count() > 1:
        with PyTorchRunner(tiny_checkpoint, device="cuda:1") as runner:
            runner.infer({"image": PIXELS})
            assert runner.device_ms is not None and runner.device_ms > 0 and torch.cuda.current_device() == 0
        return
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append(f"record on {current[-1]}")

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return 1.5

    current = ["cuda:0"]

    @contextmanager
    def device(name: str) -> Iterator[None]:
        current.append(name)
        yield
        current.pop()

    runner = PyTorchRunner(tiny_checkpoint, device="cuda:1")
    runner._torch = SimpleNamespace(cuda=SimpleNamespace(Event=Event, device=device))
    with runner._stopwatch():
        log.append("the call")
    assert log == ["record on cuda:1", "the call", "record on cuda:1"] and current == ["cuda:0"]
    assert runner.device_ms == 1.5


def test_half_is_float16_throughout_and_what_is_prepared_answers_the_same(tiny_checkpoint: Path) -> None:
    exact = logits(tiny_checkpoint)
    with PyTorchRunner(tiny_checkpoint, threads=1, half=True) as runner:
        found = runner.infer({"image": PIXELS})["logits"]
        ready = runner.prepare(PIXELS)
        assert {str(weight.dtype) for weight in runner._module.parameters()} == {"torch.float16"} == {str(ready.dtype)}
        np.testing.assert_array_equal(runner.infer_prepared(ready)["logits"], found)
    # float16 keeps 11 bits, summed over three layers
    assert found.dtype == np.float32 and 0 < np.abs(found - exact).max() < 0.02 * np.ptp(exact)


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_as_asked_in_a_call_and_as_before_behind_it(tiny_checkpoint: Path, tf32: bool) -> None:
    """PyTorch's switches, which are there without a GPU as well."""
    import torch

    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    runner = PyTorchRunner(tiny_checkpoint, device="cuda", tf32=tf32)
    runner._torch = torch
    with pytest.raises(RuntimeError), runner._tf32_as_asked():
        assert (products.allow_tf32, convolutions.allow_tf32) == (tf32, tf32)
        raise RuntimeError
    assert (products.allow_tf32, convolutions.allow_tf32) == before


def test_every_way_to_run_it_opens(tiny_checkpoint: Path) -> None:
    forms = [way.form for way in VARIANTS.values()]
    assert len(set(forms)) == len(forms)
    for variant in VARIANTS:
        opened = open_runner(RunnerSpec("pytorch", str(tiny_checkpoint), 1, variant=variant))
        assert isinstance(opened, PyTorchRunner)
