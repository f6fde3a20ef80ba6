"""Writes are whole or not there, whatever happens in between."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tools.files import recorded_writes
from tests.tools.killed import KILLED, in_a_child, limit_files
from vitdeploy.core.errors import BundleError, OutOfMemoryError, OutputExistsError, VitdeployError
from vitdeploy.core.storage import (
    _swap,
    check_apart,
    check_writable,
    disk_errors,
    files_below,
    lists_all,
    locked,
    open_regular,
    read_json,
    scratch_folder,
    sha256,
    staged_folder,
    write_atomically,
)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def anything(_: Path) -> bool:
    return True


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "file.txt", "one")
    write_atomically(tmp_path / "a" / "file.txt", b"two")
    assert (tmp_path / "a" / "file.txt").read_text() == "two"
    assert entries(tmp_path / "a") == {"file.txt"}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.bin"
    write_atomically(file, b"old")

    def write() -> None:
        limit_files(4096)
        with pytest.raises(VitdeployError, match="no space left") as error:
            write_atomically(file, bytes(100_000))
        assert "unchanged" in str(error.value.hint)

    assert in_a_child(write) == 0
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
        pytest.raises(OutputExistsError, match="is not a thing"),
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
        monkeypatch.setattr("vitdeploy.core.storage._exchange", lambda first, second: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    _swap(tmp_path / "new", tmp_path / "old")
    assert entries(tmp_path) == {"old"} and entries(tmp_path / "old") == {"new"}


def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path: Path) -> None:
    def killed() -> None:
        with staged_folder(tmp_path / "out", overwrite=False, ours=anything, what="thing"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == KILLED
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
        done.wait(60)


def test_a_second_process_is_told_that_the_first_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", ready, done))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(BundleError, match="another command is writing"), locked(tmp_path / "lock"):
            pass
    finally:
        done.set()
        process.join(60)
    with locked(tmp_path / "lock"):
        pass


def test_a_forbidden_folder_is_an_error_with_the_next_step() -> None:
    with pytest.raises(VitdeployError, match="not allowed to write /x") as caught, disk_errors("/x"):
        raise PermissionError(13, "Permission denied")
    assert "--output" in str(caught.value.hint)


def test_a_path_below_a_file_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(VitdeployError, match="a file is in the place of one of its folders") as caught:
        write_atomically(tmp_path / "file" / "a" / "report.json", "{}")
    assert "--output" in str(caught.value.hint)
    with (
        pytest.raises(VitdeployError, match="a file is in the place of one of its folders"),
        staged_folder(tmp_path / "file" / "bundle", overwrite=False, ours=lambda _: True, what="bundle"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(VitdeployError, match="not allowed to write .*folder: Is a directory"):
        write_atomically(tmp_path / "folder", "{}")
    with pytest.raises(VitdeployError, match="File name too long"):
        write_atomically(tmp_path / ("x" * 300), "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_what_can_not_be_written_is_known_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a" / "b" / "report.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    with pytest.raises(VitdeployError, match="is a folder") as caught:
        check_writable(tmp_path)
    assert caught.value.hint == "name a file in it"
    with pytest.raises(VitdeployError, match="a file is in the place of one of its folders"):
        check_writable(tmp_path / "file" / "a" / "report.json")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(VitdeployError, match="Permission denied"):
        check_writable(tmp_path / "report.json")


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


@pytest.mark.parametrize("make", ["pipe", "link to a pipe", "device", "folder", "nothing", "loop"])
def test_only_regular_files_are_opened(make: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if "pipe" in make:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe"
    if make == "link to a pipe":
        path = tmp_path / "link"
        path.symlink_to("pipe")
    elif make == "device":
        path.symlink_to("/dev/zero")
    elif make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to("x")
    with pytest.raises(OSError, match="not a regular file|directory|No such file|Too many levels"):
        open_regular(path)


def test_a_link_to_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[1]")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link") == [1]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
        (b"[" * 150 + b"]" * 150, "nested deeper than 100"),
        (b'{"a":' * 150 + b"1" + b"}" * 150, "nested deeper than 100"),
        (rb'["\ud800"]', "surrogates not allowed"),
        (rb'{"\udfff": 1}', "surrogates not allowed"),
        (b'"\xed\xa0\x80"', "decode"),
        ('"a"'.encode("utf-16"), "decode"),
        (b"[1", "delimiter"),
        (b"", "Expecting value"),
        (b"1" * 5000, "digits"),
        (b"[" + b" " * 2000 + b"]", "larger than 0 MiB"),
    ],
)
def test_json_of_strangers_is_refused_in_one_way(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    limit = 1000 if "larger" in why else 1 << 20
    with pytest.raises(ValueError, match=why):
        read_json(tmp_path / "x.json", limit=limit)


def test_json_of_a_hundred_levels_and_with_whole_pairs_of_surrogates_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"[" * 100 + rb'"\ud83d\ude00 \\ud800"' + b"]" * 100)
    inner = read_json(tmp_path / "x.json")
    while isinstance(inner, list):
        inner = inner[0]
    assert inner == "\U0001f600 \\ud800"


@pytest.mark.parametrize(
    ("output", "refused"),
    [
        ("data.parquet", True),
        ("link", True),
        ("twin", True),
        ("photos", True),
        (".", True),
        ("photos/results.csv", False),
        ("other", False),
        ("photos-2", False),
    ],
)
def test_an_output_that_is_or_holds_an_input_is_refused(output: str, refused: bool, tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_text("x")
    (tmp_path / "link").symlink_to("data.parquet")
    os.link(tmp_path / "data.parquet", tmp_path / "twin")
    (tmp_path / "photos").mkdir()
    inputs = [str(tmp_path / "data.parquet"), tmp_path / "photos", "no such thing", b"content", None]
    if refused:
        with pytest.raises(OutputExistsError, match="is, or holds, the input"):
            check_apart(tmp_path / output, inputs)
    else:
        check_apart(tmp_path / output, inputs)


def test_a_folder_is_ours_while_it_holds_what_its_facts_list(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("x")
    (tmp_path / "facts.json").write_text(json.dumps({"files": files_below(tmp_path)}))
    assert lists_all(tmp_path, "facts.json", "files")
    assert not lists_all(tmp_path, "facts.json", "others")
    (tmp_path / "sub" / "thesis").write_text("x")
    assert not lists_all(tmp_path, "facts.json", "files")
    (tmp_path / "sub" / "thesis").unlink()
    (tmp_path / "elsewhere").symlink_to("sub")
    assert not lists_all(tmp_path, "facts.json", "files")
    (tmp_path / "elsewhere").unlink()
    (tmp_path / "sub" / "a").unlink()
    assert lists_all(tmp_path, "facts.json", "files"), "what is gone is no loss"
    for text in ("{", "[]", '{"files": 3}', '{"files": [3]}', "{}"):
        (tmp_path / "facts.json").write_text(text)
        assert not lists_all(tmp_path, "facts.json", "files")


def test_a_pipe_and_a_link_beside_an_output_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".out.partial-x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    (tmp_path / ".out.partial-y").symlink_to("mine")
    with staged_folder(tmp_path / "out", overwrite=False, ours=anything, what="thing") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "mine" / "letter").read_text() == "dear" and (tmp_path / ".out.partial-x").exists()


@pytest.mark.parametrize("make", ["link", "folder"])
def test_a_lock_that_is_no_file_is_not_taken(make: str, tmp_path: Path) -> None:
    if make == "link":
        (tmp_path / "lock").symlink_to("created")
    else:
        (tmp_path / "lock").mkdir()
    with pytest.raises(BundleError, match="is a link or no file"), locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_is_written_may_be_read_by_whom_the_umask_lets(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"new")
        with staged_folder(tmp_path / "folder", overwrite=False, ours=lambda _: True, what="folder") as staging:
            (staging / "inside").write_bytes(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = recorded_writes(tmp_path, monkeypatch)
    log = writes.log
    write_atomically(tmp_path / "file", b"new")
    (first, temporary), (second, name), (third, parent) = log
    assert (first, second, third) == ("sync", "rename", "sync")
    assert temporary.startswith(".file.tmp-") and (name, parent) == ("file", tmp_path.name)
    log.clear()
    with staged_folder(tmp_path / "folder", overwrite=False, ours=lambda _: True, what="folder") as staging:
        (staging / "below").mkdir()
        (staging / "below" / "a").write_bytes(b"1")
        (staging / "b").write_bytes(b"2")
    place = log.index(("rename", "folder"))
    assert {name for what, name in log[:place] if what == "sync"} == {"a", "b", "below", staging.name}
    assert log[place + 1 :] == [("sync", tmp_path.name)]
    assert not writes.too_early and not writes.pending


def test_nothing_stays_open(tmp_path: Path) -> None:
    """A service that writes for months would run out of descriptors."""

    def write(number: int) -> None:
        write_atomically(tmp_path / "file", b"new")
        read_json(tmp_path / "facts.json")
        with locked(tmp_path / "lock"), scratch_folder(tmp_path / "work", "test"):
            pass
        for fails in (False, True):
            with (
                suppress(RuntimeError),
                staged_folder(tmp_path / "out", overwrite=True, ours=anything, what="thing") as folder,
            ):
                (folder / "file").write_text(str(number))
                if fails:
                    raise RuntimeError

    (tmp_path / "facts.json").write_text("{}")
    write(0)
    before = os.listdir("/proc/self/fd")
    for number in range(3):
        write(number)
    assert os.listdir("/proc/self/fd") == before
    assert entries(tmp_path) == {"file", "facts.json", "lock", "out"}


def test_a_program_without_standard_input_reads_files(tmp_path: Path) -> None:
    """The descriptor 0 is free there, and the next file has it."""
    (tmp_path / "file").write_text("x")

    aside = os.dup(0)
    os.close(0)
    try:
        with open_regular(tmp_path / "file") as file:
            assert file.fileno() == 0 and file.read() == b"x"
    finally:
        os.dup2(aside, 0)
        os.close(aside)


def test_a_pipe_that_takes_a_files_place_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and its opening: it is closed again."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    looked = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: looked)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
    assert os.listdir("/proc/self/fd") == before


def test_whoever_may_write_beside_it_may_take_a_lock(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666


def test_no_memory_to_read_a_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    (tmp_path / "file").write_bytes(b"1")
    monkeypatch.setattr("vitdeploy.core.storage.mmap", refuse)
    with pytest.raises(OutOfMemoryError, match="not enough memory to read a file"):
        sha256(tmp_path / "file")
