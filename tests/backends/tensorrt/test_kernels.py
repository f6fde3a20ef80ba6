"""The kernels that TensorRT-RTX compiles on the device, on a simulated GPU: compiled once, kept, and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tools.simulated_gpu import GPU, RTX, Here, images, logits, model, rtx_runner, write_engine_bundle
from vitdeploy.backends.tensorrt import runner
from vitdeploy.core.errors import EngineError


def test_tensorrt_rtx_compiles_at_the_first_call_of_a_shape_and_never_again(
    here: Here, tmp_path: Path, kernels: Path
) -> None:
    path = write_engine_bundle(tmp_path / "b", **RTX)
    for compiled in (2, 2):  # the second start finds them
        with rtx_runner(path) as opened:
            for seed, count in enumerate((1, 1, 2, 1)):
                np.testing.assert_array_equal(
                    logits(opened, images(count, seed=seed)), model(images(count, seed=seed), 4)
                )
            assert opened.cuda_graphs == {"by": "TensorRT", "kept": 0, "why_not": None} and here.cuda.graphs == []
        assert here.rtx.compiled == compiled
    (file,) = kernels.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")  # damaged: not one of these is taken
    with rtx_runner(path, cuda_graphs=False) as opened:
        logits(opened, images(1))
        assert here.rtx.compiled == 3 and opened.cuda_graphs["why_not"] == "switched off"
    assert here.released()


@pytest.mark.parametrize("capability", ["8.0", "8.7", "9.0"])
def test_tensorrt_rtx_is_not_tried_on_a_gpu_that_it_is_not_for(
    here: Here, tmp_path: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    monkeypatch.setattr(runner, "gpus", lambda: (replace(GPU, compute_capability=capability),))
    path = write_engine_bundle(tmp_path / "b", **{**RTX, "compute_capabilities": [capability]})
    for options in ({}, {"trusted": True}):
        with (
            pytest.raises(EngineError, match=f"TensorRT-RTX is for .* here has {capability}"),
            rtx_runner(path, **options),
        ):
            pass
    assert not kernels.exists()


def test_kernels_are_kept_where_a_process_ends_without_closing(here: Here, tmp_path: Path, kernels: Path) -> None:
    path = write_engine_bundle(tmp_path / "b", **RTX)
    opened = rtx_runner(path).__enter__()
    logits(opened, images(1))
    assert [file.stat().st_size > 32 for file in kernels.iterdir()] == [True]
    with rtx_runner(path) as second:
        logits(second, images(1))
    assert here.rtx.compiled == 1
    opened.close()


def test_without_a_folder_for_kernels_they_are_compiled_anew(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "file" / "folder"))
    path = write_engine_bundle(tmp_path / "b", **RTX)
    for compiled in (1, 2):
        with rtx_runner(path) as opened:
            np.testing.assert_array_equal(logits(opened, images(1)), model(images(1), 4))
        assert here.rtx.compiled == compiled
    assert here.released()
