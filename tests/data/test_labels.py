"""The one label matching: a table of label pairs, and each of its users holding to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.small_bundle import write_small_bundle
from vitdeploy.core.errors import DatasetError, InputError
from vitdeploy.data.dataset import ImageDataset
from vitdeploy.data.digits import PixelSource
from vitdeploy.data.labels import LabelMatch, match_dataset, match_labels
from vitdeploy.models.tasks import SINGLE_LABEL

LABELS = tuple(f"LABEL_{index}" for index in range(4))
SIGNS = ("traffic_light", "stop_sign", "fire_hydrant", "bench")
TEXT_ORDER = ("0", "1", "10", "11", "2", "3")

# what it shows: (the model's classes, the dataset's, the way, the model's class of each, kind, a word of the sentence)
Case = tuple[tuple[str, ...], tuple[str, ...], str, list[int], str, str | None]
MATCHED: dict[str, Case] = {
    "the same": (SIGNS, SIGNS, "name", [0, 1, 2, 3], "exact", None),
    "another order": (SIGNS, SIGNS[::-1], "name", [3, 2, 1, 0], "exact", "another order"),
    "spaces in another order": (
        SIGNS,
        ("bench", "fire hydrant", "stop sign", "traffic light"),
        "name",
        [3, 2, 1, 0],
        "normalised",
        "'fire hydrant' is 'fire_hydrant'",
    ),
    "case and -": (
        SIGNS,
        ("Traffic-Light", "STOP SIGN", "fire-Hydrant", "bench"),
        "name",
        [0, 1, 2, 3],
        "normalised",
        "case",
    ),
    "case alone, swapped": (("Cat", "cat"), ("cat", "Cat"), "name", [1, 0], "exact", "order"),
    "- and _ alone, swapped": (("t-shirt", "t_shirt"), ("t_shirt", "t-shirt"), "name", [1, 0], "exact", "order"),
    "accents composed otherwise": (("café", "thé"), ("the\u0301", "cafe\u0301"), "name", [1, 0], "normalised", "case"),
    "numbers": (LABELS, ("0", "1", "2", "3"), "name", [0, 1, 2, 3], "number", "'0' is 'LABEL_0'"),
    "numbers as text is sorted": (
        tuple(f"LABEL_{index}" for index in range(12)),
        tuple(sorted(map(str, range(12)))),
        "name",
        [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9],
        "number",
        "numbers",
    ),
    "a model sorted as text": (
        TEXT_ORDER,
        ("class_2", "class_10"),
        "name",
        [4, 2],
        "number",
        "only 2 of the model's 6",
    ),
    "padded numbers": (LABELS, ("00", "01", "02", "03"), "name", [0, 1, 2, 3], "number", "numbers"),
    "class-3": (LABELS, ("class-3", "Class 2", "category_1", "0"), "name", [3, 2, 1, 0], "number", "numbers"),
    "a number is missing": (LABELS, ("0", "2", "3"), "name", [0, 2, 3], "number", "only 3 of the model's 4"),
    "a part of the names": (SIGNS, ("bench", "stop sign"), "name", [3, 1], "normalised", "only 2 of the model's 4"),
    "numbers and no names": (SIGNS, ("0", "1", "2", "3"), "name", [0, 1, 2, 3], "id", "'1' is 'stop_sign'"),
    "some numbers and no names": (SIGNS, ("3", "1"), "name", [3, 1], "id", "by position"),
    "position": (SIGNS, ("Ampel", "Stopp", "Hydrant", "Bank"), "position", [0, 1, 2, 3], "position", "as was asked"),
    "position of numbers from 1": (SIGNS, ("1", "2", "4", "3"), "position", [0, 1, 3, 2], "position", "'4' is 'bench'"),
    "the same, with a name twice": (
        ("crane", "crane", "dog"),
        ("crane", "crane", "dog"),
        "name",
        [0, 1, 2],
        "exact",
        None,
    ),
}
# (the model's classes, the dataset's, the way, of the message, of the hint)
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, str, str]] = {
    "one is not known": (
        SIGNS,
        (*SIGNS[:3], "benches"),
        "name",
        "does not know 1 of the 4 .*'benches'",
        "did you mean 'bench'",
    ),
    "one too many": (SIGNS, (*SIGNS, "zebra"), "name", "'zebra'", "the model's names"),
    "none is known": (SIGNS, ("Ampel", "Stopp", "Hydrant", "Bank"), "name", "4 of the 4", "--match-labels position"),
    "a model without names": (LABELS, SIGNS, "name", "does not know", "numbers and no names.*--match-labels position"),
    "numbers from 1": (SIGNS, ("1", "2", "3", "4"), "name", "'1', '2', '3'", "from 1 to 4.*--match-labels position"),
    "numbers of numbers from 1": (LABELS, ("1", "2", "3", "4"), "name", "'4'", "from 1 to 4"),
    "could be several": (
        ("Cat", "cat", "dog"),
        ("CAT", "dog"),
        "name",
        "could be several .*'Cat' \\(0\\), 'cat' \\(1\\)",
        "of its own",
    ),
    "case and - at once, swapped": (
        ("T-shirt", "t_shirt"),
        ("t-shirt", "T_shirt"),
        "name",
        "could be several",
        "of its own",
    ),
    "a name twice in the model": (
        ("crane", "dog", "crane"),
        ("crane", "dog"),
        "name",
        "could be several",
        "of its own",
    ),
    "several would be one": (
        ("cat", "dog"),
        ("Cat", "cat", "dog"),
        "name",
        "2 classes .*'Cat', 'cat'",
        "make one class",
    ),
    "numbers that would be one": (LABELS, ("3", "03"), "name", "2 classes .*'3', '03'", "make one class"),
    "-1 is not 1": (("0", "1"), ("-1", "0"), "name", "does not know 1 of the 2 .*'-1'", "images without a label"),
    "-1 is not LABEL_1": (LABELS, ("-1", "0"), "name", "does not know 1 of the 2 .*'-1'", "images without a label"),
    "-1 is not the second": (SIGNS, ("-1", "0"), "name", "does not know .*'-1'", "images without a label"),
    "class -1 is not class 1": (
        ("class 0", "class 1"),
        ("class -1", "class 0"),
        "name",
        "'class -1'",
        "numbers and no names",
    ),
    "a number of 5000 digits": (LABELS, ("0", "9" * 5000), "name", "does not know 1 of the 2", "numbers and no names"),
    "one of several synonyms": (
        ("tench, Tinca tinca", "cock"),
        ("tench", "cock"),
        "name",
        "'tench'",
        "calls 'tench' 'tench, Tinca",
    ),
    "WordNet ids": (
        ("tench", "cock"),
        ("n01440764", "n01514668"),
        "name",
        "'n01440764'",
        "WordNet.*--match-labels position",
    ),
    "fewer by position": (SIGNS, ("a", "b"), "position", "2 classes, the model has 4", "leave --match-labels out"),
    "position against names": (SIGNS, SIGNS[::-1], "position", "would be the model's 'traffic_light'", "by name"),
    "position against names, with spaces": (SIGNS, ("stop sign", "a", "b", "c"), "position", "'stop_sign'", "by name"),
}


@pytest.mark.parametrize("name", MATCHED)
def test_labels_that_match(name: str) -> None:
    model, dataset, way, classes, kind, word = MATCHED[name]
    match = match_labels(model, dataset, way)
    assert match.classes.tolist() == classes and match.kind == kind
    assert (match.sentence is None) == (word is None) and (word or "") in (match.sentence or "")
    assert [pair.model for pair in match.pairs] == [model[index] for index in classes]
    assert match.to_json()["pairs"][0] == [dataset[0], model[classes[0]], classes[0], match.pairs[0].kind]


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_are_refused(name: str) -> None:
    model, dataset, way, message, hint = REFUSED[name]
    with pytest.raises(DatasetError, match=message) as caught:
        match_labels(model, dataset, way)
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint), caught.value.hint


def test_another_way_is_no_way() -> None:
    with pytest.raises(InputError, match="by 'luck'"):
        match_labels(SIGNS, SIGNS, "luck")


def images(labels: tuple[str, ...], each: int = 2) -> ImageDataset:
    """`each` images of every class: noise around a level of its own."""
    ids = np.repeat(np.arange(len(labels)), each)
    pixels = np.random.default_rng(2).integers(0, 200, (len(ids), 16, 16, 3)).astype(np.uint8)
    return ImageDataset("made", "local", "test", labels, ids, np.arange(len(ids)), PixelSource(pixels, "image"))


def test_a_class_without_images_need_not_be_known() -> None:
    dataset = images((*SIGNS, "zebra"), 1).subset([0, 3])
    match = match_dataset(dataset, SIGNS)
    assert match.of(dataset).tolist() == [0, 3] and match.classes.tolist() == [0, -1, -1, 3, -1]
    assert match.relabelled(dataset).labels == SIGNS
    with pytest.raises(DatasetError, match="zebra"):
        match_dataset(images((*SIGNS, "zebra")), SIGNS)


def bench_user(model: tuple[str, ...], dataset: tuple[str, ...], way: str, folder: Path) -> list[int]:
    """The truth that `bench` measures against, by a form that is right by construction only there."""
    from vitdeploy.bench import bench
    from vitdeploy.bundle import Bundle

    path = write_small_bundle(folder / "bundle", labels=model, engine=False)
    report = bench(
        Bundle.open(path),
        images(dataset),
        match_labels=way,
        latency=False,
        backends=["onnxruntime"],
        precisions=["fp32"],
    )
    accuracy = report.rows[0].accuracy
    assert accuracy is not None and accuracy.confusion is not None
    matching = report.dataset["matching"]
    assert matching["sentence"] is None or matching["sentence"] in report.notes
    truth = [index for index, share in enumerate(accuracy.per_class) if share is not None]
    indices = [pair[2] for pair in matching["pairs"]]
    assert truth == sorted(indices)
    return indices


def truth_user(model: tuple[str, ...], dataset: tuple[str, ...], way: str, folder: Path) -> list[int]:
    """What the budget and the analysis of INT8 judge by."""
    from vitdeploy.evaluation.paired import Truth

    truth = Truth.of(images(dataset, 1), model, way)
    assert truth.describe()["matching"]["kind"] == match_labels(model, dataset, way).kind
    return list(map(int, truth.spread(len(dataset)).classes))


def qat_user(model: tuple[str, ...], dataset: tuple[str, ...], way: str, folder: Path) -> list[int]:
    from types import SimpleNamespace

    from vitdeploy.qat import run
    from vitdeploy.qat.config import QatConfig

    given = images(dataset, 20)
    config = QatConfig("m", "b", "made", folder / "out", match_labels=way)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_dataset", lambda _, split, **__: replace(given, split=split))
        checkpoint: Any = SimpleNamespace(labels=model)
        data = run._load_data(config, checkpoint)
    assert data.test.labels == model and data.describe()["matching"]["kind"]
    return [int(index) for index in data.test.label_ids[::20]]


def teacher_user(model: tuple[str, ...], dataset: tuple[str, ...], way: str, folder: Path) -> list[int]:
    from types import SimpleNamespace

    import torch

    from vitdeploy.training.distill import Settings, taught_by

    processor = SimpleNamespace(to_dict=lambda: {"size": {"height": 8, "width": 8}})

    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values: Any) -> Any:
            return SimpleNamespace(logits=torch.arange(len(model), dtype=torch.float32)[None])

    teacher: Any = SimpleNamespace(labels=model, source="t", processor=processor, task=SINGLE_LABEL)
    made = taught_by(teacher, Teacher(), dataset, way, processor, Settings())
    return [int(value) for value in made.teacher_logits(torch.zeros(1, 3, 8, 8))[0]]


USERS: dict[str, Callable[[tuple[str, ...], tuple[str, ...], str, Path], list[int]]] = {
    "bench": bench_user,
    "budget and analyze": truth_user,
    "qat": qat_user,
    "distill": teacher_user,
}


@pytest.mark.parametrize("name", MATCHED)
@pytest.mark.parametrize("user", USERS)
def test_each_user_matches_by_the_one_rule(user: str, name: str, tmp_path: Path) -> None:
    model, dataset, way, classes, *_ = MATCHED[name]
    assert USERS[user](model, dataset, way, tmp_path) == classes


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("user", USERS)
def test_each_user_refuses_by_the_one_rule(user: str, name: str, tmp_path: Path) -> None:
    model, dataset, way = REFUSED[name][:3]
    with pytest.raises(DatasetError) as caught:
        match_labels(model, dataset, way)
    with pytest.raises(DatasetError) as again:
        USERS[user](model, dataset, way, tmp_path)
    assert again.value.hint == caught.value.hint


def same_head(match: LabelMatch) -> bool:
    return match.complete and match.kind != "id"


@pytest.mark.parametrize("name", {**MATCHED, **REFUSED})
def test_finetune_keeps_the_head_of_the_same_classes_in_the_datasets_order(name: str, tmp_path: Path) -> None:
    """And trains a new one where the classes are others, or could only be guessed."""
    from vitdeploy.models.checkpoints import load_checkpoint, open_folder
    from vitdeploy.training import create_vit
    from vitdeploy.training.models import load_trainable

    model, dataset, way = (MATCHED.get(name) or REFUSED[name])[:3]
    if len(set(model)) < len(model):
        pytest.skip("a checkpoint made here has each name once")
    folder = create_vit(
        tmp_path / "vit", labels=list(model), image_size=16, patch_size=8, hidden_size=8, layers=1, heads=1
    )
    before = load_checkpoint(folder).module.classifier.weight.detach().numpy()
    made = load_trainable(open_folder(folder), dataset, image_size=None, seed=3, way=way)
    after = made.module.classifier.weight.detach().numpy()
    assert tuple(made.module.config.id2label.values()) == dataset
    if name in MATCHED and same_head(match := match_labels(model, dataset, way)):
        np.testing.assert_array_equal(after, before[match.classes])
        assert (match.sentence is None) == (made.notes == ())
        assert match.sentence is None or match.sentence in made.notes[0]
    else:
        assert "other classes: a new one" in made.notes[0]
        assert len(after) != len(before) or not np.allclose(np.sort(after, 0), np.sort(before, 0))


def test_the_commands_know_both_ways(cli: Any) -> None:
    for command in ("bench", "build-engine", "analyze", "finetune"):
        outcome = cli(command, "--help")
        assert "--match-labels" in outcome.stdout, command


def test_the_pairs_are_those_of_the_classes_that_have_images() -> None:
    dataset = replace(images(SIGNS, 1), labels=("traffic light", "x", "y", "bench")).subset([0, 3])
    assert [pair.dataset for pair in match_dataset(dataset, SIGNS).pairs] == ["traffic light", "bench"]
