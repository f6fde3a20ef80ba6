"""What a model answers, and all that follows from it: the one table that every part asks.

    kind            classification: class scores an image        embedding: a vector an image
    softmax         p_i = exp(z_i - max z) / sum_j exp(z_j - max z)
    sigmoid         p_i = 1 / (1 + exp(-z_i))
    cosine          a . b / (|a| |b|), how alike two embeddings are

Logits are read as transformers' own pipelines read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy.core.errors import InputError, ModelError
from vitdeploy.core.settings import frozen
from vitdeploy.core.specs import TaskName
from vitdeploy.core.text import quoted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "CLASSES",
    "CLASSIFICATION",
    "EMBEDDING",
    "EXPORTS",
    "SINGLE_LABEL",
    "TASKS",
    "TEMPLATE",
    "THRESHOLD",
    "THRESHOLD_KEY",
    "Kind",
    "Task",
    "TaskRequest",
    "cosines",
    "kind_of",
    "reached",
    "sigmoid",
    "softmax",
    "task_of",
    "unit",
]


@dataclass(frozen=True)
class Kind:
    """What a graph's answer is.

    Args:
        name: for the manifest's reader and for options.
        output: the graph's output that holds it, (batch, n).
        numbers: what its n numbers are called, for people.
        command, method: what asks for it, on the command line and of an open bundle.
        doing: what a model does meanwhile, for people.
        options: what the command needs beside a model and images.
        hint: how a model is asked, as the next step of an error; {line} is the command.
        range: what its differences are measured by, for people.
        noun, hub_tag: what such a model is called, by people and on the Hugging Face Hub.
        same: for each image, whether two answers (images, n) say the same.
        same_title: what `same` means, as the head of a column.
    """

    name: Literal["classification", "embedding"]
    output: Literal["logits", "embedding"]
    numbers: str
    command: str
    options: str
    method: str
    doing: str
    hint: str
    range: str
    noun: str
    hub_tag: str
    same: Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.bool_]]
    same_title: str

    def line(self, model: object, images: str = "IMAGE") -> str:
        """The command that asks a bundle."""
        return f"vitdeploy {self.command} {quoted(model)} {images}{self.options}"


def _same_class(answers: npt.NDArray[Any], reference: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether the best class is the reference's."""
    found: npt.NDArray[np.bool_] = answers.argmax(axis=1) == reference.argmax(axis=1)
    return found


def _same_neighbour(answers: npt.NDArray[Any], reference: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether the nearest of the reference's vectors is that of the same image."""
    import numpy as np

    found: npt.NDArray[np.bool_] = (unit(answers) @ unit(reference).T).argmax(axis=1) == np.arange(len(answers))
    return found


CLASSIFICATION = Kind(
    name="classification",
    output="logits",
    numbers="classes",
    command="predict",
    options="",
    method="predict",
    doing="Classifying",
    hint="{line} says its classes; in Python .predict(images)",
    range="the logits' range",
    noun="image classifier",
    hub_tag="image-classification",
    same=_same_class,
    same_title="same class",
)
EMBEDDING = Kind(
    name="embedding",
    output="embedding",
    numbers="dimensions",
    command="embed",
    options=" --output vectors.parquet",
    method="embed",
    doing="Embedding",
    hint="{line} writes its vectors; in Python .embed(images)",
    range="the embeddings' range",
    noun="image embedding",
    hub_tag="image-feature-extraction",
    same=_same_neighbour,
    same_title="same image",
)


def kind_of(output: str) -> Kind:
    """By the graph's output that holds the answer; a classifier's may have any name."""
    return EMBEDDING if output == EMBEDDING.output else CLASSIFICATION


@dataclass(frozen=True)
class Task:
    """What an answer (batch, n) stands for, and what makes scores of 0..1 of logits (None: they have none).

    `one_class`: exactly one class of an image is right. `several`: an image has any number of the classes, none or all:
    those whose score reaches a threshold. `metric`: what a form's loss is counted in points of, for people; "" where
    nothing is right or wrong.
    """

    name: TaskName
    title: str
    activation: Literal["softmax", "sigmoid"] | None
    metric: str
    kind: Kind = CLASSIFICATION
    one_class: bool = False
    several: bool = False

    def scores(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """Scores (..., classes) of logits (..., classes); None where there are none, as of a regression."""
        if self.activation is None:
            return None
        return softmax(logits) if self.activation == "softmax" else sigmoid(logits)

    def require_single_label(self, model: str, what: str, hint: str) -> None:
        """Refuse what only makes sense for one class an image.

        Args:
            model: its name; `what`: what is not supported, for the message; `hint`: what to do instead.

        Raises:
            ModelError: the model answers with something else.
        """
        if not self.one_class:
            raise ModelError(f"{what} is not supported for {model}, which gives {self.title}", hint=hint)

    def threshold(self, given: float | None, model: str) -> float | None:
        """The score from which a class counts, where an image has any number of them; None of the other tasks.

        Args:
            given: what was asked for, or what comes with the model; None: `THRESHOLD`.
            model: its name.

        Raises:
            InputError: it is not between 0 and 1, or the task has no use for it.
        """
        if not self.several:
            if given is not None:
                raise InputError(
                    f"a threshold is for several labels an image, and {model} gives {self.title}",
                    hint="leave the threshold out: the score of each class is in the answer",
                )
            return None
        if given is None:
            return THRESHOLD
        if not 0 < given < 1:
            raise InputError(f"the threshold is {given}", hint="give a score between 0 and 1, such as 0.5")
        return float(given)

    def require(self, kind: Kind, model: str, what: str = "") -> None:
        """Refuse to be asked for another kind of answer; the hint names what asks for this one.

        Args:
            kind: what is asked for.
            model: the model's name.
            what: what asks; "": `kind.command`.

        Raises:
            InputError: the model's answers are of another kind.
        """
        if self.kind is not kind:
            raise InputError(
                f"{what or kind.command} is not for {model}, which gives {self.title}",
                hint=self.kind.hint.format(line=self.kind.line(model)),
            )


SINGLE_LABEL = Task("single_label", "one class an image", "softmax", "top-1", one_class=True)
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SINGLE_LABEL,
        replace(
            SINGLE_LABEL,
            name="single_label_sigmoid",
            title="one class an image, each with a score of its own",
            activation="sigmoid",
        ),
        Task("multi_label", "several labels an image", "sigmoid", "mAP", several=True),
        Task("binary", "one score an image: of the class, or against it", "sigmoid", "mAP", several=True),
        Task("regression", "numbers, not classes (a regression)", None, ""),
        Task(
            "embedding", "an embedding, one vector an image", None, "top-1 of a nearest-neighbour classifier", EMBEDDING
        ),
    )
}
THRESHOLD = 0.5
"""The score from which one of several labels counts where neither the model nor the caller says another."""
THRESHOLD_KEY = "label_threshold"
"""Under which name config.json of a checkpoint holds its own."""
EXPORTS = ("classification", "embedding", "zero-shot")
"""What `export --task` makes of a checkpoint: its own classes, its embedding, or a classifier of named words."""
TEMPLATE = "This is a photo of {}."
"""What transformers' own pipeline makes a sentence of a word by."""


@dataclass(frozen=True)
class TaskRequest:
    """What is asked of a checkpoint.

    Args:
        task: one of `EXPORTS`: "classification", its own classes; "embedding", one vector an image; "zero-shot", a
            classifier of the words in `labels`. None: what the checkpoint says of itself.
        normalize: whether vectors of an embedding have length 1; None: as the model itself compares them.
        labels: of zero-shot: the words that it chooses among, one class each.
        templates: of zero-shot: sentences around a word, which stands for {}; several are averaged. None: `TEMPLATE`.

    Raises:
        InputError: a task that is not known, or what does not belong to it.
    """

    task: str | None = None
    normalize: bool | None = None
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        frozen(self)
        if self.task not in (None, *EXPORTS):
            raise InputError(f"there is no task {self.task!r}", hint=f"one of {', '.join(EXPORTS)}")
        if self.normalize is not None and self.task not in (None, "embedding"):
            raise InputError(f"{self.task} has no vectors to normalise", hint="leave --normalize out")
        if self.task == "zero-shot" and not self.labels:
            raise InputError("zero-shot needs words to choose among", hint="--labels FILE, one word or phrase a line")
        if self.task != "zero-shot" and (self.labels or self.templates):
            raise InputError("words are for zero-shot alone", hint="add --task zero-shot")
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if twice:
            raise InputError(f"the word {twice[0]!r} is named twice", hint="name each once")
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong:
            raise InputError(
                f"the template {wrong[0]!r} has no single place for a word", hint='as in "a photo of a {}."'
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskRequest:
        """What `to_json` gave."""
        return cls(**data)


CLASSES = TaskRequest("classification")


def task_of(config: Any) -> Task:
    """The task of a classifier's configuration: `problem_type` decides, and where it is open the number of logits."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return TASKS["regression"]
    if config.num_labels == 1:
        return TASKS["binary"]
    return TASKS["multi_label"] if problem == "multi_label_classification" else SINGLE_LABEL


def softmax(logits: npt.NDArray[Any], dtype: npt.DTypeLike = "float64") -> npt.NDArray[Any]:
    """Probabilities along the last axis, computed in `dtype`."""
    import numpy as np

    powers = np.exp(logits.astype(dtype) - logits.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[Any] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probabilities of logits, each by itself."""
    import numpy as np

    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))))  # does not overflow


def reached(scores: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.bool_]:
    """Which of several labels an image has, by their scores: those of at least the threshold."""
    found: npt.NDArray[np.bool_] = scores >= threshold
    return found


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Vectors (..., n) at length 1; zero stays zero."""
    import numpy as np

    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-30), dtype=np.float32)


def cosines(vectors: npt.NDArray[Any], reference: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The cosine of each pair of rows, (images,) of (images, n); 0 beside a vector of zeros."""
    import numpy as np

    one, other = vectors.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    found: npt.NDArray[np.float64] = (one * other).sum(axis=-1) / np.maximum(lengths, 1e-30)
    return found
