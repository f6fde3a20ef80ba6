"""What a benchmark measures and how, and what the form to ship must keep to: the one settings object of `bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from vitdeploy.backends.pytorch.variants import VARIANTS
from vitdeploy.backends.registry import PERFORMANCES, names
from vitdeploy.core.errors import InputError
from vitdeploy.core.machine import check_threads
from vitdeploy.core.settings import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    BETWEEN,
    DIFFERENT,
    OneOf,
    check,
    frozen,
)
from vitdeploy.core.specs import LabelWay
from vitdeploy.data.labels import BY_NAME
from vitdeploy.evaluation.limits import NEIGHBOURS

__all__ = ["DEVICES", "PREFERENCES", "BenchSettings"]

Device = Literal["auto", "cpu", "cuda"]
Preference = Literal["latency", "throughput", "size"]
DEVICES: tuple[str, ...] = get_args(Device)
PREFERENCES: tuple[str, ...] = get_args(Preference)


@dataclass(frozen=True)
class BenchSettings:
    """What to measure; sequences may be given as lists.

    Args:
        limit: how many images to compare, drawn so that each class keeps its share; None: all.
        batch_sizes: images per timed call; tables and sentences speak of the first.
        image_sizes: (height, width) to which images are resized for timing; none: the dataset's most common size.
        backends: of `vitdeploy.backends.registry.names()`; None: all but those that are taken by name only, as ONNX
            Runtime's TensorRT and OpenVINO are. The baseline always runs.
        performance: what backends that have the choice (OpenVINO) are opened for: "latency" or "throughput".
        precisions: fp32, fp16, bf16, int8, fp8, or int8-tensorrt for the graph that engines are built from; None: all.
        baselines: further PyTorch rows, of `backends.pytorch.variants`: products in TF32, autocast in bf16 or fp16,
            float16 throughout, torch.compile, without the image processor's time.
        device: where PyTorch runs: "cuda", "cpu", or "auto" for a GPU where there is one.
        threads: CPU threads, the same for every backend; None: as many as there are usable cores.
        latency: measure times.
        accuracy: compare answers.
        memory: measure memory and cold start, each form in a process of its own (with `latency` only).
        phases: measure decoding, preprocessing, model and what follows apart (with `latency` only).
        callers: for each number, throughput with that many callers who send one request after another.
        rates: for each number, latency while that many requests per second arrive.
        load_seconds: how long each form is under each such load.
        match_labels: how the dataset's classes are found among the model's, "name" or "position": see `data.labels`.
        threshold: the score, 0..1, from which a label counts in F1 and exact match, of models with several labels;
            None: the bundle's own, or 0.5 where it holds none.
        max_drop_points: of top-1 against the baseline, that the form to ship may lose; of mAP with several labels; of
            an embedding, of a classifier by nearest neighbours, where the images have classes.
        neighbours: of an embedding: how many neighbours are looked at, the k of recall@k and of the classifier.
        min_cosine: of an embedding: the least that the mean cosine to the baseline's vectors may be, by the lower end
            of its 95 % interval; None: no limit.
        min_recall: the same of recall@k, against the baseline's neighbours.
        max_latency_ms: the most its p95 may be, at the first batch and image size; None: no limit.
        max_memory_bytes: the most that its process and the GPU may hold together; None: no limit.
        prefer: what the form to ship shall be best at.
        seed: orders the rounds, draws the `limit` images and the arrivals.
        rounds: how often each form has its turn; fewer, but not under `min_rounds`, once `max_seconds` are over.
        steady_calls: kept calls of a turn that follow each other without a rest, the same number of every form.
        warmup_seconds: the longest that a form is warmed up; it ends when the time is stable.
        gpu_warmup_seconds: the shortest that a form on a GPU is warmed up, whose clock rises meanwhile.
        rest_seconds: pass in every turn before the first call that is kept: the worker threads of a runtime go on
            looking for work after a call (65 ms were seen), and would take the processor from the next form's.
        keep_gpu_busy: in place of that rest a form on a GPU makes calls that are not kept, so that its clock stays up:
            then no time is of a GPU that was at rest.
        accuracy_batch: images per call while answers are compared.
        open_bytes: what the forms that are open at once may take; None: a share of the free memory.

    Raises:
        InputError: a value out of range; the hint names the option.
    """

    limit: Annotated[int | None, AT_LEAST_ONE] = None
    batch_sizes: Annotated[tuple[int, ...], AT_LEAST_ONE, DIFFERENT] = (1,)
    image_sizes: Annotated[tuple[tuple[int, int], ...], AT_LEAST_ONE, DIFFERENT] = ()
    backends: Annotated[tuple[str, ...] | None, OneOf("backend", names)] = None
    precisions: tuple[str, ...] | None = None
    performance: Annotated[str, OneOf("performance", PERFORMANCES), "performance"] = "latency"
    baselines: Annotated[tuple[str, ...], OneOf("baseline", tuple(filter(None, VARIANTS)))] = ()
    device: Device = "auto"
    threads: int | None = None
    latency: bool = True
    accuracy: bool = True
    memory: bool = True
    phases: bool = True
    callers: Annotated[tuple[int, ...], AT_LEAST_ONE, DIFFERENT] = ()
    rates: Annotated[tuple[float, ...], ABOVE_ZERO, DIFFERENT] = ()
    load_seconds: Annotated[float, ABOVE_ZERO] = 6.0
    match_labels: LabelWay = BY_NAME
    threshold: Annotated[float | None, BETWEEN] = None
    max_drop_points: Annotated[float, AT_LEAST_ZERO] = 1.0
    neighbours: Annotated[int, AT_LEAST_ONE] = NEIGHBOURS
    min_cosine: Annotated[float | None, BETWEEN] = None
    min_recall: Annotated[float | None, BETWEEN] = None
    max_latency_ms: Annotated[float | None, ABOVE_ZERO] = None
    max_memory_bytes: Annotated[int | None, ABOVE_ZERO] = None
    prefer: Preference = "latency"
    seed: int = 0
    rounds: Annotated[int, AT_LEAST_ONE] = 50
    min_rounds: int = 10
    max_seconds: Annotated[float, AT_LEAST_ZERO] = 120.0
    steady_calls: Annotated[int, AT_LEAST_ONE] = 3
    warmup_seconds: float = 5.0
    gpu_warmup_seconds: Annotated[float, AT_LEAST_ZERO] = 0.5
    rest_seconds: float = 0.08
    keep_gpu_busy: bool = False
    accuracy_batch: int = 16
    open_bytes: int | None = None

    def __post_init__(self) -> None:
        frozen(self)
        check(self)
        check_threads(self.threads)
        if not self.batch_sizes:
            raise InputError("there is no batch size to measure", hint="--batch-size 1,8")
        if not (self.latency or self.accuracy):
            raise InputError("neither latency nor accuracy is to be measured", hint="leave one of the two on")
        if self.max_latency_ms is not None and not self.latency:
            raise InputError("a limit on latency needs latency to be measured", hint="leave --no-latency out")
        if self.max_memory_bytes is not None and not (self.latency and self.memory):
            raise InputError("a limit on memory needs memory to be measured", hint="leave --no-memory out")
