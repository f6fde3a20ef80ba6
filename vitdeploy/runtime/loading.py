"""`load`: a bundle -> an open classifier on the best backend that is here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from vitdeploy.backends.base import Runner
from vitdeploy.backends.registry import PERFORMANCES
from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import BundleError, DependencyError, EngineError, InputError, ModelError, VitdeployError
from vitdeploy.core.machine import check_threads
from vitdeploy.core.text import quoted
from vitdeploy.data.images import most_pixels
from vitdeploy.models.tasks import TASKS
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.runtime.remote import open_bundle
from vitdeploy.runtime.selection import Candidate, candidates, runner_for
from vitdeploy.runtime.serving import Serving

if TYPE_CHECKING:
    from vitdeploy.runtime.verification import Verifier

__all__ = ["load"]


def load(
    path: Bundle | str | os.PathLike[str],
    backend: str = "auto",
    precision: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    *,
    revision: str | None = None,
    performance: str = "latency",
    max_batch: int = Serving.max_batch,
    max_delay_ms: float = Serving.max_delay_ms,
    max_queue: int = Serving.max_queue,
    when_full: Literal["wait", "raise"] = Serving.when_full,
    max_pixels: int | None = None,
    threshold: float | None = None,
    verify: bool | Literal["once"] = False,
) -> Classifier:
    """Open a bundle to classify images with.

    With "auto", the fastest form within the accuracy budget is taken if `vitdeploy bench` measured the bundle on this
    machine, else the first that works of the order in `runtime.selection`. A form that the benchmark found to fail, or
    to break its limits on accuracy, is passed over wherever it was measured. `Classifier.describe()` says what was
    taken, why, and what was passed over.

    Example:
        with load("bundles/vit") as classifier:
            print(classifier.predict("cat.png").label)

    Args:
        path: the bundle's folder, or `owner/name` of one on the Hugging Face Hub, which is fetched into its cache.
        backend: "auto", or a name of `vitdeploy.backends.registry.names(bundles=True)`: "tensorrt", "openvino" ...; by
            name alone also "onnxruntime-tensorrt" and "onnxruntime-openvino", ONNX Runtime's providers of these.
        precision: "int8", "fp8", "fp16", "bf16", "fp32", or "auto".
        device: "cpu", "cuda" (engines, or ONNX Runtime's CUDA provider), or None: either.
        threads: CPU threads of one call; None: the backend's choice.
        revision: branch, tag or commit of a bundle on the Hub; None: its default branch.
        performance: OpenVINO's hint: "latency" gives one call all cores, "throughput" lets calls of several threads
            run side by side on fewer cores each. The other backends have no such choice.
        max_batch: 1: every call runs on its own. More: single images of callers at the same time go through the graph
            together, at most so many (micro-batching).
        max_delay_ms: longest that micro-batching lets a request wait for others while nothing runs.
        max_queue: most requests under way at a time, of those that are micro-batched or come by `predict_async` or
            `embed_async`.
        when_full: "wait" lets the next one wait in line, "raise" refuses it with QueueFullError.
        max_pixels: most pixels of one image; a larger one is refused before it is decoded. None: 89 million, fewer
            where the machine or the container has less than 24 bytes of memory for each.
        threshold: of a model with several labels an image: the score from which a label counts (`Prediction.labels`).
            None: the bundle's own, which fine-tuning found on its validation images, or 0.5 where it holds none.
        verify: True: a form is taken only if it passes the bundle's self-test here, else the next one is tried. "once":
            what passed before on this machine with these versions is not asked again; the user's cache folder has it.

    Returns:
        An open classifier: use it in a `with` block, or call its `close`.

    Raises:
        BundleError: it is not a bundle, it is damaged, or a file is not the one that its manifest describes.
        InputError: a name that is not known, a number out of range, or the bundle has no such form, or no self-test.
        ModelError: the only form left does not pass the self-test.
        DependencyError: no backend that could run it is installed.
        EngineError: the only forms left are engines, and they can't run here.
    """
    check_threads(threads)
    if performance not in PERFORMANCES:
        raise InputError(f"performance is {performance!r}", hint=f"one of {', '.join(PERFORMANCES)}")
    most = most_pixels() if max_pixels is None else max_pixels
    serving = Serving(max_batch, max_delay_ms, max_queue, when_full, most)
    bundle = open_bundle(path, revision)
    if threshold is not None:
        TASKS[bundle.manifest.task].threshold(threshold, str(bundle.path))
    found = candidates(bundle, backend, precision, device)
    make = partial(runner_for, threads=threads, performance=performance)
    return _first_that_opens(bundle, found, make, serving, _verifier(bundle, verify), threshold)


def _verifier(bundle: Bundle, verify: bool | str) -> Verifier | None:
    if verify is False:
        return None
    from vitdeploy.runtime.verification import verifier_for

    return verifier_for(bundle, verify)


def _first_that_opens(
    bundle: Bundle,
    found: Iterable[Candidate],
    make: Callable[[Bundle, Candidate], Runner],
    serving: Serving,
    verifier: Verifier | None,
    threshold: float | None,
) -> Classifier:
    """A classifier with the first of the candidates that works here; it is told of those that were passed over."""
    passed: list[Candidate] = []
    last: VitdeployError | None = None
    for candidate in found:
        if candidate.reason is not None:
            passed.append(candidate)
            continue
        runner = make(bundle, candidate)
        with ExitStack() as stack:
            try:
                stack.enter_context(runner)
                failure = None if verifier is None else verifier(candidate, runner)
                if failure is not None:
                    raise ModelError(
                        f"{candidate.name}: {failure}", hint=f"vitdeploy verify {quoted(bundle.path)} shows every form"
                    )
            except BundleError:  # a file that is not what the manifest describes: no other form hides that
                raise
            except VitdeployError as error:  # it does not work here: the next one may
                passed.append(replace(candidate, reason=error.message))
                last = error
                continue
            except Exception as error:  # a backend that stumbles over this form: the next one may not
                last = _stumbled(candidate, error)
                passed.append(replace(candidate, reason=last.message))
                continue
            classifier = Classifier(bundle, runner, candidate, tuple(passed), serving, threshold)
            stack.pop_all()  # the classifier holds the runner from here on
            return classifier
    raise _nothing(bundle, passed, last)


def _stumbled(candidate: Candidate, error: Exception) -> ModelError:
    made = ModelError(
        f"{candidate.name} can't open it: {type(error).__name__}: {error}",
        hint="take another backend or precision; `vitdeploy inspect` checks the file",
    )
    made.__cause__ = error
    return made


def _nothing(bundle: Bundle, passed: list[Candidate], last: VitdeployError | None) -> VitdeployError:
    """The error for "no candidate works": the one that it is if there is one alone, else a list of all."""
    if last is not None and len(passed) == 1:
        return last
    reasons = "; ".join(dict.fromkeys(f"{c.name}: {c.reason}" for c in passed))
    message = f"nothing here can run {bundle.path}: {reasons}"
    missing = [c for c in passed if c.install is not None]
    if missing:
        cpu = [c for c in missing if c.device == "cpu"]
        return DependencyError(message, hint=(cpu or missing)[0].install)
    if last is not None:
        kind = type(last)
        return kind(message, hint=last.hint)
    return EngineError(message, hint="take backend='auto' and device=None to run on the CPU")
