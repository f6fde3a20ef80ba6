"""A Ctrl-C that something swallows is raised again at the next step, and never twice."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import pytest

from vitdeploy.bundle import Bundle
from vitdeploy.cli import app
from vitdeploy.core import interrupts, progress
from vitdeploy.core.storage import locked, staged_folder


def swallowed() -> None:
    """Ctrl-C in code that holds on to every exception, as some native modules do while they are imported."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def test_a_swallowed_interrupt_is_raised_where_a_step_begins() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.remembered():
        swallowed()
        with progress.task("Next"):
            pytest.fail("the step was begun")


def test_a_swallowed_interrupt_is_raised_where_a_step_ends() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupts.remembered(), progress.task("This"):
        swallowed()
        reached = True
    assert reached


def test_nothing_is_put_in_place_after_a_swallowed_interrupt(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        interrupts.remembered(),
        staged_folder(tmp_path / "out", overwrite=False, ours=lambda path: True, what="thing") as staging,
    ):
        (staging / "file").write_text("done")
        swallowed()
    assert not list(tmp_path.iterdir())


def test_no_bundle_is_changed_after_a_swallowed_interrupt(tiny_bundle_copy: Path) -> None:
    bundle = Bundle.open(tiny_bundle_copy)
    before = bundle.manifest
    with pytest.raises(KeyboardInterrupt), interrupts.remembered(), bundle.edit() as editor:
        editor.update(labels=("other",) * len(before.labels))
        swallowed()
    assert Bundle.open(tiny_bundle_copy).manifest == before
    Bundle.open(tiny_bundle_copy).verify()


def test_an_acknowledged_interrupt_is_not_raised_again() -> None:
    with interrupts.remembered():
        swallowed()
        assert interrupts.pending()
        interrupts.acknowledge()
        with progress.task("Saving what there is"):
            pass


def test_the_block_leaves_nothing_behind() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts.remembered(), interrupts.remembered():
        swallowed()
    assert signal.getsignal(signal.SIGINT) is before
    assert not interrupts.pending()


def test_other_threads_go_on() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            interrupts.check()
        except BaseException as error:
            errors.append(error)

    with interrupts.remembered():
        swallowed()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert not errors


@pytest.mark.parametrize("ends", ["well", "with another error"])
def test_a_command_says_that_it_was_interrupted(
    ends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: list[str], quiet: bool) -> int:
        swallowed()
        if ends != "well":
            raise RuntimeError("a native module could not be initialised")
        return 0

    monkeypatch.setattr(app, "_invoke", command)
    assert app.run(["doctor"]) == 130
    said = capsys.readouterr().err
    assert ("Interrupted too late" in said) if ends == "well" else ("nothing was left half-written" in said)


def test_a_swallowed_interrupt_ends_the_wait_for_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(KeyboardInterrupt), interrupts.remembered():
        swallowed()
        with locked(tmp_path / "lock", wait_s=600):
            pytest.fail("it is held by another")
