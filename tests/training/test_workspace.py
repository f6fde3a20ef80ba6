"""The folder that keeps an interrupted run: what is in it, who may take it up, and when it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tools.files import recorded_writes
from tests.tools.notes import kept_notes
from vitdeploy.core.errors import BundleError, InputError, OutputExistsError
from vitdeploy.training.processes import Processes
from vitdeploy.training.workspace import Workspace, workspace

ALONE = Processes(0, 1)
SETTINGS: dict[str, Any] = {"learning_rate": 0.1, "seed": 0, "training images": {"count": 36, "sha256": "a" * 64}}


class PowerCut(Exception):
    pass


def run(output: Path, *steps: int, **options: Any) -> Workspace:
    """A run that is cut off behind checkpoints of those steps."""
    how = {"settings": SETTINGS, "overwrite": False, "resume": False, **options}
    with pytest.raises(PowerCut), workspace(output, how.pop("settings"), ALONE, **how) as work:
        for step in steps:
            with work.new_checkpoint(step, ALONE) as folder:
                (folder / "weights").write_text(str(step))
        raise PowerCut
    return work


def names(work: Workspace) -> set[str]:
    return {path.name for path in work.path.iterdir() if path.is_dir()}


def test_a_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    output = tmp_path / "runs" / "of today" / "vit"
    with kept_notes() as said:
        first = run(output, 4, 20, 8)
    assert first.start is None and first.resumed_from == () and first.path == output.with_name("vit.training")
    assert any("step 20" in note and "--resume" in note for note in said)
    with kept_notes() as said:
        second = run(output, 24, resume=True)
    assert second.start == first.checkpoint(20) and second.resumed_from == (20,)
    assert "Going on from step 20." in said and (second.checkpoint(4) / "weights").read_text() == "4"
    third = run(output, resume=True)
    assert third.start == first.checkpoint(24) and third.resumed_from == (20, 24)
    third.keep_only({8, 24})
    assert names(third) == {"checkpoint-8", "checkpoint-24"}
    with workspace(output, SETTINGS, ALONE, overwrite=False, resume=True) as work:
        work.discard()
    assert list(output.parent.iterdir()) == []


def test_nothing_stays_of_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    with kept_notes() as said:
        run(tmp_path / "vit", resume=True)
    assert list(tmp_path.iterdir()) == []
    assert said == ["No checkpoint to continue from: starting at the beginning."]


def test_an_interrupted_run_is_taken_up_or_dropped_as_was_said(tmp_path: Path) -> None:
    kept = run(tmp_path / "vit", 4)
    kept.tensorboard.mkdir()
    (kept.path / ".partial-9").mkdir()
    with pytest.raises(OutputExistsError, match="interrupted at step 4 or later") as error:
        run(tmp_path / "vit")
    assert "--resume" in str(error.value.hint) and "--overwrite" in str(error.value.hint)
    assert names(kept) == {"checkpoint-4", "tensorboard", ".partial-9"}
    run(tmp_path / "vit", resume=True)
    assert names(kept) == {"checkpoint-4", "tensorboard"}  # the curves go on, what was half written does not
    assert run(tmp_path / "vit", 2, overwrite=True, settings={**SETTINGS, "seed": 1}).start is None
    assert names(kept) == {"checkpoint-2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.2}, "had learning_rate = 0.1, not 0.2"),
        ({"ema": 0.9}, "had ema = None, not 0.9"),
        ({"training images": {"count": 35, "sha256": "b" * 64}}, "had 36 training images, and there are 35 now"),
        ({"training images": {"count": 36, "sha256": "b" * 64}}, "had 36 training images, and some are others now"),
        ({"validation images": {"count": 4, "sha256": "b" * 64}}, "had other validation images, and there are 4 now"),
    ],
)
def test_another_run_is_not_gone_on_with(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    run(tmp_path / "vit", 4)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "vit", resume=True, settings={**SETTINGS, **change})
    fewer = {"learning_rate": 0.1, "training images": SETTINGS["training images"]}
    assert run(tmp_path / "vit", resume=True, settings=fewer).start  # an earlier version compared more


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        workspace(tmp_path / "vit", SETTINGS, ALONE, overwrite=False, resume=False),
        pytest.raises(BundleError, match="another command"),
        workspace(tmp_path / "vit", SETTINGS, ALONE, overwrite=True, resume=False),
    ):
        pass


def test_a_relative_output_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with workspace(Path("vit"), SETTINGS, ALONE, overwrite=False, resume=False) as work:
        monkeypatch.chdir("elsewhere")
        with work.new_checkpoint(1, ALONE):
            pass
    assert (tmp_path / "vit.training" / "checkpoint-1").is_dir()


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    work = run(tmp_path / "vit", 4)
    with pytest.raises(PowerCut), work.new_checkpoint(4, ALONE) as folder:
        (folder / "weights").write_text("half")
        raise PowerCut
    assert names(work) == {"checkpoint-4"} and (work.checkpoint(4) / "weights").read_text() == "4"


def test_a_checkpoint_that_is_there_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workspace(tmp_path, None)
    writes = recorded_writes(tmp_path, monkeypatch)
    for content in ("one", "two"):  # another takes the place of the first
        with work.new_checkpoint(7, ALONE) as folder:
            (folder / "state").mkdir()
            (folder / "model.safetensors").write_text(content)
            (folder / "state" / "optimizer.pt").write_text(content)
            assert folder != work.checkpoint(7)
        assert not writes.too_early and not writes.pending
        assert ("rename", "checkpoint-7") in writes.log
        assert (work.checkpoint(7) / "state" / "optimizer.pt").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
