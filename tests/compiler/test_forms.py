"""A row added to the table of forms is built, checked, listed, benchmarked and loaded like every other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.command_line import invoke
from vitdeploy import load
from vitdeploy.bench import BenchSettings, bench
from vitdeploy.bundle import Bundle
from vitdeploy.compiler import forms
from vitdeploy.compiler.build import build
from vitdeploy.compiler.forms import Form, Making
from vitdeploy.core import precisions
from vitdeploy.core.errors import InputError, ModelError
from vitdeploy.core.precisions import FormSpec
from vitdeploy.data import load_dataset
from vitdeploy.inspection.bundle import BundleReport, inspect

SPEC = FormSpec("toy", "Toy", cpu_place=5)


def name_the_producer(model: Any, making: Making) -> Any:
    model.producer_name = "toy"
    return model


def note_the_size(model: Any, path: Path, making: Making) -> None:
    making.built_with["checked_bytes"] = path.stat().st_size


def refuse(model: Any, path: Path, making: Making) -> None:
    raise ModelError("no toys today", hint="none")


@pytest.fixture
def toy() -> Iterator[None]:
    """A row for as long as a test runs."""
    tables: tuple[dict[Any, Any], ...] = (forms.FORMS, precisions.FORMS)
    before = [dict(table) for table in tables]
    forms.register(Form(SPEC, passes=(name_the_producer,), checks=(note_the_size,)))
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def test_a_row_is_built_checked_listed_benchmarked_and_loaded(
    toy: None, tiny_bundle_copy: Path, tiny_images: Path
) -> None:
    made = build(tiny_bundle_copy, ["toy"], target="onnx")
    (artifact,) = made.built
    assert (artifact.path, artifact.kind, artifact.precision) == ("model.toy.onnx", "onnx", "toy")
    single = made.bundle.find(kind="onnx", precision="fp32")
    assert single is not None and artifact.built_from == single.sha256
    assert artifact.built_with["checked_bytes"] == artifact.size_bytes
    assert not build(tiny_bundle_copy, ["toy"], target="onnx").built, "it is up to date"

    report = inspect(tiny_bundle_copy)
    assert isinstance(report, BundleReport) and artifact in [file.artifact for file in report.files]
    assert "model.toy.onnx" in invoke("inspect", tiny_bundle_copy).stdout

    settings = BenchSettings(latency=False, memory=False, precisions=("toy",), backends=("onnxruntime",))
    (row,) = bench(tiny_bundle_copy, load_dataset(str(tiny_images), "train"), settings).rows
    assert (row.key, row.status) == ("toy/onnxruntime", "ok")

    image = np.zeros((32, 32, 3), np.uint8)
    with load(tiny_bundle_copy, "onnxruntime", "toy") as toys, load(tiny_bundle_copy, "onnxruntime", "fp32") as plain:
        np.testing.assert_array_equal(toys.logits(image), plain.logits(image))


def test_a_form_that_fails_its_check_is_not_in_the_bundle(toy: None, tiny_bundle_copy: Path) -> None:
    forms.register(Form(SPEC, passes=(name_the_producer,), checks=(refuse,)))
    with pytest.raises(ModelError, match="no toys today"):
        build(tiny_bundle_copy, ["toy"], target="onnx")
    assert Bundle.open(tiny_bundle_copy).find(kind="onnx", precision="toy") is None
    assert not (tiny_bundle_copy / SPEC.file).exists()


def test_a_form_can_be_made_from_another_form_of_the_same_build(toy: None, tiny_bundle_copy: Path) -> None:
    forms.register(Form(SPEC, passes=(name_the_producer,), origin=("bf16", "any")))
    with pytest.raises(InputError, match="made from the bf16 graph"):
        build(tiny_bundle_copy, ["toy"], target="onnx")
    bundle = build(tiny_bundle_copy, ["toy", "bf16"], target="onnx").bundle
    half, artifact = bundle.find(kind="onnx", precision="bf16"), bundle.find(kind="onnx", precision="toy")
    assert half is not None and artifact is not None and artifact.built_from == half.sha256
    assert artifact.path not in bundle.out_of_date()


def test_no_precision_is_known_without_its_row(tiny_bundle_copy: Path) -> None:
    with pytest.raises(InputError, match="'toy' is not known"):
        build(tiny_bundle_copy, ["toy"], target="onnx")


def test_every_row_names_a_graph_of_its_own_and_starts_from_one_that_is_there() -> None:
    specs = precisions.FORMS
    assert len({spec.file for spec in specs.values()}) == len(set(precisions.form_names())) == len(specs)
    for key, form in forms.FORMS.items():
        assert form.spec is specs[key] and form.origin in specs and form.passes
    assert set(specs) - set(forms.FORMS) == {("fp32", "any")}, "which export makes"
