"""Which class of a model each class of a dataset is: the one rule, for everything that compares labels.

Each class of the dataset is looked for among the model's by the first of these that finds it:

1. `exact`: the same name;
2. `normalised`: the same name but for case, spaces, `-`, `_` and the composition of accents;
3. `number`: the same number, where both names are nothing else: 3, 03, LABEL_3, class-3.

Where the dataset has numbers only and the model has names, a number is the place of a class (`id`). By `position`
classes are matched only when the caller says so. A class that is not found, one that could be several, and several that
would be one are refused: a wrong match gives a wrong accuracy that looks like a right one.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.core.errors import DatasetError, InputError
from vitdeploy.core.specs import LABEL_WAYS
from vitdeploy.data.dataset import ImageDataset

__all__ = ["BY_NAME", "BY_POSITION", "LabelMatch", "LabelPair", "match_dataset", "match_labels"]

BY_NAME, BY_POSITION = LABEL_WAYS
_KINDS = ("exact", "normalised", "number", "id", "position")
_NUMBER = re.compile(r"(?:(?:label|class|category|cls|id)[ _-]?)?[ _]*([0-9]{1,18})", re.IGNORECASE)
_HYPHEN = re.compile(r"(?<=[^\s_-])-|-(?![0-9])")  # not the sign of a number: -1 is not 1
_NEGATIVE = re.compile(r"\s*-[0-9]+\s*")
_WORDNET_ID = re.compile(r"n[0-9]{8}")
_SHOWN = 3


@dataclass(frozen=True)
class LabelPair:
    """A class of the dataset, the class of the model that it is, at `index` there, and the rule that found it."""

    dataset: str
    model: str
    index: int
    kind: str


@dataclass(frozen=True)
class LabelMatch:
    """How the classes of a dataset were matched with those of a model.

    `model` are the model's names, `classes` (number of the dataset's classes,) int64 the model's index of each, -1
    where it has no images and was not looked for; `pairs` are those that were.
    """

    model: tuple[str, ...]
    classes: NDArray[np.int64]
    pairs: tuple[LabelPair, ...]

    @property
    def kind(self) -> str:
        """The least certain rule that was needed: exact, normalised, number, id or position."""
        return max((pair.kind for pair in self.pairs), key=_KINDS.index, default="exact")

    @property
    def complete(self) -> bool:
        """Whether both have the same classes, each once."""
        return len(self.pairs) == len(self.classes) == len(self.model)

    @property
    def sentence(self) -> str | None:
        """What a reader must know of it; None where names and order are the same."""
        parts = []
        for kind, text in _SENTENCES.items():
            found = [pair for pair in self.pairs if pair.kind == kind]
            if found:
                which = found if kind in ("id", "position") else [pair for pair in found if pair.dataset != pair.model]
                parts.append(f"{text} ({_list([f'{p.dataset!r} is {p.model!r}' for p in which])})")
        if self.kind == "exact" and self.complete and not np.array_equal(self.classes, np.arange(len(self.model))):
            parts.append("the dataset's labels have another order than the model's and were matched by name")
        if len(self.pairs) < len(self.model):
            names = _list([repr(pair.model) for pair in self.pairs])
            parts.append(f"only {len(self.pairs)} of the model's {len(self.model)} classes have images there ({names})")
        return "; ".join(parts) or None

    def of(self, dataset: ImageDataset) -> NDArray[np.int64]:
        """The model's class of each image (count,) of the dataset, or of a part of it."""
        classes: NDArray[np.int64] = self.classes[np.asarray(dataset.label_ids, dtype=np.int64)]
        return classes

    def sets_of(self, dataset: ImageDataset) -> NDArray[np.int8]:
        """Whether each image of the dataset, or of a part of it, has each of the model's labels, (count, labels): 1 or
        0, and -1 for labels that the dataset does not know."""
        assert dataset.label_sets is not None
        sets = np.full((len(dataset), len(self.model)), -1, dtype=np.int8)
        sets[:, self.classes] = dataset.label_sets
        return sets

    def relabelled(self, dataset: ImageDataset) -> ImageDataset:
        """The same images with the model's classes."""
        return replace(dataset, labels=self.model, label_ids=self.of(dataset))

    def to_json(self) -> dict[str, Any]:
        """Its kind, each pair as [dataset's name, model's name, model's index, rule], and the sentence."""
        return {
            "kind": self.kind,
            "pairs": [[pair.dataset, pair.model, pair.index, pair.kind] for pair in self.pairs],
            "sentence": self.sentence,
        }


_SENTENCES = {
    "normalised": "labels were matched without regard to case, spaces, - and _",
    "number": "labels were matched by their numbers",
    "id": "the dataset has numbers and no names, so labels were matched by position, from 0",
    "position": "labels were matched by position, as was asked for",
}


def match_dataset(
    dataset: ImageDataset,
    model: Sequence[str],
    way: str = BY_NAME,
    *,
    who: str = "the model",
    several: bool = False,
) -> LabelMatch:
    """Match the classes that have images in `dataset` with a model's; see `match_labels`.

    With `several`, an image may have several labels, and all labels of the dataset are matched.
    """
    if not several:
        dataset.require_single_label("top-1")
    elif dataset.label_sets is not None:
        return match_labels(model, dataset.labels, way, who=who, what=str(dataset))
    present = np.flatnonzero(np.bincount(dataset.label_ids, minlength=len(dataset.labels)))
    return match_labels(model, dataset.labels, way, present=present.tolist(), who=who, what=str(dataset))


def match_labels(
    model: Sequence[str],
    dataset: Sequence[str],
    way: str = BY_NAME,
    *,
    present: Iterable[int] | None = None,
    who: str = "the model",
    what: str = "the dataset",
) -> LabelMatch:
    """Find each class of a dataset among a model's.

    Args:
        model, dataset: their class names, in order.
        way: "name", by the module's rule; "position", the n-th is the n-th (numbers in the order of numbers).
        present: the dataset's classes that must be found; None: all.
        who, what: how to call the two in a message.

    Raises:
        DatasetError: a class is not known, could be several, several would be one, or position contradicts names.
        InputError: there is no such way.
    """
    if way not in LABEL_WAYS:
        raise InputError(f"labels can't be matched by {way!r}", hint=f"by one of {', '.join(LABEL_WAYS)}")
    ours, theirs = tuple(model), tuple(dataset)
    needed = list(range(len(theirs))) if present is None else sorted(present)
    if ours == theirs:
        found = {index: (index, "exact") for index in range(len(ours))}
    elif way == BY_POSITION:
        found = _by_position(ours, theirs, who, what)
    else:
        found = _by_name(ours, theirs, who, what, needed)
    classes = np.array([found.get(index, (-1, ""))[0] for index in range(len(theirs))], dtype=np.int64)
    pairs = tuple(LabelPair(theirs[index], ours[found[index][0]], *found[index]) for index in needed)
    return LabelMatch(ours, classes, pairs)


def _by_name(
    ours: tuple[str, ...], theirs: tuple[str, ...], who: str, what: str, needed: list[int]
) -> dict[int, tuple[int, str]]:
    found: dict[int, tuple[int, str]] = {}
    rules: dict[str, Callable[[str], Any]] = {"exact": str, "normalised": _plain, "number": _number}
    for kind, key in rules.items():
        places = defaultdict(list)
        for place, name in enumerate(ours):
            places[key(name)].append(place)
        places.pop(None, None)
        for index in needed:
            options = [] if index in found else places.get(key(theirs[index]), [])
            if len(options) == 1:
                found[index] = (options[0], kind)
            elif options:
                several = _list([f"{ours[place]!r} ({place})" for place in options])
                raise DatasetError(
                    f"the class {theirs[index]!r} of {what} could be several of {who}'s: {several}",
                    hint="give each class a name of its own in id2label of the checkpoint (config.json), and export it"
                    " again; or use the model's very names in the dataset",
                )
    if not found and _has_numbers_only(theirs) and all(_number(name) is None for name in ours):
        numbers = {index: _number(theirs[index]) or 0 for index in needed}
        if max(numbers.values(), default=0) < len(ours):
            found = {index: (number, "id") for index, number in numbers.items()}
    unknown = [theirs[index] for index in needed if index not in found]
    if unknown:
        raise _unknown(unknown, [theirs[index] for index in needed], ours, theirs, who, what)
    taken = Counter(place for place, _ in found.values())
    for place, count in taken.items():
        if count > 1:
            names = [theirs[index] for index, (other, _) in sorted(found.items()) if other == place]
            raise DatasetError(
                f"{count} classes of {what} would be {who}'s {ours[place]!r}: {_list([repr(name) for name in names])}",
                hint="make one class of them in the dataset, or give them the names of different classes of the model",
            )
    return found


def _by_position(ours: tuple[str, ...], theirs: tuple[str, ...], who: str, what: str) -> dict[int, tuple[int, str]]:
    if len(ours) != len(theirs):
        raise DatasetError(
            f"{what} has {len(theirs)} classes, {who} has {len(ours)}: they can't be matched by position",
            hint="give the dataset's classes the model's names, and leave --match-labels out",
        )
    order = list(range(len(theirs)))
    if _has_numbers_only(theirs):
        order.sort(key=lambda index: _number(theirs[index]) or 0)
    found = {index: (place, "position") for place, index in enumerate(order)}
    known = {_plain(name): place for place, name in enumerate(ours)}
    for index, (place, _) in found.items():
        other = known.get(_plain(theirs[index]), place)
        if other != place and _number(theirs[index]) is None and _plain(ours[place]) != _plain(theirs[index]):
            raise DatasetError(
                f"by position the class {theirs[index]!r} of {what} would be {who}'s {ours[place]!r}, but it has one"
                f" called {ours[other]!r}",
                hint="leave --match-labels out to match by name, or give the dataset's classes the model's names",
            )
    return found


def _unknown(
    unknown: list[str], needed: list[str], ours: tuple[str, ...], theirs: tuple[str, ...], who: str, what: str
) -> DatasetError:
    message = (
        f"{who} does not know {len(unknown)} of the {len(needed)} classes of {what}: "
        f"{_list([repr(name) for name in unknown])}; its {len(ours)} classes are {_list([repr(n) for n in ours])}"
    )
    position = "; if both list the same classes in the same order, add --match-labels position"
    try:
        _by_position(ours, theirs, who, what)
    except DatasetError:
        position = ""
    first = unknown[0]
    synonyms = [name for name in ours if _plain(first) in map(_plain, name.split(","))]
    close = difflib.get_close_matches(_plain(first), list(map(_plain, ours)), n=1, cutoff=0.75)
    if _NEGATIVE.fullmatch(first):
        hint, position = "a number below 0 mostly stands for images without a label: leave them out of the dataset", ""
    elif _has_numbers_only(ours) and not _has_numbers_only(theirs):
        hint = (
            "the model has numbers and no names: name its classes in id2label of its config.json, and export it again"
        )
    elif _has_numbers_only(theirs):
        numbers = [_number(name) or 0 for name in theirs]
        hint = f"the dataset's classes are numbers from {min(numbers)} to {max(numbers)}: name them as the model does"
    elif all(_WORDNET_ID.fullmatch(name) for name in theirs):
        hint = "the dataset's classes are WordNet ids: rename its folders to the model's names"
    elif len(synonyms) == 1:
        hint = f"the model calls {first!r} {synonyms[0]!r}: use its very names in the dataset"
    elif close:
        meant = next(name for name in ours if _plain(name) == close[0])
        hint = (
            f"did you mean {meant!r} by {first!r}? use the model's names in the dataset, or the dataset's in id2label"
        )
    else:
        hint = "use the dataset that the model was trained for, or the model's names in this one"
    return DatasetError(message, hint=hint + position)


def _plain(name: str) -> str:
    """The name without what people write differently; "" never stands for a class."""
    return " ".join(_HYPHEN.sub(" ", unicodedata.normalize("NFC", name)).replace("_", " ").casefold().split()) or name


def _number(name: str) -> int | None:
    """3 of "3", "03", "LABEL_3" and "class-3"; None where it is a name, as -3 is."""
    found = _NUMBER.fullmatch(name.strip())
    return None if found is None else int(found[1])


def _has_numbers_only(names: Sequence[str]) -> bool:
    return bool(names) and all(_number(name) is not None for name in names)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
