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

from vitdeploy.backends.registry import open_runner
from vitdeploy.backends.subgraphs import preprocessing_of
from vitdeploy.bench.forms import Form
from vitdeploy.bench.latency import Call, Clock, LatencyRun
from vitdeploy.bundle.onnx_messages import read_model
from vitdeploy.core.errors import VitdeployError
from vitdeploy.core.specs import TOP_K
from vitdeploy.core.storage import disk_errors
from vitdeploy.data import ImageDataset
from vitdeploy.evaluation.accuracy import Infers
from vitdeploy.evaluation.batches import Pixels
from vitdeploy.evaluation.statistics import median, ratio_interval, softmax
from vitdeploy.report.records import Phases
from vitdeploy.report.settings import BenchSettings

__all__ = ["ROUNDS", "PhasesRun", "cut_preprocessing", "time_decoding"]

ROUNDS = 15
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
        settings: BenchSettings,
        clock: Clock,
    ) -> None:
        self._forms = forms
        self._runners = runners
        self._batch = batch
        self._decode_ms = decode_ms
        few = min(ROUNDS, settings.rounds)
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
            part = stack.enter_context(open_runner(replace(form.spec, path=str(path), hashes=None)))
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
            share, interval = ratio_interval(part_ms, all_ms)
            typical = median(all_ms)
            self.found[form.key] = Phases(
                decode_ms=None if self._decode_ms is None else self._decode_ms * len(self._batch),
                preprocess_ms=min(share, 1.0) * typical,
                model_ms=max(0.0, 1.0 - share) * typical,
                post_ms=post_ms,
                preprocess_share=min(share, 1.0),
                preprocess_share_ci95=interval and (min(interval[0], 1.0), min(interval[1], 1.0)),
            )

    def _post_ms(self) -> float:
        runner = next(iter(self._runners.values()))
        made = runner.infer({"image": self._batch})
        if "logits" not in made:  # a vector is the answer as it is
            return 0.0
        logits = np.asarray(made["logits"], dtype=np.float32)
        return _typical_ms(lambda: np.argsort(-softmax(logits), axis=-1, kind="stable")[:, :TOP_K], 50, self._clock)


def cut_preprocessing(graph: Path, path: Path) -> bool:
    """Write the part of an ONNX form between `image` and `pixel_values`; False where it has none or onnx is missing."""
    if importlib.util.find_spec("onnx") is None:
        return False
    import onnx

    part = preprocessing_of(read_model(graph.read_bytes()))
    if part is None:
        return False
    model = onnx.load_model_from_string(part)
    onnx.load_external_data_for_model(model, str(graph.parent))
    with disk_errors("the preprocessing apart"):
        onnx.save(model, path)
    return True


def time_decoding(images: ImageDataset, clock: Clock) -> float | None:
    """Median milliseconds from an image's bytes to its pixels; None where images are not files."""
    from vitdeploy.data.images import decode

    places = np.unique(np.linspace(0, len(images) - 1, num=min(len(images), _DECODED)).astype(int)).tolist()
    files = {index: content for index in places if isinstance(content := images.encoded(index), bytes)}
    if not files:
        return None
    images.image(places[0])
    times = []
    for index, content in files.items():
        began = clock.now()
        decode(content, name=images.title(index))
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
