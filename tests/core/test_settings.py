"""Settings objects: other values by name, those of a group of settings included."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vitdeploy import BuildSettings, BulkSettings, ExportSettings, Recipe
from vitdeploy.core.errors import InputError
from vitdeploy.core.settings import with_options
from vitdeploy.evaluation.limits import Limits
from vitdeploy.models.tasks import TaskRequest


def test_a_setting_of_a_group_may_be_named_alone() -> None:
    recipe = Recipe(dataset="photos")
    made = with_options(BuildSettings(), {"recipe": recipe, "max_drop": 0.5, "force": True})
    assert made == BuildSettings(recipe=recipe, limits=Limits(0.5), force=True)
    assert with_options(made, {"neighbours": 3}).limits == Limits(0.5, neighbours=3), "the others of the group stay"
    assert with_options(made, {"limits": Limits(), "min_recall": 0.9}).limits == Limits(min_recall=0.9)
    assert with_options(made, {}) == made


def test_lists_may_stand_for_sequences() -> None:
    made = with_options(ExportSettings(), {"task": "zero-shot", "labels": ["a", "b"], "outputs": ["scores"]})
    assert made == ExportSettings(TaskRequest("zero-shot", labels=("a", "b")), outputs=("scores",))


def test_a_name_that_is_none_is_an_error_of_the_program() -> None:
    for name in ("max_dorp", "dataset", "split"):  # the last two are of a recipe, which is no group
        with pytest.raises(TypeError, match=re.escape(f"no setting {name!r} in BuildSettings")):
            with_options(BuildSettings(recipe=Recipe(dataset="photos")), {name: 1})


@pytest.mark.parametrize(
    ("kind", "wrong", "says"),
    [
        (ExportSettings, {"outputs": ("score",)}, "no output 'score'"),
        (ExportSettings, {"task": "detection"}, "no task 'detection'"),
        (ExportSettings, {"labels": ("a",)}, "words are for zero-shot"),
        (ExportSettings, {"image_size": 384}, "image_size is 384"),
        (ExportSettings, {"merge_qkv": 1}, "merge_qkv is 1"),
        (BuildSettings, {"max_drop": 0.5}, "a budget needs images"),
        (BuildSettings, {"recipe": Recipe(dataset="photos"), "min_cosine": 1.5}, "min_cosine must be between 0 and 1"),
        (BuildSettings, {"match_labels": "guess"}, "match_labels is 'guess'"),
        (BulkSettings, {"top_k": 0}, "top_k must be at least 1"),
        (BulkSettings, {"workers": True}, "workers is True"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(kind: Any, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        with_options(kind(), wrong)
    assert caught.value.hint
