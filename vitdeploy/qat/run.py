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

from vitdeploy import __version__
from vitdeploy.bundle import Bundle
from vitdeploy.compiler.quantization.calibration import Calibration
from vitdeploy.core import progress
from vitdeploy.core.errors import InputError, ModelError, require
from vitdeploy.core.storage import check_apart, check_output, files_below, lists_all, staged_folder
from vitdeploy.core.text import quoted
from vitdeploy.data import ImageDataset, load_dataset, stratified_sample, stratified_split
from vitdeploy.data.labels import LabelMatch, match_dataset
from vitdeploy.models import hub
from vitdeploy.models.checkpoints import Checkpoint, load_checkpoint
from vitdeploy.qat.config import QatConfig, QatResult
from vitdeploy.qat.fake import FakeQuantized, fake_quantized
from vitdeploy.qat.loop import Pixels, measure_noise, train
from vitdeploy.qat.rebuild import compare_logits, put_in_place, rebuilt, tuned_calibration
from vitdeploy.qat.rounding import plan_rounding
from vitdeploy.training.distill import Distillation, Settings, taught_by
from vitdeploy.training.run import threads
from vitdeploy.training.splits import check_different, validation_count

__all__ = ["tune"]

_FACTS = "qat.json"
_WHAT = "folder of a quantisation-aware tune"
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
    check_apart(output, (config.model, config.bundle, config.dataset))
    bundle = Bundle.open(config.bundle)
    bundle.check_changeable()
    Bundle.check_output(bundle.path, overwrite=True)
    graph, calibration = _calibration(bundle)
    checkpoint = load_checkpoint(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    hint = f"build INT8 without a tune: vitdeploy build-engine {quoted(bundle.path)} --int8 --calibration-data D"
    checkpoint.task.require_single_label(checkpoint.source, "quantisation-aware tuning", hint)
    _check_size(bundle, checkpoint)
    data = _load_data(config, checkpoint)
    rounding = plan_rounding(graph, calibration, checkpoint.module)
    objective = _objective(config, checkpoint)
    before = _accuracies(bundle, data.test)
    progress.note(f"FP32 {before['fp32']:.2%}, INT8 {before['int8']:.2%} of {data.test} before the tune.")
    with threads(config.threads), _seeded(config.seed), fake_quantized(checkpoint.module, rounding) as state:
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
    return lists_all(folder, _FACTS, "files")


def _calibration(bundle: Bundle) -> tuple[Path, Calibration]:
    graph, cache = bundle.find(kind="onnx", precision="fp32"), bundle.find(kind="calibration")
    if graph is None or cache is None or bundle.find(kind="onnx", precision="int8", target="cpu") is None:
        raise InputError(
            f"{bundle.path} has no INT8 form to tune",
            hint=f"make one first: vitdeploy build-engine {quoted(bundle.path)} --int8 --calibration-data D",
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
    match: LabelMatch

    def describe(self) -> dict[str, Any]:
        described = {name: getattr(self, name).describe() for name in ("train", "validation", "test")}
        return {**described, "matching": self.match.to_json()}


def _load_data(config: QatConfig, checkpoint: Checkpoint) -> _Data:
    columns: dict[str, Any] = {"image_column": config.image_column, "label_column": config.label_column}
    whole = load_dataset(config.dataset, "train", limit=config.limit_train, seed=config.seed, **columns)
    test = load_dataset(config.dataset, config.test_split, limit=config.limit_test, seed=config.seed, **columns)
    check_different({"train": whole, "test": test})
    matches = [match_dataset(part, checkpoint.labels, config.match_labels) for part in (whole, test)]
    if matches[0].sentence:
        progress.note(f"Note: {matches[0].sentence}.")
    whole, test = (match.relabelled(part) for match, part in zip(matches, (whole, test), strict=True))
    count = validation_count(whole, config.validation, least=1)
    validation, train_set = stratified_split(whole, [count], seed=config.seed)
    return _Data(train_set, stratified_sample(validation, count), test, matches[0])


def _objective(config: QatConfig, checkpoint: Checkpoint) -> Distillation:
    """Cross-entropy and the answers of a teacher: unless another is named, the model itself, which does not round."""
    settings = Settings("soft", config.distill_temperature, config.distill_weight)
    teacher = checkpoint
    if config.distill is not None:
        teacher = load_checkpoint(config.distill, trust_remote_code=config.trust_remote_code)
    module = copy.deepcopy(teacher.module) if teacher is checkpoint else teacher.module
    made = taught_by(teacher, module, checkpoint.labels, config.match_labels, checkpoint.processor, settings)
    for note in made.notes:
        progress.note(note)
    return made


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
                logits = np.concatenate([classifier.logits(images) for images in test.parts(indices)])
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
        text = json.dumps({**facts, "files": files_below(staging)}, indent=2, ensure_ascii=False) + "\n"
        (staging / _FACTS).write_text(text, encoding="utf-8")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Dropout, where a model has it, from the seed; the caller's random state is left alone."""
    torch = require("torch", extra="build")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
