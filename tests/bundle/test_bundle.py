"""A bundle is read as it was written, and refuses what is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.files import recorded_writes, snapshot
from tests.tools.killed import in_a_child
from tests.tools.plain_bundle import MANIFEST, make, model_of, replace_model
from tests.tools.small_bundle import write_small_bundle
from vitdeploy.bundle import SCHEMA_VERSION, Artifact, Bundle, Manifest
from vitdeploy.bundle.migrations import from_json
from vitdeploy.core.errors import BundleError, OutputExistsError
from vitdeploy.core.specs import Choice, PreprocessSpec, ResizeSpec


def test_what_was_written_is_read(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    assert bundle.manifest == from_json(json.loads((tmp_path / "b" / "manifest.json").read_text()))
    assert bundle.manifest.labels == ("cat", "dog") and bundle.manifest.preprocess == MANIFEST.preprocess
    assert str(tmp_path) not in (tmp_path / "b" / "manifest.json").read_text()


def test_a_choice_is_kept_and_a_bundle_without_one_reads_fine(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    assert bundle.choice is None and "choice" not in json.loads((bundle.path / "manifest.json").read_text())
    choice = Choice("int8", "openvino", "the fastest", "bench/report.json", {"cpu": "A", "cores": 2}, 1.0, "0" * 64)
    with bundle.edit() as editor:
        editor.update(choice=choice)
    assert bundle.reopen().choice == choice
    replace_model(bundle, b"two")  # another change leaves it
    assert bundle.reopen().choice == choice
    data = json.loads((bundle.path / "manifest.json").read_text())
    del data["choice"]["why"]
    (bundle.path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="damaged"):
        bundle.reopen()


names = st.text(st.characters(categories=("L", "N"), max_codepoint=0x2FF), min_size=1, max_size=8)
artifacts = st.builds(
    Artifact,
    path=names,
    kind=st.sampled_from(["onnx", "engine", "calibration", "bench"]),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size_bytes=st.integers(0, 2**40),
    precision=st.sampled_from([None, "fp32", "int8"]),
    built_with=st.dictionaries(names, st.integers() | names, max_size=3),
)
choices = st.builds(
    Choice,
    precision=st.sampled_from(["fp32", "int8"]),
    backend=names,
    why=names,
    report=st.none() | names,
    machine=st.dictionaries(names, names | st.integers(), max_size=3),
    max_drop=st.none() | st.floats(0, 5),
    sha256=st.none() | names,
)
manifests = st.builds(
    Manifest,
    choice=st.none() | choices,
    model=st.dictionaries(names, names, max_size=3),
    labels=st.lists(names, max_size=5).map(tuple),
    preprocess=st.builds(
        PreprocessSpec,
        resize=st.none()
        | st.builds(ResizeSpec, st.sampled_from(["nearest", "lanczos"]), shortest_edge=st.integers(1, 999)),
        crop=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
        rescale=st.none() | st.floats(1e-4, 2),
        mean=st.none() | st.tuples(*[st.floats(-1, 1)] * 3),
        std=st.none() | st.tuples(*[st.floats(0.1, 1)] * 3),
    ),
    inputs=st.just(MANIFEST.inputs),
    outputs=st.just(MANIFEST.outputs),
    artifacts=st.lists(artifacts, max_size=3, unique_by=lambda artifact: artifact.path).map(tuple),
)


@given(manifests)
def test_every_manifest_survives_json(manifest: Manifest) -> None:
    assert from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_no_bundle_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at") as caught:
        Bundle.open(tmp_path / "none")
    assert "vitdeploy export" in str(caught.value.hint)
    with pytest.raises(BundleError, match="is not a bundle: it has no manifest.json"):
        Bundle.open(tmp_path)


def test_a_name_that_is_mistyped_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "vit-small")
    (tmp_path / "vit-large").mkdir()  # no bundle
    for name, hint in (("vit-smal", "did you mean"), ("other", "vitdeploy export MODEL --output")):
        with pytest.raises(BundleError, match="there is no bundle at") as caught:
            Bundle.open(tmp_path / name)
        assert hint in str(caught.value.hint)


def test_a_newer_schema_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make(tmp_path / "b")
    file = tmp_path / "b" / "manifest.json"
    file.write_text(
        file.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION + 1}')
    )
    with pytest.raises(BundleError, match=f"newer vitdeploy: its schema is {SCHEMA_VERSION + 1}") as caught:
        Bundle.open(tmp_path / "b")
    assert "newer version of vitdeploy" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema_version": "1"}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "model": 3}',
        "\xff",
    ],
)
def test_a_damaged_manifest_is_an_error(text: str, tmp_path: Path) -> None:
    make(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "..\\b", ""])
def test_a_manifest_cannot_point_outside(path: str, tmp_path: Path) -> None:
    make(tmp_path / "b")
    file = tmp_path / "b" / "manifest.json"
    data = json.loads(file.read_text())
    data["artifacts"][0]["path"] = path
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(tmp_path / "b")


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    artifact = bundle.manifest.artifacts[0]
    (tmp_path / "b" / "model.onnx").write_bytes(b"0ne")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        bundle.file(artifact)
    (tmp_path / "b" / "model.onnx").unlink()
    with pytest.raises(BundleError, match="model.onnx is missing"):
        bundle.verify()


def test_create_refuses_to_replace(tmp_path: Path) -> None:
    make(tmp_path / "b")
    with pytest.raises(OutputExistsError), Bundle.create(tmp_path / "b", MANIFEST):
        pass
    assert model_of(tmp_path / "b") == b"one"
    with Bundle.create(tmp_path / "b", MANIFEST, overwrite=True) as editor:
        editor.path_for("model.onnx").write_bytes(b"two")
        editor.add("model.onnx", kind="onnx")
    assert model_of(tmp_path / "b") == b"two"


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_failed_change_leaves_the_bundle(tmp_path: Path, stop: type[BaseException]) -> None:
    bundle = make(tmp_path / "b")
    with pytest.raises(stop), bundle.edit() as editor:
        editor.path_for("model.onnx").write_bytes(b"half")
        editor.add("model.onnx", kind="onnx")
        raise stop
    assert model_of(tmp_path / "b") == b"one"
    assert not list((tmp_path / "b").rglob("*.staging*"))


def test_changes_add_to_each_other(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    for name in ("model.fp16.onnx", "engines/x.engine"):
        with bundle.edit() as editor:  # the object is older than the bundle from the second round on
            editor.path_for(name).write_bytes(name.encode())
            editor.add(name, kind="onnx", precision=name)
    again = Bundle.open(tmp_path / "b")
    again.verify()
    assert [artifact.path for artifact in again.manifest.artifacts] == [
        "model.onnx",
        "model.fp16.onnx",
        "engines/x.engine",
    ]


def refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="another command is writing"), bundle.edit():
        pass


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    with bundle.edit() as editor:
        editor.path_for("a").write_bytes(b"a")
        assert in_a_child(lambda: refused(bundle)) == 0
        editor.add("a", kind="onnx")
    assert len(Bundle.open(tmp_path / "b").manifest.artifacts) == 2


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_a_pointer_of_git_lfs_is_called_one(name: str, tiny_bundle_copy: Path) -> None:
    (tiny_bundle_copy / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 343268717\n"
    )
    with pytest.raises(BundleError, match=f"{name} is a Git LFS pointer") as error:
        Bundle.open(tiny_bundle_copy).verify()
    assert "git lfs pull" in str(error.value.hint)


def test_a_manifest_on_the_disk_names_files_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut too: each file, then the folder that names it, then the manifest."""
    writes = recorded_writes(tmp_path, monkeypatch)
    bundle = make(tmp_path / "b")
    assert not writes.too_early and not writes.pending
    with bundle.edit() as editor:
        for name in ("model.onnx", "engines/deep/a.engine"):  # one takes another's place, one comes with its folders
            editor.path_for(name).write_bytes(b"two")
            editor.add(name, kind="onnx")
    assert not writes.too_early
    assert not {"b", "b/engines", "b/engines/deep"} & writes.pending_at["manifest.json"]
    assert "b" not in writes.pending


@pytest.mark.parametrize("missing", [os.W_OK, os.X_OK])
def test_a_bundle_in_a_folder_of_others_is_only_read(
    missing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are made in a folder by whom may write to it and enter it; root, as tests may run, is let everything."""
    bundle = make(tmp_path / "b")
    before = snapshot(bundle.path)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & missing)
    with pytest.raises(BundleError, match="b can only be read: .*b may not be written to") as caught, bundle.edit():
        pytest.fail("it is being changed")
    assert f"cp -rL {bundle.path}" in str(caught.value.hint)
    assert snapshot(bundle.path) == before and model_of(bundle.path) == b"one"


@pytest.mark.parametrize("request_", [{}, {"profiles": []}, {"compute_capabilities": ["8.6"]}], ids=str)
def test_an_engine_of_which_little_was_wished_is_listed(request_: dict[str, list[str]], tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    with bundle.edit() as editor:
        editor.path_for("engines/a.engine").write_bytes(b"x")
        editor.add("engines/a.engine", kind="engine", precision="fp16", built_with={"request": request_})
    engine = bundle.reopen().find(kind="engine")
    assert engine is not None and engine.built_with["request"] == request_
