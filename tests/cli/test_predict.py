"""`vitdeploy predict`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.command_line import invoke
from tests.tools.small_bundle import write_small_bundle
from tests.tools.tiny import LABELS
from vitdeploy import BundleError, load


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two images of different sizes, one of them with a name that rich would read as markup."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / "[red]cat.png", tmp_path / "dog.jpg"]
    for path, size in zip(paths, [(32, 32, 3), (40, 60, 3)], strict=True):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


def test_table(tiny_bundle: Path, photos: list[Path]) -> None:
    outcome = invoke("predict", tiny_bundle, *photos, "--top-k", 2, "--threads", 1)
    assert outcome.exit_code == 0, outcome.stderr
    with load(tiny_bundle, threads=1) as classifier:
        expected = classifier.predict(photos, 2)
        used = f"{classifier.precision} on {classifier.backend}"
    for path, prediction in zip(photos, expected, strict=True):
        line = next(line for line in outcome.stdout.splitlines() if path.name in line)
        assert prediction.label in line
        assert f"{prediction.score:.1%}" in line
        assert prediction.top_k[1].label in outcome.stdout
    assert used in outcome.stdout
    rows = [line for line in outcome.stdout.splitlines() if "%" in line]
    assert len(rows) == 4
    assert outcome.stderr == ""


def test_json(tiny_bundle: Path, photos: list[Path]) -> None:
    options = ("--json", "--backend", "onnxruntime", "--precision", "fp32", "--threads", 1, "--top-k", 3)
    outcome = invoke("predict", tiny_bundle, *photos, *options)
    assert outcome.exit_code == 0
    data = json.loads(outcome.stdout)
    assert (data["backend"], data["precision"], data["errors"]) == ("onnxruntime", "fp32", [])
    assert [p["image"] for p in data["predictions"]] == [str(path) for path in photos]
    for prediction in data["predictions"]:
        assert prediction["label"] == LABELS[prediction["index"]] == prediction["top_k"][0]["label"]
        assert len(prediction["top_k"]) == 3


def test_a_bad_image_does_not_stop_the_others(tiny_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"oops")
    missing = tmp_path / "missing.png"
    arguments = ("predict", tiny_bundle, photos[0], bad, missing, photos[1], "--threads", 1)
    outcome = invoke(*arguments)
    assert outcome.exit_code == 1
    assert "cat.png" in outcome.stdout and "dog.jpg" in outcome.stdout
    assert str(bad) in outcome.stderr and str(missing) in outcome.stderr
    assert outcome.stderr.count("Error:") == outcome.stderr.count("Hint:") == 2
    assert "bad.png" not in outcome.stdout
    outcome = invoke(*arguments, "--json")
    assert outcome.exit_code == 1
    data = json.loads(outcome.stdout)
    assert len(data["predictions"]) == 2
    assert [error["image"] for error in data["errors"]] == [str(bad), str(missing)]


def test_only_bad_images(tiny_bundle: Path, tmp_path: Path) -> None:
    outcome = invoke("predict", tiny_bundle, tmp_path / "none.png", "--threads", 1)
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert "none.png" in outcome.stderr


def test_standard_input(tiny_bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(invoke("predict", tiny_bundle, photos[1], "--json", "--threads", 1).stdout)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photos[1].read_bytes())))
    data = json.loads(invoke("predict", tiny_bundle, "-", "--json", "--threads", 1).stdout)
    assert data["predictions"][0]["top_k"] == expected["predictions"][0]["top_k"]
    assert data["predictions"][0]["image"] == "-"


def test_errors(tiny_bundle: Path, tmp_path: Path, photos: list[Path]) -> None:
    outcome = invoke("predict", tmp_path / "none", photos[0])
    assert outcome.exit_code == 1
    assert "no bundle" in outcome.stderr and "Hint:" in outcome.stderr
    outcome = invoke("predict", tiny_bundle, photos[0], "--backend", "tensorrt")
    assert outcome.exit_code == 1
    assert "no form for tensorrt" in outcome.stderr
    outcome = invoke("predict", tiny_bundle, photos[0], "--precision", "bf16", "--backend", "onnxruntime-tensorrt")
    assert outcome.exit_code == 1  # names that load knows are no wrong usage
    assert "Hint:" in outcome.stderr and "bf16" in outcome.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bundle"],
        ["bundle", "cat.png", "--top-k", "0"],
        ["bundle", "cat.png", "--threads", "0"],
        ["bundle", "cat.png", "--backend", "none"],
        ["bundle", "cat.png", "--precision", "int4"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    assert invoke("predict", *arguments).exit_code == 2


def test_bundle_and_image_in_the_other_order(tiny_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    done = invoke("predict", photos[0], tiny_bundle)
    assert done.exit_code == 1 and "is a bundle, not an image" in done.stderr and "the bundle first" in done.stderr
    done = invoke("predict", tiny_bundle, tmp_path)
    assert done.exit_code == 1 and f"{tmp_path} is a folder" in done.stderr and "--output" in done.stderr


def test_help_has_an_example() -> None:
    outcome = invoke("predict", "--help")
    assert outcome.exit_code == 0
    assert "vitdeploy predict bundles/vit cat.png" in outcome.stdout


def test_a_checkpoint_is_run_by_pytorch(tiny_checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    """A first look right after training: what PyTorch gives, a bad image named, and the way on to a bundle."""
    from vitdeploy.backends.pytorch.runner import PyTorchRunner
    from vitdeploy.data.images import decode

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"oops")
    outcome = invoke("predict", tiny_checkpoint, photos[0], bad, photos[1], "--json", "--threads", 1, "-k", 3)
    assert outcome.exit_code == 1 and str(bad) in outcome.stderr
    data = json.loads(outcome.stdout)
    assert (data["backend"], data["precision"]) == ("pytorch", "fp32")
    with PyTorchRunner(tiny_checkpoint, threads=1) as runner:
        for path, found in zip(photos, data["predictions"], strict=True):
            logits = runner.infer({"image": decode(path)[np.newaxis]})["logits"][0].astype(np.float64)
            scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            assert found["image"] == str(path) and found["label"] == LABELS[int(logits.argmax())]
            assert [row["score"] for row in found["top_k"]] == pytest.approx(np.sort(scores)[::-1][:3], rel=1e-5)
    table = invoke("predict", tiny_checkpoint, photos[0], "--threads", 1)
    assert table.exit_code == 0 and "fp32 on pytorch" in table.stdout


def test_what_only_bundles_do_says_how_to_export(tiny_checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    for option in (("--backend", "onnxruntime"), ("--precision", "int8"), ("--output", tmp_path / "rows.csv")):
        outcome = invoke("predict", tiny_checkpoint, photos[0], *option)
        assert outcome.exit_code == 1 and f"{option[0]} is for bundles" in outcome.stderr
        assert f"vitdeploy export {tiny_checkpoint} --output bundles/{tiny_checkpoint.name}" in outcome.stderr
    with pytest.raises(BundleError, match="not a bundle") as refused:
        load(tiny_checkpoint)
    assert refused.value.hint is not None and f"vitdeploy export {tiny_checkpoint}" in refused.value.hint
    for nothing in (tmp_path, tmp_path / "absent"):  # neither a bundle nor a checkpoint
        outcome = invoke("predict", nothing, photos[0])
        assert outcome.exit_code == 1 and "bundle" in outcome.stderr and "Hint" in outcome.stderr


def test_patterns_and_addresses(tiny_bundle: Path, tmp_path: Path) -> None:
    for options in ((), ("--output", tmp_path / "rows.csv")):
        outcome = invoke("predict", tiny_bundle, str(tmp_path / "*.jpg"), *options)
        assert outcome.exit_code == 1 and "without quotes" in outcome.stderr
    for command, more in (("embed", ("--output", tmp_path / "v.npy")), ("explain", ())):
        outcome = invoke(command, tiny_bundle, str(tmp_path / "*.jpg"), *more)
        assert outcome.exit_code == 1 and "without quotes" in outcome.stderr and ".csv" not in outcome.stderr
    outcome = invoke("predict", tiny_bundle, "https://example.com/cat.jpg?size=2", "--threads", 1)
    assert outcome.exit_code == 1
    assert "curl -fLO 'https://example.com/cat.jpg?size=2'" in outcome.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "{}", "cat.jpg"),
        ("inspect", "{}"),
        ("verify", "{}"),
        ("export", "{}", "--output", "out"),
        ("bench", "small", "--dataset", "{}"),
    ],
)
@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/someone/vit-b.16/tree/main", "someone/vit-b.16"),
        ("https://hf.co/someone/vit", "someone/vit"),
        ("https://example.com/vit", None),
    ],
)
def test_the_address_of_a_page_is_not_taken_for_a_path(
    arguments: tuple[str, ...], address: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "small" in arguments:
        write_small_bundle(tmp_path / "small")
    outcome = invoke(*(argument.format(address) for argument in arguments))
    assert outcome.exit_code == 1 and f"{address} is an address" in outcome.stderr
    said = "download it first" if name is None else f"name it as the Hub does: {name}\n"
    assert said in outcome.stderr and "https:/h" not in outcome.stderr


def test_a_form_that_is_missing_is_made_by_the_option_that_the_hint_names(
    tiny_bundle: Path, photos: list[Path]
) -> None:
    outcome = invoke("predict", tiny_bundle, photos[0], "--precision", "fp8")
    assert outcome.exit_code == 1 and "no form for fp8" in outcome.stderr and " --fp8 adds forms" in outcome.stderr
