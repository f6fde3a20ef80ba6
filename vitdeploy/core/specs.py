"""The frozen descriptions that travel between the parts and into the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

__all__ = [
    "ANSWERS",
    "EXTRA_OUTPUTS",
    "LABEL_WAYS",
    "PIXEL_VALUES",
    "TOP_K",
    "Choice",
    "EmbeddingSpec",
    "LabelWay",
    "Prediction",
    "PreprocessSpec",
    "ResizeSpec",
    "Score",
    "ShapeRange",
    "TaskName",
    "TensorSpec",
    "answer_of",
]

PIXEL_VALUES = "pixel_values"
"""The tensor between preprocessing and model, (batch, channels, height, width), by this name in every graph."""
ANSWERS = ("logits", "embedding")
"""The output of a graph that holds its answer, (batch, n): each graph has one of them."""
EXTRA_OUTPUTS = ("scores", "features", "attention")
"""What a graph may give beside its answer; `compiler.frontend.tracing` says what each is."""
LabelWay = Literal["name", "position"]
LABEL_WAYS: tuple[LabelWay, ...] = get_args(LabelWay)
"""How a dataset's classes are found among a model's; `data.labels` says what that means."""
TOP_K = 5
"""How many of the best classes an answer lists, unless told otherwise."""
TaskName = Literal[
    "single_label",
    "single_label_sigmoid",
    "multi_label",
    "binary",
    "regression",
    "embedding",
]
"""What a model answers; `vitdeploy.models.tasks` says what that means."""


def answer_of(names: Sequence[str]) -> str:
    """Which of a graph's outputs is its answer: one of `ANSWERS`, or the first where none has such a name."""
    return next((name for name in ANSWERS if name in names), names[0])


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output: a dimension that is a string is dynamic and named."""

    name: str
    dtype: str  # NumPy's name: "uint8", "float32", ...
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class ShapeRange:
    """What one dimension of an engine's input may be: `minimum` <= n <= `maximum`, fastest at `optimum`."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ValueError(f"needs 1 <= minimum <= optimum <= maximum, got {self}")

    def to_json(self) -> list[int]:
        return [self.minimum, self.optimum, self.maximum]


@dataclass(frozen=True)
class ResizeSpec:
    """How an image is resized before it is cropped.

    Exactly one of these says the target size in pixels: `height` and `width` together (aspect ratio not
    kept), or `shortest_edge` (aspect ratio kept), optionally with `longest_edge` as an upper bound.
    `resample` is Pillow's filter by name: nearest, box, bilinear, hamming, bicubic, lanczos.
    """

    resample: str
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None


@dataclass(frozen=True)
class PreprocessSpec:
    """What the image processor does to uint8 RGB pixels, in this order: resize, crop, rescale, normalise, and, where
    `channels` is "bgr", the channels the other way round.

    `crop` is (height, width) of the centre crop; `rescale` the factor on 0..255 values; `mean` and `std` are per
    channel, in the rescaled units. A step that is None is not done. The result is (batch, 3, height, width) float32.
    `crop_rounding` says where a crop lies that can't be in the middle: "down", a half pixel up and to the left, as in
    transformers, or "even", at the even one of the two places, as in torchvision and so in timm.
    """

    resize: ResizeSpec | None
    crop: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    crop_rounding: Literal["down", "even"] = "down"
    channels: Literal["rgb", "bgr"] = "rgb"

    def to_json(self) -> dict[str, Any]:
        resize = None
        if self.resize is not None:
            resize = {name: value for name, value in vars(self.resize).items() if value is not None}
        return {
            "resize": resize,
            "crop": None if self.crop is None else list(self.crop),
            "rescale": self.rescale,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            **({} if self.crop_rounding == "down" else {"crop_rounding": self.crop_rounding}),
            **({} if self.channels == "rgb" else {"channels": self.channels}),
        }

    def crop_starts(self, size: tuple[int, int]) -> tuple[int, int]:
        """Top and left of the crop in an image of (height, width) `size`; below 0 where zeros surround the image."""
        if self.crop is None:
            return 0, 0
        top, left = (self._start(length - wanted) for length, wanted in zip(size, self.crop, strict=True))
        return top, left

    def _start(self, spare: int) -> int:
        if self.crop_rounding == "down":
            return spare // 2  # so an odd remainder of zeros goes to the top and left
        return round(spare / 2) if spare >= 0 else -(-spare // 2)


@dataclass(frozen=True)
class EmbeddingSpec:
    """What a vector of an embedding is.

    `pooling` says in words what makes one vector of a model's tokens; `normalized` whether its length is 1, so that a
    product of two vectors is their cosine; `dimensions` how many numbers it has.
    """

    pooling: str
    normalized: bool
    dimensions: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def __str__(self) -> str:
        length = "of length 1" if self.normalized else "not normalised"
        return f"{self.dimensions} numbers an image: {self.pooling}, {length}"


@dataclass(frozen=True)
class Choice:
    """The form that a benchmark recommends: `vitdeploy bench` writes it into the bundle, `vitdeploy.load` finds it.

    It holds for the machine it was measured on and for the file whose hash it names.
    """

    precision: str  # fp32, fp16, int8 ...
    backend: str  # openvino, onnxruntime, tensorrt, tensorrt-rtx
    why: str  # in a sentence
    report: str | None  # the report's path in the bundle
    machine: dict[str, Any]  # what `vitdeploy.core.machine.identity` says of the machine
    max_drop: float | None  # points of top-1 that the form might lose; None: accuracy was not measured
    sha256: str | None = None  # of the form's file

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Score:
    """One class of a prediction: `score` is its probability, 0..1.

    That is softmax where one class is right, a sigmoid where several may be. A regression has no scores (None): its
    number is in `value`, which is None otherwise.
    """

    label: str
    index: int
    score: float | None
    value: float | None = None

    @property
    def text(self) -> str:
        """The score in per cent, or a regression's number."""
        return f"{self.value:.6g}" if self.score is None else f"{self.score:.1%}"

    def to_json(self) -> dict[str, Any]:
        found = {"label": self.label, "index": self.index, "score": self.score}
        return found if self.value is None else {**found, "value": self.value}


@dataclass(frozen=True)
class Prediction:
    """The best class of one image, and the `top_k` best in falling order (the first is the best).

    Where an image may have several labels, `labels` are those that it has, the best first: all whose score reaches the
    threshold, so there may be none. It is None for other tasks.
    """

    label: str
    index: int
    score: float | None
    top_k: tuple[Score, ...] = field(repr=False)
    value: float | None = None
    labels: tuple[Score, ...] | None = None

    @classmethod
    def listed_later(
        cls, label: str, index: int, score: float, best: Callable[..., tuple[Score, ...]], *given: Any
    ) -> Prediction:
        """One whose `top_k` is `best(*given)`, asked for when it is read, which many programs never do."""
        made = object.__new__(cls)
        held = made.__dict__
        held["label"], held["index"], held["score"], held["_best"] = label, index, score, (best, given)
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:  # asked for what is not there
            held = self.__dict__
            best = held.get("_best")
            if name != "top_k" or best is None:
                if name in held:  # another thread was first
                    return held[name]
                raise AttributeError(f"a Prediction has no {name!r}")
            held["top_k"] = best[0](*best[1])
            held.pop("_best", None)
            return held["top_k"]

    def __reduce__(self) -> tuple[Any, ...]:  # copies and pickles hold no more than the fields
        return type(self), (self.label, self.index, self.score, self.top_k, self.value, self.labels)

    def _repr_html_(self) -> str:
        """For a notebook: a bar for each of the best classes."""
        from vitdeploy.core.notebook import bar, cell, table

        best = enumerate(self.top_k)
        return table([cell(s.label, bold=n == 0), bar(s.score or 0.0), cell(s.text)] for n, s in best)

    def to_json(self) -> dict[str, Any]:
        best = Score(self.label, self.index, self.score, self.value).to_json()
        some = {} if self.labels is None else {"labels": [score.to_json() for score in self.labels]}
        return {**best, "top_k": [score.to_json() for score in self.top_k], **some}
