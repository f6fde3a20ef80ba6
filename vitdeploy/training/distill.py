"""Learning from a teacher: soft labels, and DeiT's distillation token.

With z the student's logits, t the teacher's, y the label, sigma the softmax, T a temperature and a a weight:

    soft    (1 - a) CE(z, y) + a T^2 KL(sigma(t / T) || sigma(z / T))     Hinton, Vinyals & Dean 2015
    hard    (1 - a) CE(z, y) + a CE(z', argmax t)                         Touvron et al. 2021 (DeiT)

z' are the logits of the distillation token where the student has one (DeiTForImageClassificationWithTeacher); they take
the teacher's part of either loss, and z is the class token's. Other students answer both with their only logits. T^2
keeps the teacher's gradients as large as the label's whatever T is.

The teacher sees the very pixels that the student sees, crop and augmentation included (Beyer et al. 2022: "A good
teacher is patient and consistent"). Where its image processor differs, the student's normalisation is undone, the image
is resized (bicubic) to the teacher's size, and normalised as the teacher wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.core.errors import require
from vitdeploy.data.labels import match_labels
from vitdeploy.models.checkpoints import Checkpoint, load_checkpoint

if TYPE_CHECKING:
    from vitdeploy.training.config import FinetuneConfig
    from vitdeploy.training.models import Trainable

__all__ = ["Distillation", "Settings", "load_distillation", "soft_loss", "taught_by", "teacher_view"]


@dataclass(frozen=True)
class Settings:
    """How much a student listens: see the module."""

    kind: str = "soft"
    temperature: float = 3.0
    weight: float = 0.5
    smoothing: float = 0.0


def load_distillation(config: FinetuneConfig, model: Trainable, labels: tuple[str, ...]) -> Distillation | None:
    """The objective that `config.distill` asks for, None where it names no teacher.

    Raises:
        ModelError: the teacher can't be loaded.
        DatasetError: it does not know the dataset's classes.
    """
    if config.distill is None:
        return None
    kind = config.distill_kind
    if kind == "auto":
        kind = "hard" if hasattr(model.module, "distillation_classifier") else "soft"
    settings = Settings(kind, config.distill_temperature, config.distill_weight, config.label_smoothing)
    teacher = load_checkpoint(config.distill, trust_remote_code=config.trust_remote_code)
    return taught_by(teacher, teacher.module, labels, config.match_labels, model.processor, settings)


def taught_by(
    teacher: Checkpoint, module: Any, labels: tuple[str, ...], way: str, processor: Any, settings: Settings
) -> Distillation:
    """The objective for a student with that image processor and those classes, found among the teacher's by `way`.

    Raises:
        DatasetError: the teacher does not know one of them.
        ModelError: it is not a classifier with one class an image.
    """
    teacher.task.require_single_label(teacher.source, "teaching", "take a teacher that gives one class an image")
    match = match_labels(teacher.labels, labels, way, who=f"the teacher {teacher.source}")
    note = (f"The teacher's classes: {match.sentence}.",) if match.sentence else ()
    columns = match.classes.tolist()
    return Distillation(module, columns, teacher_view(processor, teacher.processor), settings, note)


class Distillation:
    """An Objective: in training the teacher's loss and the label's, in evaluation plain cross-entropy."""

    def __init__(
        self,
        teacher: Any,
        columns: list[int],
        view: Callable[[Any], Any],
        settings: Settings,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.notes = notes
        self._teacher = teacher.eval().requires_grad_(False)
        self._columns, self._view, self._settings = columns, view, settings

    @property
    def kind(self) -> str:
        """soft or hard."""
        return self._settings.kind

    def __call__(self, module: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        torch = require("torch", extra="build")
        pixels, labels, settings = batch["pixel_values"], batch["labels"], self._settings
        output = module(pixel_values=pixels)
        cross_entropy = torch.nn.functional.cross_entropy
        if not module.training:
            return cross_entropy(output.logits.float(), labels), output
        own = getattr(output, "cls_logits", None)
        own = output.logits if own is None else own
        taught = getattr(output, "distillation_logits", None)
        taught = own if taught is None else taught
        answers = self.teacher_logits(pixels)
        base = cross_entropy(own.float(), labels, label_smoothing=settings.smoothing)
        if settings.kind == "hard":
            lesson = cross_entropy(taught.float(), answers.argmax(dim=-1))
        else:
            lesson = soft_loss(taught.float(), answers, settings.temperature)
        return (1 - settings.weight) * base + settings.weight * lesson, output

    @property
    def weight_bytes(self) -> int:
        """What the teacher's weights take."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self._teacher.parameters())

    def teacher_logits(self, pixels: Any) -> Any:
        """What the teacher says of the student's pixels, (batch, classes) float32 in the student's order of classes."""
        torch = require("torch", extra="build")
        if next(self._teacher.parameters()).device != pixels.device:
            self._teacher.to(pixels.device)
        with torch.no_grad():
            return self._teacher(pixel_values=self._view(pixels)).logits.float()[:, self._columns]


def soft_loss(logits: Any, answers: Any, temperature: float) -> Any:
    """T^2 KL(sigma(answers / T) || sigma(logits / T)), the mean over a batch (batch, classes)."""
    functional = require("torch", extra="build").nn.functional
    student = functional.log_softmax(logits / temperature, dim=-1)
    teacher = functional.log_softmax(answers / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def teacher_view(student: Any, teacher: Any) -> Callable[[Any], Any]:
    """From pixel values of the student's image processor to those of the teacher's, (batch, 3, height, width) each."""
    torch = require("torch", extra="build")
    (scale, shift), (their_scale, their_shift) = _affine(torch, student), _affine(torch, teacher)
    size, same = _size(teacher), _size(student) == _size(teacher)
    if same and torch.equal(scale, their_scale) and torch.equal(shift, their_shift):
        return lambda pixels: pixels

    def view(pixels: Any) -> Any:
        levels = pixels * scale.to(pixels.device) + shift.to(pixels.device)  # 0..255
        if not same:
            levels = torch.nn.functional.interpolate(levels, size=size, mode="bicubic", antialias=True).clamp(0, 255)
        return (levels - their_shift.to(pixels.device)) / their_scale.to(pixels.device)

    return view


def _affine(torch: Any, processor: Any) -> tuple[Any, Any]:
    """(scale, shift), each (3, 1, 1): pixel values times scale plus shift are levels of 0..255."""
    settings = processor.to_dict()
    factor = settings["rescale_factor"] if settings.get("do_rescale") else 1.0
    normalises = settings.get("do_normalize")
    std, mean = (settings["image_std"], settings["image_mean"]) if normalises else ([1.0] * 3, [0.0] * 3)
    scale, shift = (torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1) / factor for values in (std, mean))
    return scale, shift


def _size(processor: Any) -> tuple[int, int]:
    """(height, width) of what a processor gives."""
    settings = processor.to_dict()
    size = settings["crop_size"] if settings.get("do_center_crop") and settings.get("crop_size") else settings["size"]
    side = size.get("shortest_edge")
    return int(size.get("height") or side), int(size.get("width") or side)
