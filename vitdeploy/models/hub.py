"""The Hugging Face Hub's door: what is fetched from it, and what is said when it can't be reached.

`huggingface_hub` retries for half a minute before it gives up, so the Hub is probed first, briefly. When it
does not answer (or HF_HUB_OFFLINE is set), only its local cache is read.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import VitdeployError, require
from vitdeploy.core.text import first_line

__all__ = ["fetch", "is_reachable", "is_transport", "looks_like_path", "offline", "quiet_libraries"]

_PROBE_SECONDS = 4.0


def looks_like_path(name: str) -> bool:
    """Whether `name` can only be meant as a local path: a Hub id is `name` or `owner/name`."""
    return (
        name.startswith(("/", "./", "../", "~"))
        or name in (".", "..", "")
        or "\\" in name
        or name.endswith("/")
        or name.count("/") > 1
    )


def is_reachable(timeout_s: float = _PROBE_SECONDS, *, extra: str = "build") -> bool:
    """Whether the Hub answers within `timeout_s` seconds; False at once when the user asked for offline mode.

    Raises:
        DependencyError: its client is not installed; the hint names `extra`.
    """
    constants = require("huggingface_hub.constants", extra)
    if constants.HF_HUB_OFFLINE:
        return False
    from urllib.request import getproxies

    if "all" in getproxies():
        return True  # urllib does not speak SOCKS, so the real client has to find out
    answers: list[bool] = []
    # A thread, since looking a name up obeys no timeout.
    thread = threading.Thread(target=lambda: answers.append(_answers(constants.ENDPOINT, timeout_s)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answers) and answers[0]


def _answers(endpoint: str, timeout_s: float) -> bool:
    import ssl  # these here, since every program of ours comes past this module
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout_s):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # somebody answered; the real client says what is wrong
    except (OSError, ValueError):
        return False


def fetch(
    repository: str,
    *,
    kind: str,
    patterns: list[str],
    error: type[VitdeployError],
    local_hint: str,
    revision: str | None = None,
    into: Path | None = None,
    extra: str = "build",
    online: bool | None = None,
) -> Path:
    """Get files of a Hub repository, from the local cache where they are there already.

    Args:
        repository: `name` or `owner/name`.
        kind: "model" or "dataset".
        patterns: which files, as shell patterns.
        error: the class to raise.
        local_hint: how to use a local copy instead, for the hint.
        revision: branch, tag or commit; the default branch when None.
        into: a folder to put them in instead of the cache.
        extra: that of vitdeploy which installs the Hub's client.
        online: whether the Hub answers, for who has asked it; None: it is asked.

    Returns:
        The folder of the snapshot in the cache, whose name is the commit, or `into`.
    """
    download = require("huggingface_hub", extra).snapshot_download  # what it loads of the client has the bars to quiet
    online = is_reachable(extra=extra) if online is None else online
    wanted = _Wanted(repository, kind, revision, online, local_hint)
    with _refusals(wanted, error, extra), quiet_libraries(), progress.task(f"Fetching {repository} from the Hub"):
        folder = download(
            repository,
            repo_type=kind,
            revision=revision,
            allow_patterns=patterns,
            local_dir=into,
            local_files_only=not online,
        )
        return Path(folder)


@dataclass(frozen=True)
class _Wanted:
    """What was asked for, for the messages of `_refusals`."""

    repository: str
    kind: str
    revision: str | None
    online: bool
    local_hint: str

    def __str__(self) -> str:
        return f"{self.kind} {self.repository!r}" + (f" at revision {self.revision!r}" if self.revision else "")


@contextmanager
def _refusals(wanted: _Wanted, error: type[VitdeployError], extra: str) -> Iterator[None]:
    """The client's errors as `error`, with the next step."""
    problems, name, kind = require("huggingface_hub.errors", extra), wanted.repository, wanted.kind
    try:
        yield
    except problems.HFValidationError as cause:
        raise error(f"{name!r} is neither a local path nor a Hub id", hint=wanted.local_hint) from cause
    except problems.GatedRepoError as cause:
        raise error(
            f"the {wanted} is gated on the Hub",
            hint=f"accept its terms there and run `hf auth login`; or {wanted.local_hint}",
        ) from cause
    except problems.RevisionNotFoundError as cause:
        raise error(f"the {kind} {name!r} has no revision {wanted.revision!r}", hint="check --revision") from cause
    except problems.RepositoryNotFoundError as cause:
        raise error(
            f"there is no local path {name!r}, and the Hub has no such {kind} (or it is private)",
            hint=f"check the spelling; for a private one run `hf auth login`; or {wanted.local_hint}",
        ) from cause
    except (problems.LocalEntryNotFoundError, problems.OfflineModeIsEnabled, problems.HfHubHTTPError, OSError) as cause:
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ConnectionError):
            raise  # the disk, not the network
        why = f"the Hub did not deliver it ({first_line(cause)})"
        if not wanted.online:
            why = "the Hugging Face Hub can't be reached"
        raise error(
            f"there is no local path {name!r}, and the {wanted} can't be fetched: {why}", hint=wanted.local_hint
        ) from cause
    except Exception as cause:
        if not is_transport(cause):
            raise
        raise error(
            f"the connection to the Hub broke while the {wanted} was fetched: {first_line(cause)}",
            hint=f"run the command again, it goes on where it was; or {wanted.local_hint}",
        ) from cause


def is_transport(error: Exception) -> bool:
    """Whether the connection failed: the errors of the client's transport are neither OSError nor the client's own."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


@contextmanager
def offline(active: bool = True) -> Iterator[None]:
    """Keep Hugging Face's libraries to their local caches inside the block (if `active`)."""
    import sys

    require("datasets.config", extra="build")
    switches = [sys.modules["huggingface_hub.constants"], sys.modules["datasets.config"]]
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        for module in switches if active else ():
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the bars and warnings of Hugging Face's libraries off the terminal inside the block.

    Only libraries that are already imported are silenced: this imports none.
    """
    import sys

    undo: list[Any] = []
    hub_utils = sys.modules.get("huggingface_hub.utils")
    if hub_utils is not None and not hub_utils.are_progress_bars_disabled():
        hub_utils.disable_progress_bars()
        undo.append(hub_utils.enable_progress_bars)
    transformers_logging = sys.modules.get("transformers.utils.logging")
    if transformers_logging is not None and transformers_logging.is_progress_bar_enabled():
        transformers_logging.disable_progress_bar()
        undo.append(transformers_logging.enable_progress_bar)
    datasets_bars = sys.modules.get("datasets.utils")
    if datasets_bars is not None and not datasets_bars.are_progress_bars_disabled():
        datasets_bars.disable_progress_bars()
        undo.append(datasets_bars.enable_progress_bars)
    levels = {name: logging.getLogger(name).level for name in ("transformers", "huggingface_hub", "datasets")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they log as an error they raise as well
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for step in undo:
            step()
