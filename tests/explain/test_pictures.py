"""The drawing and the command: what is in the files, where they go, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import InputError, OutputExistsError
from vitdeploy.explain import explain
from vitdeploy.explain.canvas import colours, overlay

NAMES = ("attention-rollout.png", "position-similarity.png", "patches.png")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a picture.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_the_files(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    result = explain(tiny_bundle, picture, tmp_path / "out")
    assert [path.name for path in result.pictures] == list(NAMES)
    for path in result.pictures:
        with Image.open(path) as image:
            assert image.mode == "RGB" and min(image.size) > 300
            assert len(image.getcolors(1 << 20) or []) > 50  # something was drawn
    facts = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert np.allclose(facts["rollout"], result.rolled, atol=1e-4) and facts["grid"] == [4, 4]
    strongest = facts["strongest_patch"]
    assert facts["rollout"][strongest["row"]][strongest["column"]] == np.max(facts["rollout"])
    assert np.mean(facts["rollout"]) == pytest.approx(1, abs=1e-3)
    assert facts["special_tokens"] == 1 and facts["attention_of"] == "the class token"


def test_patches_are_drawn_where_they_are(tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:16, 16:24] = (255, 0, 0)  # row 1, column 2 of 4x4 patches
    explain(tiny_bundle, pixels, tmp_path / "out")
    drawn = np.asarray(Image.open(tmp_path / "out" / "patches.png")).astype(int)
    red = (drawn[..., 0] > 240) & (drawn[..., 1:].max(axis=-1) < 15)
    black = drawn.max(axis=-1) < 15
    area = 8 * 8 * (800 // 32) ** 2
    assert red.sum() == pytest.approx(area, rel=0.02) and black.sum() == pytest.approx(15 * area, rel=0.02)
    y, x = (np.argwhere(red).mean(axis=0) - np.argwhere(black | red).min(axis=0)) / 204  # tile and gap
    assert (int(y), int(x)) == (1, 2)


def test_colours_run_between_their_ends() -> None:
    ramp = colours(np.array([-9.0, 0.0, 0.5, 1.0, 9.0]), 0, 1, "heat").astype(int)
    assert (ramp[0] == ramp[1]).all() and (ramp[3] == ramp[4]).all()
    assert ramp[1].sum() < ramp[2].sum() < ramp[3].sum()
    assert colours(np.array(0.0), -1, 1, "sign").min() > 240


def test_the_overlay_is_brightest_where_the_map_is_high() -> None:
    values = np.zeros((4, 4))
    values[3, 0] = 2
    light = overlay(np.full((32, 32, 3), 128, np.uint8), values, (64, 64), (0.0, 2.0)).sum(axis=2)
    assert light[56, 8] > light[8, 56] + 100


def test_one_patch_far_above_all_others_leaves_them_as_they_are() -> None:
    """DINOv2's notes in the background: seven times an even spread, beside patches of one."""
    values = np.ones((4, 4))
    grey = np.full((32, 32, 3), 128, np.uint8)
    values[1, 1] = 1.5
    just = overlay(grey, values, (64, 64), (0.5, 1.5))
    values[1, 1] = 7.0
    far = overlay(grey, values, (64, 64), (0.5, 1.5))
    assert np.array_equal(just, far)
    assert np.array_equal(far[24, 56], far[56, 56]) and far[24, 34:].sum(axis=1).min() == far[56, 56].sum()  # no ring


def test_white_patches_have_edges(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 60, 3), 255, np.uint8)).save(tmp_path / "white.png")
    explain(tiny_bundle, tmp_path / "white.png", tmp_path / "out")
    for name in ("patches.png", "attention-rollout.png"):
        drawn = np.asarray(Image.open(tmp_path / "out" / name).convert("L"))
        rows = (drawn[:, : drawn.shape[1] // 2] < 230).sum(axis=1)
        assert (rows > 200).sum() >= 2, name  # lines above and below the image


def test_nothing_is_overwritten_unasked(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    explain(tiny_bundle, picture, out)
    with pytest.raises(OutputExistsError):
        explain(tiny_bundle, picture, out)
    explain(tiny_bundle, picture, out, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="not a folder of vitdeploy explain"):
        explain(tiny_bundle, picture, other, overwrite=True)
    assert (other / "notes.txt").read_text() == "mine"


def test_pictures_in_the_bundle(tiny_bundle_copy: Path, tiny_checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    result = explain(tiny_bundle_copy, picture, tmp_path / "out", add_to_bundle=True)
    bundle = Bundle.open(tiny_bundle_copy)
    bundle.verify()
    assert [artifact.path for artifact in bundle.select(kind="explanation")] == list(result.in_bundle)
    assert (tiny_bundle_copy / "explain" / "patches.png").read_bytes() == result.pictures[-1].read_bytes()
    with pytest.raises(InputError, match="is not a bundle"):
        explain(tiny_checkpoint, picture, tmp_path / "again", add_to_bundle=True)
    assert not (tmp_path / "again").exists()


def test_the_command(
    cli: Callable[..., Any], tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("explain", tiny_bundle, picture)
    assert done.exit_code == 0, done.stderr
    assert "a picture-explained/patches.png" in done.stdout and "of the class token" in done.stdout
    assert {path.name for path in (tmp_path / "a picture-explained").iterdir()} == {*NAMES, "explain.json"}
    asked = cli("explain", tiny_bundle, picture, "--output", "b", "--precision", "int8", "--json")
    facts = json.loads(asked.stdout)
    assert facts["form"] == "int8 graph" and facts["output"] == "b"
    again = cli("explain", tiny_bundle, picture)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    assert cli("explain", tiny_bundle, picture, "--overwrite").exit_code == 0
    missing = cli("explain", tiny_bundle, tmp_path / "none.png", "-o", "c")
    assert missing.exit_code == 1 and "none.png" in missing.stderr and not (tmp_path / "c").exists()


def test_a_bundle_needs_no_torch(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfor name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from vitdeploy.explain import explain\n"
        f"print(len(explain({str(tiny_bundle)!r}, {str(picture)!r}, {str(tmp_path / 'out')!r}).pictures))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "3"
