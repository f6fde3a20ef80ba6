"""A bundle is read as it was written, refuses what is damaged, and survives being killed at any point of a change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.bundle import SCHEMA_VERSION, Artifact, Bundle, Manifest
from vitdeploy.errors import BundleError, OutputExistsError
from vitdeploy.specs import Choice, PreprocessSpec, ResizeSpec, TensorSpec

MANIFEST = Manifest(
    model={"name": "tiny", "parameters": 3},
    labels=("cat", "dog"),
    preprocess=PreprocessSpec(
        ResizeSpec("bicubic", height=8, width=8), None, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    ),
    inputs=(TensorSpec("image", "uint8", ("batch", "height", "width", 3)),),
    outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
)


def make(path: Path, content: bytes = b"one") -> Bundle:
    with Bundle.create(path, MANIFEST) as editor:
        editor.path_for("model.onnx").write_bytes(content)
        editor.add("model.onnx", kind="onnx", precision="fp32")
    return Bundle.open(path)


def replace_model(bundle: Bundle, content: bytes) -> None:
    with bundle.edit() as editor:
        editor.path_for("model.onnx").write_bytes(content)
        editor.add("model.onnx", kind="onnx", precision="fp32")


def model_of(path: Path) -> bytes:
    bundle = Bundle.open(path)
    bundle.verify()
    artifact = bundle.find(kind="onnx")
    assert artifact is not None
    return bundle.file(artifact).read_bytes()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    assert bundle.manifest == Manifest.from_json(json.loads((tmp_path / "b" / "manifest.json").read_text()))
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
    artifacts=st.lists(artifacts, max_size=3).map(tuple),
)


@given(manifests)
def test_every_manifest_survives_json(manifest: Manifest) -> None:
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_no_bundle_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at") as caught:
        Bundle.open(tmp_path / "none")
    assert "vitdeploy export" in str(caught.value.hint)
    with pytest.raises(BundleError, match="is no bundle: it has no manifest.json"):
        Bundle.open(tmp_path)


def test_a_newer_schema_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make(tmp_path / "b")
    file = tmp_path / "b" / "manifest.json"
    file.write_text(
        file.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION + 1}')
    )
    with pytest.raises(BundleError, match="newer vitdeploy: its schema is 2") as caught:
        Bundle.open(tmp_path / "b")
    assert "upgrade" in str(caught.value.hint)


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


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b")
    with bundle.edit() as editor:
        editor.path_for("a").write_bytes(b"a")
        code = f"from vitdeploy.bundle import Bundle\nwith Bundle.open({str(tmp_path / 'b')!r}).edit(): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode != 0 and "another command is writing" in other.stderr
        editor.add("a", kind="onnx")
    assert len(Bundle.open(tmp_path / "b").manifest.artifacts) == 2


KILLED = """
import os, sys
from pathlib import Path
import vitdeploy.bundle as b
from tests.test_bundle import replace_model
countdown = int(sys.argv[2])
def guard(real):
    def call(*args, **kwargs):
        global countdown
        if countdown == 0:
            os.kill(os.getpid(), 9)
        countdown -= 1
        return real(*args, **kwargs)
    return call
os.replace = guard(os.replace)
os.fsync = guard(os.fsync)
b.shutil.rmtree = guard(b.shutil.rmtree)
replace_model(b.Bundle.open(sys.argv[1]), b"two")
print("done")
"""


@pytest.mark.parametrize("step", range(16))
def test_a_killed_change_leaves_the_old_bundle_or_the_new_one(step: int, tmp_path: Path) -> None:
    make(tmp_path / "b")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "b"), str(step)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -9 or "done" in done.stdout, done.stderr
    content = model_of(tmp_path / "b")
    assert content == (b"two" if "done" in done.stdout else content) and content in (b"one", b"two")
    replace_model(Bundle.open(tmp_path / "b"), b"three")
    assert model_of(tmp_path / "b") == b"three"
    assert {path.name for path in (tmp_path / "b").iterdir()} <= {"manifest.json", "model.onnx", ".lock"}
