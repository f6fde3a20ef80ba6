"""From a checkpoint and its bundle to both of them tuned: data, tune, export, checks, measurement."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy import __version__, hub, progress
from vitdeploy.bundle import Bundle
from vitdeploy.checkpoints import Checkpoint, load_checkpoint
from vitdeploy.compiler.calibration import Calibration
from vitdeploy.datasets import ImageDataset, load_dataset, stratified_sample, stratified_split
from vitdeploy.errors import DatasetError, InputError, ModelError, require
from vitdeploy.qat.config import QatConfig, QatResult
from vitdeploy.qat.fake import FakeQuantized, fake_quantized
from vitdeploy.qat.loop import Pixels, measure_noise, train
from vitdeploy.qat.placement import plan_placement
from vitdeploy.qat.rebuild import compare_logits, put_in_place, rebuilt, tuned_calibration
from vitdeploy.storage import check_output, staged_folder
from vitdeploy.training.distill import Distillation, Settings, class_columns, teacher_view

__all__ = ["tune"]

_FACTS = "qat.json"
_WHAT = "folder of a quantisation-aware tune"
_MOST_VALIDATION_IMAGES = 1000
_COMPARED = 32
_NOISE_IMAGES = 64


def tune(config: QatConfig) -> QatResult:
    """Tune a checkpoint with its bundle's INT8 rounding inside, and export it back into the bundle.

    `config.output` gets the tuned checkpoint with its facts in qat.json. The bundle is replaced, whole, by one of the
    tuned weights: FP32 and all forms that it had. Its engines and measurements are of the old weights and go.

    Raises:
        ModelError: the checkpoint is not the one in the bundle; the tune did not help; a check failed. The bundle and
            whatever was at `config.output` are unchanged then, except that a failed check leaves the tuned checkpoint.
        InputError, BundleError, DatasetError, OutputExistsError: before any training.
    """
    started = time.perf_counter()
    output = Path(config.output)
    check_output(output, overwrite=config.overwrite, ours=_is_ours, what=_WHAT)
    bundle = Bundle.open(config.bundle)
    graph, calibration = _calibration(bundle)
    checkpoint = load_checkpoint(config.model, revision=config.revision)
    _check_size(bundle, checkpoint)
    data = _load_data(config, checkpoint)
    placement = plan_placement(graph, calibration, checkpoint.module)
    objective = _objective(config, checkpoint)
    before = _accuracies(bundle, data.test)
    progress.note(f"FP32 {before['fp32']:.2%}, INT8 {before['int8']:.2%} of {data.test} before the tune.")
    with _threads(config.threads), _seeded(config.seed), fake_quantized(checkpoint.module, placement) as state:
        facts, noise = _learn(state, checkpoint, objective, data, config)
        _save(state, checkpoint, config, facts)
        images = [data.validation.image(index) for index in range(min(_COMPARED, len(data.validation)))]
        with rebuilt(bundle, output, lambda digest: tuned_calibration(calibration, state, noise, digest), facts) as new:
            check = compare_logits(state, checkpoint.processor, new, images)
            progress.note(str(check))
            placed = put_in_place(new, bundle, check)
    after = _accuracies(placed, data.test)
    return QatResult(
        output=output,
        bundle=placed.path,
        fp32_before=before["fp32"],
        int8_before=before["int8"],
        fp32_after=after["fp32"],
        int8_after=after["int8"],
        test_images=len(data.test),
        steps=facts["steps"],
        best_step=facts["best_step"],
        seconds=time.perf_counter() - started,
        validation=tuple(facts["validation"]),
        checks=(check.to_json(),),
        data=data.describe(),
    )


def _learn(
    state: FakeQuantized, checkpoint: Checkpoint, objective: Distillation, data: _Data, config: QatConfig
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train; what there is to say of it, and the rounding noise that is left (see `measure_noise`)."""
    state.add_corrections()
    pixels, validation = Pixels(checkpoint.processor, data.train), Pixels(checkpoint.processor, data.validation)
    steps, best, points = train(state, objective, pixels, validation, config)
    if best == 0:
        raise ModelError(
            f"no step of the tune was better than the calibration on {len(data.validation)} validation images",
            hint="tune longer (--max-steps), or with another --learning-rate; nothing was changed",
        )
    facts = {
        "settings": config.to_json(),
        "vitdeploy": __version__,
        "data": data.describe(),
        "steps": steps,
        "best_step": best,
        "validation": points,
    }
    return facts, measure_noise(state, validation, _NOISE_IMAGES)


def _is_ours(folder: Path) -> bool:
    return (folder / _FACTS).is_file() and (folder / "config.json").is_file()


def _calibration(bundle: Bundle) -> tuple[Path, Calibration]:
    graph, cache = bundle.find(kind="onnx", precision="fp32"), bundle.find(kind="calibration")
    if graph is None or cache is None or bundle.find(kind="onnx", precision="int8", target="cpu") is None:
        raise InputError(
            f"{bundle.path} has no INT8 form to tune",
            hint=f"make one first: vitdeploy build-engine {bundle.path} --int8 --calibration-data D --target onnx",
        )
    return bundle.file(graph), Calibration.load(bundle.file(cache), graph.sha256)


def _check_size(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Refuse a bundle that was exported for images of another size than its checkpoint's."""
    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    values = checkpoint.processor(blank, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    own, exported = list(values[0].shape[1:]), bundle.manifest.model.get("image_size")
    if exported is not None and exported != own:
        raise InputError(
            f"{bundle.path} is for {exported[0]}x{exported[1]} pixels, the checkpoint for {own[0]}x{own[1]}",
            hint="fine-tune with --image-size first, export that, and tune it",
        )


@dataclass(frozen=True)
class _Data:
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset

    def describe(self) -> dict[str, Any]:
        return {name: getattr(self, name).describe() for name in ("train", "validation", "test")}


def _load_data(config: QatConfig, checkpoint: Checkpoint) -> _Data:
    columns = {"image_column": config.image_column, "label_column": config.label_column}
    whole = load_dataset(config.dataset, "train", limit=config.limit_train, seed=config.seed, **columns)
    test = load_dataset(config.dataset, "test", limit=config.limit_test, seed=config.seed, **columns)
    for dataset in (whole, test):
        if dataset.labels != checkpoint.labels:
            raise DatasetError(
                f"{dataset} has other classes than {checkpoint.source}",
                hint="tune on the dataset that the model was fine-tuned on",
            )
    count = config.validation or max(1, min(round(len(whole) / 10), _MOST_VALIDATION_IMAGES))
    if count >= len(whole):
        raise DatasetError(
            f"{count} validation images leave none of the {len(whole)} of {whole} to tune on",
            hint="use a smaller --validation or a larger --limit-train",
        )
    validation, train_set = stratified_split(whole, [count], seed=config.seed)
    return _Data(train_set, stratified_sample(validation, count), test)


def _objective(config: QatConfig, checkpoint: Checkpoint) -> Distillation:
    """Cross-entropy and the answers of a teacher: unless another is named, the model itself, which does not round."""
    settings = Settings("soft", config.distill_temperature, config.distill_weight)
    teacher = checkpoint if config.distill is None else load_checkpoint(config.distill)
    columns = class_columns(teacher, checkpoint.labels, teacher.source)
    module = copy.deepcopy(teacher.module) if teacher is checkpoint else teacher.module
    return Distillation(module, columns, teacher_view(checkpoint.processor, teacher.processor), settings)


def _accuracies(bundle: Bundle, test: ImageDataset) -> dict[str, float]:
    """Top-1 of the FP32 and the INT8 graph in ONNX Runtime."""
    from vitdeploy.runtime import load

    accuracies = {}
    for precision in ("fp32", "int8"):
        right = 0
        with (
            load(bundle, "onnxruntime", precision) as classifier,
            progress.task(f"Measuring {precision.upper()}", total=len(test), unit="images") as step,
        ):
            for start in range(0, len(test), 64):
                indices = range(start, min(start + 64, len(test)))
                logits = classifier.logits([test.image(index) for index in indices])
                right += int((logits.argmax(axis=1) == test.label_ids[start : start + len(indices)]).sum())
                step.advance(len(indices))
        accuracies[precision] = right / len(test)
    return accuracies


def _save(state: FakeQuantized, checkpoint: Checkpoint, config: QatConfig, facts: dict[str, Any]) -> None:
    with (
        staged_folder(Path(config.output), overwrite=config.overwrite, ours=_is_ours, what=_WHAT) as staging,
        hub.quiet_libraries(),
    ):
        state.module.save_pretrained(staging)
        checkpoint.processor.save_pretrained(staging)
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (staging / _FACTS).write_text(text, encoding="utf-8")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    torch = require("torch", extra="build")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Dropout, where a model has it, from the seed; the caller's random state is left alone."""
    torch = require("torch", extra="build")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
