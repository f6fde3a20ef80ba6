"""A bundle from a stranger: reading writes nothing, nothing outside it is touched, and what is wrong is said."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.files import recorded_writes
from tests.tools.fuzz import rounds
from tests.tools.killed import KILLED, in_a_child, kill_at
from tests.tools.mutation import mutate
from tests.tools.plain_bundle import MANIFEST, make, model_of, replace_model
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.core.errors import BundleError, OutputExistsError, VitdeployError


def tree(folder: Path) -> dict[str, Any]:
    """Everything below a folder, with links as links and the content of files."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.stat().st_mode
        for path in sorted(folder.rglob("*"))
    }


def rewrite(bundle: Path, name: str = "manifest.json", **changes: Any) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / name).write_text(json.dumps({**data, **changes}))


def entry(path: str, content: bytes) -> dict[str, Any]:
    from hashlib import sha256

    return Artifact(path, "bench", sha256(content).hexdigest(), len(content)).to_json()


def staged(bundle: Path, name: str, content: bytes, **changes: Any) -> None:
    """An unfinished commit of one more file, as a killed command leaves it."""
    file = bundle / ".staging" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    data = json.loads((bundle / "manifest.json").read_text())
    rewrite(bundle, "manifest.json.next", artifacts=[*data["artifacts"], {**entry(name, content), **changes}])


def link_folder(bundle: Path, victim: Path) -> None:
    (bundle / "engines").symlink_to("../victim")
    staged(bundle, "engines/authorized_keys", b"ATTACKER")


def link_staging(bundle: Path, victim: Path) -> None:
    (bundle / ".staging").symlink_to("../victim")
    rewrite(bundle, "manifest.json.next", artifacts=[entry("authorized_keys", b"original")])


def link_lock(bundle: Path, victim: Path) -> None:
    (bundle / ".lock").unlink(missing_ok=True)
    (bundle / ".lock").symlink_to("../victim/created")
    staged(bundle, "x", b"x")


def link_next(bundle: Path, victim: Path) -> None:
    (bundle / "manifest.json.next").symlink_to("../victim/authorized_keys")


def link_previous(bundle: Path, victim: Path) -> None:
    (bundle / ".previous").symlink_to("../victim")
    staged(bundle, "authorized_keys", b"x", sha256="0" * 64)


def link_model(bundle: Path, victim: Path) -> None:
    shutil.move(bundle / "model.onnx", victim / "model.onnx")
    (bundle / "model.onnx").symlink_to("../victim/model.onnx")


def link_manifest(bundle: Path, victim: Path) -> None:
    shutil.move(bundle / "manifest.json", victim / "manifest.json")
    (bundle / "manifest.json").symlink_to("../victim/manifest.json")


def link_bench(bundle: Path, victim: Path) -> None:
    (bundle / "bench").symlink_to("../victim")


def pipe(name: str) -> Callable[[Path, Path], None]:
    def put(bundle: Path, victim: Path) -> None:
        (bundle / name).unlink(missing_ok=True)
        os.mkfifo(bundle / name)

    return put


LINKS = [
    *(link_folder, link_staging, link_lock, link_next, link_previous, link_model, link_manifest, link_bench),
    *map(pipe, (".lock", ".staging", "manifest.json.next", "engines")),
]


@pytest.mark.parametrize("attack", LINKS, ids=lambda attack: attack.__name__)
def test_a_bundle_with_links_or_pipes_is_read_and_never_written(
    attack: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "b")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "authorized_keys").write_bytes(b"original")
    attack(tmp_path / "b", victim)
    before = tree(tmp_path)
    assert model_of(tmp_path / "b") == b"one"
    bundle = Bundle.open(tmp_path / "b")
    for change in (bundle.check_changeable, lambda: replace_model(bundle, b"two")):
        with pytest.raises(BundleError, match="can only be read: .* is (a link|neither a file)") as caught:
            change()
        assert "cp -rL" in str(caught.value.hint)
    assert tree(tmp_path) == before


def test_a_snapshot_of_the_hubs_cache_and_a_mounted_volume_are_read(tmp_path: Path) -> None:
    made = make(tmp_path / "plain")
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for number, name in enumerate(("manifest.json", "model.onnx")):
        shutil.copy(made.path / name, tmp_path / f"blob{number}")
        (cache / name).symlink_to(f"../blob{number}")
    assert model_of(cache) == b"one"
    volume = tmp_path / "volume"
    volume.mkdir()
    shutil.copytree(made.path, volume / "..2026")
    (volume / "..data").symlink_to("..2026")
    for name in ("manifest.json", "model.onnx"):
        (volume / name).symlink_to(f"..data/{name}")
    assert model_of(volume) == b"one"
    (volume / "..2026" / "model.onnx").write_bytes(b"0ne")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        model_of(volume)


def test_the_folder_itself_may_be_named_by_a_link(tmp_path: Path) -> None:
    make(tmp_path / "b")
    (tmp_path / "current").symlink_to("b")
    replace_model(Bundle.open(tmp_path / "current"), b"two")
    assert model_of(tmp_path / "b") == b"two" and (tmp_path / "current").is_symlink()


def test_opening_leaves_an_unfinished_commit_and_the_next_change_completes_it(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    staged(bundle.path, "bench/report.json", b"report")
    before = tree(bundle.path)
    assert [a.path for a in Bundle.open(bundle.path).manifest.artifacts] == ["model.onnx"]
    assert tree(bundle.path) == before
    replace_model(bundle, b"two")
    assert (bundle.path / "bench" / "report.json").read_bytes() == b"report"
    assert [a.path for a in bundle.reopen().manifest.artifacts] == ["model.onnx", "bench/report.json"]
    assert {path.name for path in bundle.path.iterdir()} == {"manifest.json", "model.onnx", "bench", ".lock"}


@pytest.mark.parametrize("wrong", ["hash", "size", "manifest", "folder", "newer"])
def test_a_commit_that_does_not_fit_is_undone(wrong: str, tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    staged(
        bundle.path,
        "model.onnx.data",
        b"forged",
        **{"hash": {"sha256": "0" * 64}, "size": {"size_bytes": 1}}.get(wrong, {}),
    )
    if wrong == "manifest":
        (bundle.path / "manifest.json.next").write_text("{")
    elif wrong == "newer":
        rewrite(bundle.path, "manifest.json.next", schema_version=99)
    elif wrong == "folder":
        (bundle.path / "manifest.json.next").unlink()
        (bundle.path / "manifest.json.next").mkdir()
    replace_model(bundle, b"two")
    assert model_of(bundle.path) == b"two"
    assert {path.name for path in bundle.path.iterdir()} == {"manifest.json", "model.onnx", ".lock"}


def test_a_folder_where_a_file_shall_be_is_refused_and_nothing_lost(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    (bundle.path / "model.fp16.onnx").mkdir()
    with pytest.raises(BundleError, match="is a folder"), bundle.edit() as editor:
        editor.path_for("model.fp16.onnx").write_bytes(b"x")
        editor.add("model.fp16.onnx", kind="onnx")
    assert model_of(bundle.path) == b"one"


def test_a_bundle_that_may_not_be_written_to_says_so_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make(tmp_path / "b")
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode == os.R_OK and real(path, mode)
    )  # a mount that is read-only
    with pytest.raises(BundleError, match="can only be read: .* may not be written to"):
        bundle.check_changeable()
    assert model_of(bundle.path) == b"one"


def test_a_reader_finds_one_whole_bundle_whenever_a_change_was_killed(tmp_path: Path) -> None:
    """Two files are replaced and one is added, killed before the first change of the disk, the second, and so on."""

    def change() -> None:
        kill_at(step)
        with Bundle.open(bundle.path).edit() as editor:
            for name in (*names, "new"):
                editor.path_for(name).write_bytes(b"two")
                editor.add(name, kind="onnx")

    names = ("model.onnx", "bench/report.json")
    old, new = dict.fromkeys(names, b"one"), dict.fromkeys((*names, "new"), b"two")
    seen: list[bool] = []
    ended = KILLED
    while ended == KILLED:
        step = len(seen)
        bundle = make(tmp_path / str(step))
        with bundle.edit() as editor:
            editor.path_for("bench/report.json").write_bytes(b"one")
            editor.add("bench/report.json", kind="onnx")
        ended = in_a_child(change)
        before = tree(bundle.path)
        found = Bundle.open(bundle.path)
        found.verify()
        contents = {artifact.path: found.file(artifact).read_bytes() for artifact in found.manifest.artifacts}
        assert contents in (old, new), step
        assert all(found.state(artifact) == "ok" for artifact in found.manifest.artifacts)
        assert tree(bundle.path) == before
        seen.append(contents == new)
        with found.edit():
            pass
        after = Bundle.open(bundle.path)
        assert {after.file(a).read_bytes() for a in after.manifest.artifacts} in ({b"one"}, {b"two"})
        assert not {".staging", ".previous", "manifest.json.next"} & {path.name for path in bundle.path.iterdir()}
        replace_model(after, b"three")
        assert model_of(bundle.path) == b"three"
        assert {path.name for path in bundle.path.iterdir()} <= {"manifest.json", ".lock", "model.onnx", "bench", "new"}
    assert ended == 0 and seen == sorted(seen) and seen.count(False) > 15 and seen.count(True) > 3


@pytest.mark.fuzz
def test_a_bundle_is_whole_though_its_changes_and_what_mends_them_are_killed(tmp_path: Path) -> None:
    bundle, draw = make(tmp_path / "b"), random.Random(0)
    names = ("model.onnx", "bench/report.json", "engines/a/b", "new")
    possible = [{"model.onnx": b"one"}]

    def content() -> dict[str, bytes]:
        found = Bundle.open(bundle.path)
        found.verify()
        return {artifact.path: found.file(artifact).read_bytes() for artifact in found.manifest.artifacts}

    def change(files: dict[str, bytes], step: int) -> None:
        kill_at(step)
        with Bundle.open(bundle.path).edit() as editor:
            for name, data in files.items():
                editor.path_for(name).write_bytes(data)
                editor.add(name, kind="onnx")

    ends = set()
    for number in range(rounds(15)):
        files = {name: f"{number} {name}".encode() for name in names if draw.random() < 0.6}
        ends.add(in_a_child(lambda files=files: change(files, draw.randrange(60))))
        with_it = [{**before, **files} for before in possible]
        found = content()
        assert found in possible + with_it
        # what was promised and not seen yet may come with the next change
        possible = [found] if found in with_it else possible + with_it
        if draw.random() < 0.3:
            with Bundle.open(bundle.path).edit():
                pass
            assert content() in possible
            assert not {".staging", ".previous", "manifest.json.next"} & {path.name for path in bundle.path.iterdir()}
            possible = [content()]
    assert ends <= {0, KILLED} and KILLED in ends


def test_a_command_with_results_waits_for_another_that_writes(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    context = multiprocessing.get_context("fork")
    writing, go_on = context.Event(), context.Event()

    def write() -> None:
        with Bundle.open(bundle.path).edit() as editor:
            writing.set()
            go_on.wait(60)
            editor.path_for("a").write_bytes(b"a")
            editor.add("a", kind="onnx")

    other = context.Process(target=write)
    other.start()
    assert writing.wait(60)
    with pytest.raises(BundleError, match="another command is writing"), bundle.edit():
        pass
    with (
        pytest.raises(BundleError, match="another command is writing"),
        Bundle.create(bundle.path, MANIFEST, overwrite=True),
    ):
        pass
    threading.Timer(0.3, go_on.set).start()
    with bundle.edit(patient=True) as editor:
        editor.path_for("b").write_bytes(b"b")
        editor.add("b", kind="onnx")
    other.join(60)
    assert [artifact.path for artifact in bundle.reopen().manifest.artifacts] == ["model.onnx", "a", "b"]


def not_ours(folder: Path, kind: str) -> None:
    if kind == "other manifest":
        (folder / "manifest.json").write_text('{"manifest_version": 3, "name": "My extension"}')
    elif kind == "empty manifest":
        (folder / "manifest.json").write_text("{}")
    elif kind == "other file":
        (folder / "photos").mkdir()
        (folder / "photos" / "holiday.jpg").write_text("x")
    elif kind == "link":
        (folder / "photos").symlink_to("..")
    elif kind == "newer":
        rewrite(folder, schema_version=99)


@pytest.mark.parametrize("kind", ["other manifest", "empty manifest", "other file", "link", "newer"])
def test_overwrite_replaces_only_a_bundle_that_holds_nothing_else(kind: str, tmp_path: Path) -> None:
    make(tmp_path / "b")
    not_ours(tmp_path / "b", kind)
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError, match="not a bundle, or holds other files"):
        Bundle.check_output(tmp_path / "b", overwrite=True)
    with pytest.raises(OutputExistsError), Bundle.create(tmp_path / "b", MANIFEST, overwrite=True):
        pass
    assert tree(tmp_path) == before


def test_overwrite_replaces_a_bundle_with_the_traces_of_its_changes(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines" / "tensorrt-fp16.log").write_text("built")
    staged(bundle.path, "new", b"x")
    with Bundle.create(tmp_path / "b", MANIFEST, overwrite=True) as editor:
        editor.path_for("model.onnx").write_bytes(b"two")
        editor.add("model.onnx", kind="onnx")
    assert model_of(tmp_path / "b") == b"two"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema_version": True}, "schema_version is True"),
        ({"schema_version": -1}, "schema_version is -1"),
        ({"schema_version": 0}, "schema_version is 0"),
        ({"schema_version": 1.0}, "schema_version is 1.0"),
        ({"labels": "abc"}, "labels is 'abc', not a list"),
        ({"labels": [1, 2]}, r"labels\[0\] is 1, not text"),
        ({"model": []}, r"model is \[\], not an object"),
        ({"artifacts": [entry("a", b""), entry("a", b"")]}, "a is listed twice"),
        ({"artifacts": [entry("a", b""), entry("a/b", b"")]}, "a/b lies below another"),
        ({"artifacts": [entry("manifest.json", b"")]}, "can't be the path of an artifact"),
        ({"artifacts": [entry(".lock", b"")]}, "can't be the path"),
        ({"artifacts": [entry("a//b", b"")]}, "can't be the path"),
        ({"artifacts": [entry("a\0b", b"")]}, "leaves the bundle"),
        ({"artifacts": [{**entry("a", b""), "size_bytes": -1}]}, "size of a is -1"),
        ({"artifacts": [{**entry("a", b""), "size_bytes": True}]}, "size_bytes is True"),
        ({"artifacts": [{**entry("a", b""), "sha256": "../x"}]}, "sha256 of a"),
        ({"artifacts": [{**entry("a", b""), "built_with": None}]}, "built_with is None"),
    ],
)
def test_what_a_manifest_may_not_say_is_named(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    make(tmp_path / "b")
    rewrite(tmp_path / "b", **change)
    with pytest.raises(BundleError, match=why):
        Bundle.open(tmp_path / "b")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with all that a manifest can hold."""
    from vitdeploy.core.specs import Choice

    bundle = Bundle.open(write_small_bundle(tmp_path_factory.mktemp("full") / "b"))
    with bundle.edit() as editor:
        for name, kind, precision in (("model.bf16.onnx", "onnx", "bf16"), ("calibration.json", "calibration", None)):
            editor.path_for(name).write_bytes(b"{}")
            editor.add(
                name,
                kind=kind,
                precision=precision,
                built_from="0" * 64,
                built_with={
                    "check": {"name": "logits", "passed": True, "difference": 0.1, "tolerance": 1.0},
                    "recipe": {"dataset": "digits"},
                    "images": {"name": "digits", "count": 3},
                    "calibration_sha256": "1" * 64,
                    "versions": {"onnx": "1"},
                },
            )
        editor.update(
            choice=Choice("int8", "openvino", "fast", "bench/report.json", {"cpu": "A", "gpu": ["B"]}, 1.0, "0" * 64),
            provenance={"vitdeploy": "0", "checks": [], "passes": [{"name": "tidy"}]},
        )
    return bundle.path


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(4))
def test_mutated_manifests_are_read_or_refused_with_an_error_of_ours(seed: int, full: Path, tmp_path: Path) -> None:
    from vitdeploy.cli.app import app
    from vitdeploy.runtime import load

    draw = random.Random(seed)
    shutil.copytree(full, tmp_path / "b")
    original = json.loads((full / "manifest.json").read_text())
    refused = 0
    for _ in range(rounds(100)):
        data = copy.deepcopy(original)
        for _ in range(draw.randint(1, 3)):
            mutate(data, draw)
        (tmp_path / "b" / "manifest.json").write_text(json.dumps(data))
        for use in (
            lambda: Bundle.open(tmp_path / "b").out_of_date(),
            lambda: app.main(["inspect", str(tmp_path / "b")], standalone_mode=False),
            lambda: app.main(["inspect", "--json", str(tmp_path / "b" / "model.bf16.onnx")], standalone_mode=False),
            lambda: load(tmp_path / "b", threads=1).__enter__().predict(np.zeros((8, 8, 3), np.uint8)),
        ):
            try:
                use()
            except VitdeployError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{json.dumps(data)}") from error
    assert refused > 0


def test_what_is_undone_is_on_the_disk_before_the_change_that_failed_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second power cut finds the old file in its place, or still where it was kept."""
    bundle = make(tmp_path / "b")
    staged(bundle.path, "model.onnx.data", b"forged", sha256="0" * 64)
    (bundle.path / ".previous").mkdir(exist_ok=True)
    (bundle.path / "model.onnx").rename(bundle.path / ".previous" / "model.onnx")
    (bundle.path / "model.onnx").write_bytes(b"half")
    writes = recorded_writes(tmp_path, monkeypatch)
    with bundle.edit():
        assert model_of(bundle.path) == b"one"
        assert writes.log == [("rename", "model.onnx"), ("sync", "b")]
