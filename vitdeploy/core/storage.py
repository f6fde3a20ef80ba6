"""Files that are either whole or not there: atomic writes, staged folders, locks, hashes.

Everything is written under a temporary name beside its destination, flushed to the disk and renamed.
A killed command, a full disk or Ctrl-C leaves what was there before.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from mmap import mmap
from pathlib import Path
from typing import Any

from vitdeploy.core import interrupts
from vitdeploy.core.decoding import decode
from vitdeploy.core.errors import BundleError, OutOfMemoryError, OutputExistsError, VitdeployError

__all__ = [
    "check_apart",
    "check_output",
    "check_writable",
    "disk_errors",
    "files_below",
    "fsync_path",
    "hashing_buffer",
    "holds_only",
    "lists_all",
    "locked",
    "open_regular",
    "parse_json",
    "read_json",
    "refuse_pointer",
    "scratch_folder",
    "sha256",
    "staged_folder",
    "write_atomically",
]

_DEEPEST = 100
_POINTER = b"version https://git-lfs.github.com/spec/"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_DISK = re.compile(
    rf"os error ({'|'.join(map(str, sorted(_NO_SPACE)))})\b|No space left|File too large|file write failed"
    r"|inline_container\.cc.*unexpected pos"  # torch.save's zip file, cut short
)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, in pieces so large that other threads are not stopped over and over."""
    digest = hashlib.sha256()
    with open_regular(path) as file, hashing_buffer() as memory, memoryview(memory) as buffer:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def hashing_buffer() -> mmap:
    """16 MiB for a file's pieces, of their own: the C library, once such a piece of its memory is freed, takes all that
    is smaller from one heap, in which a model that is loaded then leaves gaps of half its size.

    Raises:
        OutOfMemoryError: there are none.
    """
    try:
        return mmap(-1, 1 << 24)
    except OSError as error:
        raise OutOfMemoryError("not enough memory to read a file", hint="close other programs") from error


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network and container file systems can't sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


_IN_THE_WAY = "a file is in the place of one of its folders"
_REFUSED = {  # and why, where the system says it worse
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), _IN_THE_WAY),
}


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk, a forbidden folder or a file in its place inside the block into an error with the next step.

    Libraries in other languages (safetensors, torch, protobuf) tell of a full disk in exceptions of their own.
    """
    try:
        yield
    except (VitdeployError, MemoryError):
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _NO_SPACE or (number is None and _FULL_DISK.search(str(error))):
            raise VitdeployError(
                f"no space left on the disk while writing {what}",
                hint="free some space and run the command again; what was there before is unchanged",
            ) from error
        if number in _REFUSED:
            raise VitdeployError(
                f"not allowed to write {what}: {_REFUSED[number] or os.strerror(number)}",
                hint="choose an --output that you may write to",
            ) from error
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`, whole or not at all."""
    content = data.encode() if isinstance(data, str) else data
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp-")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises:
        OSError: it can't be opened, or is a pipe, a device or the like, which is not touched: reading it may never end.
    """
    handle = -1
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe put in its place can't hold it
        elif os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if handle >= 0 and stat.S_ISREG(os.fstat(handle).st_mode):
            file, handle = os.fdopen(handle, "rb"), -1
            return file
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    finally:
        if handle >= 0:
            os.close(handle)


def refuse_pointer(path: Path, error: type[VitdeployError]) -> None:
    """Raise `error` for the few lines that Git leaves in the place of a large file where Git LFS is not installed."""
    try:
        with open_regular(path) as file:
            first = file.read(len(_POINTER))
    except (OSError, ValueError):
        return  # said by who reads it
    if first == _POINTER:
        raise error(
            f"{path} is a Git LFS pointer, not the file itself",
            hint=f"fetch the files: cd {path.parent} && git lfs install && git lfs pull; or download them again",
        )


def read_json(path: Path, *, limit: int = 64 << 20) -> Any:
    """Parse a JSON file of at most `limit` bytes, from whomever it comes.

    Raises:
        OSError: it can't be read, or is not a regular file.
        ValueError: why it can't be parsed: it is larger, not JSON in UTF-8, nested deeper than 100 levels, or holds
            text that is no Unicode (a lone surrogate).
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MiB")
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """What `read_json` gives of a file with that content; raises the same ValueError."""
    try:
        data = json.loads(content.decode())  # as UTF-8 alone: json would guess
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels") from error
    level = [data]
    for _ in range(_DEEPEST + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each
                inner += each.values()
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                each.encode()  # UnicodeEncodeError, a ValueError, names the lone surrogate
        if not inner:
            return data
        level = inner
    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")


def check_output(output: Path, *, overwrite: bool, ours: Callable[[Path], bool], what: str) -> None:
    """Refuse an output folder that may not be written, before any work is done; the arguments of `staged_folder`.

    Raises:
        OutputExistsError: `output` exists and may not be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(
            f"{output} already exists", hint="choose another --output, or replace it with --overwrite"
        )
    if not output.is_dir() or not ours(output):
        raise OutputExistsError(
            f"{output} exists and is not a {what}, or holds other files too, so --overwrite does not replace it",
            hint="choose another --output, or remove it yourself",
        )


def check_apart(output: str | os.PathLike[str], inputs: Iterable[Any]) -> None:
    """Refuse an output that is one of the inputs, or a folder that holds one, through links too.

    Inputs that are not paths, or name nothing on this disk, are passed over.

    Raises:
        OutputExistsError: the output would replace what is read.
    """
    place = Path(os.path.realpath(output))
    for given in inputs:
        if isinstance(given, (str, os.PathLike)) and os.path.exists(given):
            real = Path(os.path.realpath(given))
            if real.is_relative_to(place) or (place.exists() and os.path.samefile(real, place)):
                raise OutputExistsError(
                    f"the output {os.fspath(output)} is, or holds, the input {os.fspath(given)}",
                    hint="choose another --output: what is read is never replaced",
                )


def check_writable(output: str | os.PathLike[str]) -> None:
    """Refuse a file that can't be written where it shall be, before anything is done for it.

    Raises:
        VitdeployError: it is a folder, or lies below a file, or in a folder that may not be changed.
    """
    place = Path(os.path.abspath(output))
    if place.is_dir():
        raise VitdeployError(f"{os.fspath(output)} is a folder", hint="name a file in it")
    with disk_errors(os.fspath(output)):
        above = next(parent for parent in place.parents if os.path.lexists(parent))
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def files_below(folder: Path) -> list[str]:
    """The paths in `folder` of all files below it, for `lists_all`."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def lists_all(folder: Path, facts: str, entry: str) -> bool:
    """Whether the JSON file `facts` of a folder lists, as its `entry`, every other file below the folder."""
    try:
        files: tuple[str, ...] = decode(tuple[str, ...], read_json(folder / facts)[entry])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return holds_only(folder, {*files, facts}.__contains__)


def holds_only(folder: Path, ours: Callable[[str], bool]) -> bool:
    """Whether each file below `folder` is one of ours, by its path in it."""
    return all(
        ours(Path(parent, name).relative_to(folder).as_posix())
        for parent, folders, names in os.walk(folder)
        for name in [*names, *(name for name in folders if Path(parent, name).is_symlink())]
    )


@contextmanager
def staged_folder(output: Path, *, overwrite: bool, ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """Fill a folder beside `output` and swap it in when the block ends well.

    Args:
        output: where the folder shall be.
        overwrite: replace an `output` that exists.
        ours: says whether an existing folder is of the kind being written; any other is never replaced.
        what: the kind, for messages ("bundle", "checkpoint").

    Raises:
        OutputExistsError: `output` exists and may not be replaced.
    """
    output = Path(os.path.realpath(output))  # a link that the user names stays one
    check_output(output, overwrite=overwrite, ours=ours, what=what)
    with disk_errors(str(output)):
        output.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{output.name}.partial-"
        _remove_abandoned(output.parent, prefix)
        staging = Path(tempfile.mkdtemp(dir=output.parent, prefix=prefix))
        alive = _hold(staging)
        try:
            os.chmod(staging, 0o777 & ~_umask())
            yield staging
            for root, _, files in os.walk(staging):
                for name in files:
                    fsync_path(Path(root, name))
                fsync_path(Path(root))
            interrupts.check()
            _swap(staging, output)
            fsync_path(output.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            os.close(alive)


@contextmanager
def scratch_folder(beside: Path, purpose: str) -> Iterator[Path]:
    """A folder on the same disk as `beside`, for as long as the block lasts; what killed commands left goes first."""
    beside = Path(os.path.abspath(beside))
    prefix = f".{beside.name}.{purpose}-"
    with disk_errors(str(beside.parent)):
        _remove_abandoned(beside.parent, prefix)
        folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=prefix))
        alive = _hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(alive)


def _hold(folder: Path) -> int:
    """A lock on a folder that says its maker lives; the system lets go of it when the maker dies."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what killed commands left behind."""
    for folder in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        try:
            os.close(_hold(folder))
        except OSError:
            continue  # its maker is at work, or it is not a folder
        shutil.rmtree(folder, ignore_errors=True)


def _swap(staging: Path, output: Path) -> None:
    if not output.exists():
        os.rename(staging, output)
        return
    if not _exchange(staging, output):
        aside = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.previous-"))
        os.rename(output, aside / "old")
        try:
            os.rename(staging, output)
        except BaseException:
            os.rename(aside / "old", output)
            aside.rmdir()
            raise
        staging = aside
    shutil.rmtree(staging, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step (Linux renameat2); False where the system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0)


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; released by the system if the process dies.

    Raises:
        BundleError: another process holds it, `wait_s` seconds from now still; or it is a link or no file.
    """
    until = time.monotonic() + wait_s
    with disk_errors(str(path)):
        while (handle := _lock(path)) is None:
            if time.monotonic() >= until:
                raise BundleError(
                    f"another command is writing to {path.parent}",
                    hint="wait until it has ended, then run this one again",
                )
            interrupts.check()
            time.sleep(0.1)
        try:
            yield
        finally:
            os.close(handle)


def _lock(path: Path) -> int | None:
    """A handle on the locked file; None where another process has the lock."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise BundleError(f"{path} is a link or no file, so it can't be locked", hint="remove it") from error
        raise
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):  # else the folder was replaced meanwhile
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
