"""Writes are whole or not there, whatever happens in between."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vitdeploy.errors import BundleError, OutputExistsError, VitdeployError
from vitdeploy.storage import _swap, disk_errors, locked, scratch_folder, staged_folder, write_atomically


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def anything(_: Path) -> bool:
    return True


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "file.txt", "one")
    write_atomically(tmp_path / "a" / "file.txt", b"two")
    assert (tmp_path / "a" / "file.txt").read_text() == "two"
    assert entries(tmp_path / "a") == {"file.txt"}


def _limited(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.bin"
    write_atomically(file, b"old")
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from vitdeploy.errors import VitdeployError
        from vitdeploy.storage import write_atomically
        try:
            write_atomically(Path({str(file)!r}), bytes(100_000))
        except VitdeployError as error:
            print(error.message, "|", error.hint)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=lambda: _limited(4096)
    )
    assert "no space left" in done.stdout and "unchanged" in done.stdout
    assert file.read_bytes() == b"old" and entries(tmp_path) == {"file.bin"}


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out", overwrite=False, ours=anything, what="thing") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert entries(tmp_path) == {"out"}


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, stop: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with (
        pytest.raises(stop),
        staged_folder(tmp_path / "out", overwrite=True, ours=anything, what="thing") as folder,
    ):
        (folder / "new").write_text("new")
        raise stop
    assert entries(tmp_path) == {"out"} and entries(tmp_path / "out") == {"old"}


def test_an_existing_output_is_kept_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with (
        pytest.raises(OutputExistsError, match="already exists") as caught,
        staged_folder(tmp_path / "out", overwrite=False, ours=anything, what="thing"),
    ):
        pass
    assert "--overwrite" in str(caught.value.hint)


def test_overwrite_replaces_only_its_own_kind(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(OutputExistsError, match="is no thing"),
        staged_folder(tmp_path / "out", overwrite=True, ours=lambda path: False, what="thing"),
    ):
        pass
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out", overwrite=False, ours=anything, what="thing") as folder:
        (folder / "file").write_text("x")
    assert entries(tmp_path / "out") == {"file"} and entries(tmp_path) == {"out"}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_swap_replaces_the_whole_folder(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:  # file systems and systems without renameat2
        monkeypatch.setattr("vitdeploy.storage._exchange", lambda first, second: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    _swap(tmp_path / "new", tmp_path / "old")
    assert entries(tmp_path) == {"old"} and entries(tmp_path / "old") == {"new"}


def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import os
        from pathlib import Path
        from vitdeploy.storage import staged_folder
        with staged_folder(Path({str(tmp_path / "out")!r}), overwrite=False, ours=lambda path: True, what="thing"):
            os.kill(os.getpid(), 9)
        """
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(entries(tmp_path)) == 1
    with staged_folder(tmp_path / "out", overwrite=False, ours=anything, what="thing") as running:
        assert entries(tmp_path) == {running.name}
        with staged_folder(tmp_path / "out", overwrite=False, ours=anything, what="thing"):
            assert running.exists(), "a command that is still at work keeps its folder"
        (tmp_path / "out").rmdir()
    assert entries(tmp_path) == {"out"}


def _hold(path: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with locked(path):
        ready.set()
        done.wait(20)


def test_a_second_process_is_told_that_the_first_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", ready, done))
    process.start()
    try:
        assert ready.wait(20)
        with pytest.raises(BundleError, match="another command is writing"), locked(tmp_path / "lock"):
            pass
    finally:
        done.set()
        process.join(20)
    with locked(tmp_path / "lock"):
        pass


def test_a_forbidden_folder_is_an_error_with_the_next_step() -> None:
    with pytest.raises(VitdeployError, match="not allowed to write /x") as caught, disk_errors("/x"):
        raise PermissionError(13, "Permission denied")
    assert "--output" in str(caught.value.hint)


def test_libraries_that_tell_of_a_full_disk_in_their_own_way_are_understood() -> None:
    with pytest.raises(VitdeployError, match="no space left on the disk while writing /x"), disk_errors("/x"):
        raise RuntimeError("I/O error: File too large (os error 27)")


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"), disk_errors("/x"):
        raise RuntimeError("shape mismatch")
    with pytest.raises(VitdeployError, match="^No space left$"), disk_errors("/x"):
        raise VitdeployError("No space left")
    with pytest.raises(FileNotFoundError), disk_errors("/x"):
        os.stat("/no/such/file")


def test_a_scratch_folder_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    beside = tmp_path / "bundle"
    (tmp_path / ".bundle.work-left").mkdir()  # by a command that was killed
    with scratch_folder(beside, "work") as first, scratch_folder(beside, "work") as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
        (first / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="wrong"), scratch_folder(beside, "work"):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
