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
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdeploy import interrupts
from vitdeploy.errors import BundleError, OutputExistsError, VitdeployError

__all__ = [
    "check_output",
    "disk_errors",
    "fsync_path",
    "locked",
    "read_json",
    "scratch_folder",
    "sha256",
    "staged_folder",
    "write_atomically",
]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_DISK = re.compile(
    rf"os error ({'|'.join(map(str, sorted(_NO_SPACE)))})\b|No space left|File too large|file write failed"
    r"|inline_container\.cc.*unexpected pos"  # torch.save's zip file, cut short
)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, in pieces so large that other threads are not stopped over and over."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 24))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


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
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise VitdeployError(
                f"not allowed to write {what}: {os.strerror(number or 0)}",
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


def read_json(path: Path) -> Any:
    """Parse a JSON file; ValueError says why it can't be parsed."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


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
            f"{output} exists and is no {what}, so --overwrite does not replace it",
            hint="choose another --output, or remove it yourself",
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
    output = Path(os.path.abspath(output))
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

    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what killed commands left behind."""
    for folder in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        try:
            os.close(_hold(folder))
        except OSError:
            continue  # its maker is at work
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
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; released by the system if the process dies.

    Raises:
        BundleError: another process holds it.
    """
    import fcntl

    with disk_errors(str(path)), open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError(
                f"another command is writing to {path.parent}", hint="wait until it has ended, then run this one again"
            ) from error
        yield
