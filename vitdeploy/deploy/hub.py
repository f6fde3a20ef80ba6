"""`push`: a bundle becomes a repository on the Hugging Face Hub, with a card that says what was measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle
from vitdeploy.bundle.measurements import last_report
from vitdeploy.bundle.migrations import read_manifest
from vitdeploy.bundle.records import MANIFEST
from vitdeploy.core import progress
from vitdeploy.core.errors import BundleError, InputError, OutputExistsError, require
from vitdeploy.core.text import first_line, on_one_line
from vitdeploy.models.hub import is_reachable, is_transport, quiet_libraries
from vitdeploy.models.tasks import TASKS
from vitdeploy.report.markdown import markdown, table_row
from vitdeploy.report.records import BenchReport

__all__ = ["CARD", "Pushed", "model_card", "push"]

CARD = "README.md"
_BEGIN, _END = "<!-- vitdeploy: begin -->", "<!-- vitdeploy: end -->"
_CLASSES_SHOWN = 50

_MESSAGE = "Upload a bundle of vitdeploy"


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repository: `owner/name`.
        url: of the commit; None for a dry run.
        commit: its hash; None for a dry run.
        files: what the repository holds of the bundle afterwards: path -> bytes.
        removed: files of the bundle that was there before, which the new one has not.
    """

    repository: str
    url: str | None
    commit: str | None
    files: Mapping[str, int]
    removed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "files": dict(self.files), "removed": list(self.removed)}


def push(
    bundle: Bundle | str | os.PathLike[str],
    repository: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload a bundle in one commit, so that `load(repository)` sees the old bundle or the new one, never half of it.

    The files that the manifest lists are uploaded, and a card (README.md) with the measured table and the hashes. In a
    card that is there already only the part between our two markers is replaced; one without them is left alone.
    Files that are not a bundle's stay as they are.

    Args:
        bundle: an open bundle, or its folder; every file is compared with its hash first.
        repository: `owner/name`; it is made if it is not there.
        revision: an existing branch; None: the default one.
        private: make a new repository a private one.
        message: of the commit; None: that a bundle is uploaded.
        dry_run: upload nothing; with a repository that is not there yet, nothing is asked of the Hub but that.

    Raises:
        BundleError: the bundle is damaged, or the Hub refuses it.
        InputError: `repository` is not `owner/name`.
        OutputExistsError: the repository holds something else than a bundle.
        DependencyError: the Hub's client is not installed.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    with progress.task("Verifying the bundle"):
        opened.verify()
    hub = require("huggingface_hub", extra="hub")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InputError(f"{repository!r} is not a repository on the Hub", hint="write OWNER/NAME")
    if not is_reachable(extra="hub"):
        raise BundleError("the Hugging Face Hub can't be reached", hint="try again with a connection; see HF_ENDPOINT")
    place = _Repository(hub, hub.HfApi(library_name="vitdeploy"), repository, revision)
    with _refusals(repository), quiet_libraries():
        return _push(place, opened, private, message or _MESSAGE, dry_run)


@dataclass(frozen=True)
class _Repository:
    """A repository of the Hub at a revision, as its client sees it; it may not be there yet."""

    hub: Any
    api: Any
    name: str
    revision: str | None

    def files(self) -> set[str]:
        problems = require("huggingface_hub.errors", extra="hub")
        try:
            return set(self.api.list_repo_files(self.name, revision=self.revision))
        except problems.RevisionNotFoundError:
            raise
        except problems.RepositoryNotFoundError:
            return set()

    def before(self, there: set[str]) -> tuple[set[str] | None, str | None]:
        """The files of the bundle that it holds, None where it holds none, and its card; `there` are all its files."""
        with tempfile.TemporaryDirectory() as scratch:

            def get(name: str) -> Path | None:
                if name not in there:
                    return None
                return Path(self.hub.hf_hub_download(self.name, name, revision=self.revision, local_dir=scratch))

            manifest, card = get(MANIFEST), get(CARD)
            listed = None
            if manifest is not None:
                listed = {artifact.path for artifact in read_manifest(manifest).artifacts}
            return listed, None if card is None else card.read_text(encoding="utf-8", errors="replace")


def _push(repository: _Repository, bundle: Bundle, private: bool, message: str, dry_run: bool) -> Pushed:
    hub, api, name = repository.hub, repository.api, repository.name
    there = repository.files()
    before, card = repository.before(there)
    if there - {".gitattributes", CARD} and before is None:
        raise OutputExistsError(
            f"{name} is on the Hub already and holds no bundle, but {', '.join(sorted(there)[:5])}",
            hint="push to another name",
        )
    files = {path.relative_to(bundle.path).as_posix(): path for path in bundle.files()}
    removed = tuple(sorted(((before or set()) - set(files)) & there))
    text = _merged(card, model_card(bundle, name))
    sizes = {file: path.stat().st_size for file, path in sorted(files.items())}
    if dry_run:
        return Pushed(name, None, None, sizes, removed)
    api.create_repo(name, private=private, exist_ok=True)
    added = [hub.CommitOperationAdd(file, str(path)) for file, path in sorted(files.items())]
    if text is not None:
        added.append(hub.CommitOperationAdd(CARD, text.encode()))
    deleted = [hub.CommitOperationDelete(file) for file in removed]
    with progress.task(f"Uploading to {name}"):
        info = api.create_commit(name, [*added, *deleted], commit_message=message, revision=repository.revision)
    return Pushed(name, str(info.commit_url), str(info.oid), sizes, removed)


def _merged(card: str | None, made: str) -> str | None:
    """The card to upload; None where one that somebody wrote is to stay as it is."""
    if card is None:
        return made
    begin, end = card.find(_BEGIN), card.find(_END)
    if begin < 0 or end < begin:
        return None
    return card[:begin] + made[made.index(_BEGIN) : made.index(_END)] + card[end:]


def model_card(bundle: Bundle, repository: str) -> str:
    """README.md of a bundle on the Hub: how to use it, what was measured, and the hash of every file."""
    hub = require("huggingface_hub", extra="hub")
    manifest, model = bundle.manifest, bundle.manifest.model
    task = TASKS[manifest.task]
    metadata = hub.ModelCardData(
        library_name="vitdeploy",
        pipeline_tag=task.kind.hub_tag,
        tags=[task.kind.hub_tag, "vision", "vit", "onnx", "vitdeploy"],
        base_model=model.get("name") if model.get("source") == "hub" else None,
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        _BEGIN,
        f"# {repository.partition('/')[2]}",
        f"A vitdeploy bundle of an {task.kind.noun} ({task.title}; {task.kind.numbers}: {manifest.width}). Its graphs "
        f"take raw uint8 images: the preprocessing is inside.{_threshold(manifest.threshold)}",
        f"```python\nimport vitdeploy\n\nwith vitdeploy.load({repository!r}) as model:\n"
        f'    print(model.{task.kind.method}("image.jpg"))\n```',
        f"Classes: {_classes(manifest.labels)}" if manifest.embedding is None else f"Vectors: {manifest.embedding}",
        "## Measured",
        _measured(bundle),
        "## Files",
        _hashes(bundle),
        _END,
    ]
    return "\n\n".join(parts) + "\n"


def _classes(names: Sequence[str]) -> str:
    labels = [escape(on_one_line(label), quote=False) for label in names]
    more = f" and {len(labels) - _CLASSES_SHOWN} more" if len(labels) > _CLASSES_SHOWN else ""
    return ", ".join(labels[:_CLASSES_SHOWN]) + more


def _threshold(threshold: float | None) -> str:
    return "" if threshold is None else f" A label counts from a score of {threshold:.4g}."


def _measured(bundle: Bundle) -> str:
    artifact = last_report(bundle)
    if artifact is None:
        return "Not yet: `vitdeploy bench` measures latency and accuracy of every form."
    return markdown(BenchReport.read(bundle.file(artifact))).strip()


def _hashes(bundle: Bundle) -> str:
    rows = [table_row("File", "Kind", "Precision", "For", "Bytes", "SHA-256"), table_row(*["---"] * 6)]
    rows += [
        table_row(
            f"`{a.path}`", a.kind, a.precision or "", a.target, f"{a.size_bytes:,}", f"`{a.sha256}`"
        )
        for a in bundle.manifest.artifacts
    ]  # fmt: skip
    return "\n".join(rows)


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    """What the Hub refuses inside the block becomes an error of ours."""
    problems = require("huggingface_hub.errors", extra="hub")
    try:
        yield
    except problems.HFValidationError as error:
        raise InputError(f"{repository!r} is not a repository on the Hub", hint="write OWNER/NAME") from error
    except problems.RevisionNotFoundError as error:
        raise BundleError(
            f"{repository} has no such branch", hint="make it on the Hub first, or leave --revision out"
        ) from error
    except (problems.HfHubHTTPError, problems.LocalTokenNotFoundError) as error:
        raise BundleError(
            f"the Hub refused the push to {repository}: {first_line(error)}",
            hint="run `hf auth login` with a token that may write there",
        ) from error
    except Exception as error:
        if not is_transport(error):
            raise
        raise BundleError(
            f"the connection to the Hub broke: {on_one_line(str(error))}",
            hint="push again: what was uploaded already is not sent twice",
        ) from error
