"""`load`: a bundle -> an open classifier on the best backend that is here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BundleError, DependencyError, EngineError, InputError, VitdeployError
from vitdeploy.images import MAX_PIXELS
from vitdeploy.runtime.base import Runner
from vitdeploy.runtime.classifier import Classifier
from vitdeploy.runtime.selection import Candidate, candidates
from vitdeploy.runtime.serving import Serving

__all__ = ["load"]


def load(
    path: Bundle | str | os.PathLike[str],
    backend: str = "auto",
    precision: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    *,
    performance: str = "latency",
    max_batch: int = 1,
    max_delay_ms: float = 2.0,
    max_queue: int = 256,
    when_full: str = "wait",
    max_pixels: int = MAX_PIXELS,
) -> Classifier:
    """Open a bundle to classify images with.

    With "auto", the fastest form within the accuracy budget is taken if `vitdeploy bench` measured the bundle on this
    machine. Else the first that works of this list: on a machine with an NVIDIA GPU the bundle's TensorRT engines
    (INT8, FP16, BF16, FP32), then FP16 and FP32 on ONNX Runtime's CUDA provider; on the CPU INT8, FP32, FP16 and BF16,
    each on OpenVINO, then on ONNX Runtime, and INT8 of a plain ViT before both by our own kernels ("native"; after both
    where the processor has AMX). A form that the benchmark found to fail, or to lose more top-1 than its budget, is
    passed over wherever it was measured. `Classifier.describe()` says what was taken, why, and what was passed over.

    Example:
        with load("bundles/vit") as classifier:
            print(classifier.predict("cat.png").label)

    Args:
        path: the bundle's folder.
        backend: "tensorrt", "tensorrt-rtx", "native", "openvino", "onnxruntime", or "auto"; by name alone also
            "onnxruntime-tensorrt" and "onnxruntime-openvino", ONNX Runtime's providers of these.
        precision: "int8", "fp16", "bf16", "fp32", or "auto".
        device: "cpu", "cuda" (engines, or ONNX Runtime's CUDA provider), or None: either.
        threads: CPU threads of one call; None: the backend's choice.
        performance: OpenVINO's hint: "latency" gives one call all cores, "throughput" lets calls of several threads
            run side by side on fewer cores each. The other backends have no such choice.
        max_batch: 1: every call runs on its own. More: single images of callers at the same time go through the graph
            together, at most so many (micro-batching).
        max_delay_ms: longest that micro-batching lets a request wait for others while nothing runs.
        max_queue: most requests under way at a time, of those that are micro-batched or come by `predict_async`.
        when_full: "wait" lets the next one wait in line, "raise" refuses it with QueueFullError.
        max_pixels: most pixels of one image; a larger one is refused before it is decoded.

    Returns:
        An open classifier: use it in a `with` block, or call its `close`.

    Raises:
        BundleError: it is no bundle, it is damaged, or a file is not the one that its manifest describes.
        InputError: a name that is not known, a number out of range, or the bundle has no such form.
        DependencyError: no backend that could run it is installed.
        EngineError: the only forms left are engines, and they can't run here.
    """
    _check(threads, performance)
    serving = Serving(max_batch, max_delay_ms, max_queue, when_full, max_pixels)
    bundle = path if isinstance(path, Bundle) else Bundle.open(path)
    found = candidates(bundle, backend, precision, device)
    return _first_that_opens(bundle, found, partial(_runner, threads=threads, performance=performance), serving)


def _check(threads: int | None, performance: str) -> None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}", hint="give a whole number of at least 1, or None")
    if performance not in ("latency", "throughput"):
        raise InputError(f"performance is {performance!r}", hint='one of "latency", "throughput"')


def _first_that_opens(
    bundle: Bundle, found: Iterable[Candidate], make: Callable[[Bundle, Candidate], Runner], serving: Serving
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
            except BundleError:  # a file that is not what the manifest describes: no other form hides that
                raise
            except VitdeployError as error:  # it does not work here: the next one may
                passed.append(replace(candidate, reason=error.message))
                last = error
                continue
            classifier = Classifier(bundle, runner, candidate, tuple(passed), serving)
            stack.pop_all()  # the classifier holds the runner from here on
            return classifier
    raise _nothing(bundle, passed, last)


def _runner(bundle: Bundle, candidate: Candidate, threads: int | None, performance: str) -> Runner:
    """A runner that is not open yet; the file's hash is checked here, and a wrong one ends the search. An engine's
    runner compares the very bytes that it loads."""
    path = bundle.file(candidate.artifact, verify=candidate.artifact.kind != "engine")
    if candidate.backend == "native":
        from vitdeploy.runtime.native import NativeRunner

        return NativeRunner(path, threads=threads)
    if candidate.backend == "openvino":
        from vitdeploy.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner(path, threads=threads, performance=performance)
    if candidate.backend.startswith("onnxruntime"):
        from vitdeploy.runtime.onnxruntime import OnnxRuntimeRunner

        provider = candidate.backend.partition("-")[2] or candidate.device
        return OnnxRuntimeRunner(path, threads=threads, device=candidate.device, provider=provider)
    from vitdeploy.runtime.tensorrt import TensorRTRunner

    return TensorRTRunner(path, flavour=candidate.backend)


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
