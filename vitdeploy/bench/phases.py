"""Where the time of a call goes: decoding the file, preprocessing, the model, and what follows it.

- decode: an image of the dataset from its file's bytes to pixels, by the decoder that `load` uses.
- preprocess: for PyTorch the image processor, for an ONNX form the graph between `image` and `pixel_values`, cut out
  and run by the same backend with the same threads, in front of our own kernels by ONNX Runtime. It is timed in turns
  with the whole call.
- model: the whole call less its preprocessing, both medians over the same rounds.
- post: softmax and the five best classes of one call's logits, in NumPy, as a prediction needs them.

An engine is one piece: it has no split.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy.bench.accuracy import Infers, Pixels
from vitdeploy.bench.forms import Form
from vitdeploy.bench.latency import Call, Clock, LatencyRun, LatencySettings
from vitdeploy.bench.report import Phases
from vitdeploy.bench.runners import open_runner
from vitdeploy.bench.statistics import median, ratio_interval, softmax
from vitdeploy.errors import VitdeployError
from vitdeploy.runtime.front import preprocessing_of
from vitdeploy.storage import disk_errors

__all__ = ["PhasesRun", "cut_preprocessing", "time_decoding"]

_ROUNDS = 15
_DECODED = 50  # images, at most
_PART = " (preprocessing)"


class PhasesRun:
    """Times the preprocessing of forms in turns with their whole calls.

    Args:
        forms: those that are open.
        runners: what they were opened as, by key.
        batch: the images of a call, (batch, height, width, 3).
        decode_ms: of one image.
    """

    def __init__(
        self,
        forms: list[Form],
        runners: Mapping[str, Infers],
        batch: Pixels,
        decode_ms: float | None,
        settings: LatencySettings,
        clock: Clock,
    ) -> None:
        self._forms = forms
        self._runners = runners
        self._batch = batch
        self._decode_ms = decode_ms
        few = min(_ROUNDS, settings.rounds)
        self._settings = replace(settings, rounds=few, min_rounds=min(few, 5), max_seconds=settings.max_seconds / 4)
        self._clock = clock
        self.found: dict[str, Phases] = {}

    def run(self) -> None:
        """Fill `found`; a form whose preprocessing can't be run apart is left out."""
        with ExitStack() as stack:
            calls: dict[str, Call] = {}
            for form in self._forms:
                part = self._part(form, stack)
                if part is not None:
                    calls[form.key] = _whole(self._runners[form.key], self._batch)
                    calls[form.key + _PART] = part
            run = LatencyRun(calls, self._settings, clock=self._clock, title="Measuring phases")
            try:
                run.run()
            finally:
                self._collect(run)

    def _part(self, form: Form, stack: ExitStack) -> Call | None:
        """A call that does the preprocessing alone."""
        runner: Any = self._runners[form.key]
        if hasattr(runner, "preprocess"):
            return _silent(lambda: runner.preprocess(self._batch))
        if form.graph is None or form.spec is None:
            return None
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vitdeploy-phases-"))
        path = Path(folder) / "preprocessing.onnx"
        try:
            if not cut_preprocessing(form.graph, path):
                return None
            part = stack.enter_context(open_runner(replace(form.spec, path=str(path))))
            return _whole(part, self._batch)
        except VitdeployError:
            return None

    def _collect(self, run: LatencyRun) -> None:
        post_ms = self._post_ms()
        for form in self._forms:
            whole, part = run.tracks.get(form.key), run.tracks.get(form.key + _PART)
            if whole is None or part is None:
                continue
            all_ms, part_ms = whole.paired_with(part)
            if not all_ms:
                continue
            share, (low, high) = ratio_interval(part_ms, all_ms)
            typical = median(all_ms)
            self.found[form.key] = Phases(
                decode_ms=None if self._decode_ms is None else self._decode_ms * len(self._batch),
                preprocess_ms=min(share, 1.0) * typical,
                model_ms=max(0.0, 1.0 - share) * typical,
                post_ms=post_ms,
                preprocess_share=min(share, 1.0),
                preprocess_share_ci95=(min(low, 1.0), min(high, 1.0)),
            )

    def _post_ms(self) -> float:
        runner = next(iter(self._runners.values()))
        logits = np.asarray(runner.infer({"image": self._batch})["logits"], dtype=np.float32)
        return _typical_ms(lambda: np.argsort(-softmax(logits), axis=-1, kind="stable")[:, :5], 50, self._clock)


def cut_preprocessing(graph: Path, path: Path) -> bool:
    """Write the part of an ONNX form between `image` and `pixel_values`; False where it has none or onnx is missing."""
    if importlib.util.find_spec("onnx") is None:
        return False
    import onnx

    part = preprocessing_of(onnx.load(graph))
    if part is None:
        return False
    with disk_errors("the preprocessing apart"):
        onnx.save(part, path)
    return True


def time_decoding(read: Callable[[int], bytes | npt.NDArray[np.uint8]], count: int, clock: Clock) -> float | None:
    """Median milliseconds from an image's bytes to its pixels; None where images are no files."""
    from vitdeploy.images import decode

    places = np.unique(np.linspace(0, count - 1, num=min(count, _DECODED)).astype(int))
    files = [content for content in map(read, map(int, places)) if isinstance(content, bytes)]
    if not files:
        return None
    decode(files[0])
    times = []
    for content in files:
        began = clock.now()
        decode(content)
        times.append((clock.now() - began) * 1000)
    return median(times)


def _whole(runner: Infers, batch: Pixels) -> Call:
    return _silent(lambda: runner.infer({"image": batch}))


def _silent(work: Callable[[], object]) -> Call:
    def call(number: int) -> None:
        work()

    return call


def _typical_ms(work: Callable[[], object], times: int, clock: Clock) -> float:
    passed = []
    for _ in range(times):
        began = clock.now()
        work()
        passed.append((clock.now() - began) * 1000)
    return median(passed)
