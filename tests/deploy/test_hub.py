"""A bundle goes to the Hub and comes from it: the real client, and a server of ours that speaks its protocol."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitdeploy
from tests.tools.any_line import lines_of, raised_at
from tests.tools.hub_server import Hub, hub_server
from tests.tools.small_bundle import write_small_bundle
from vitdeploy import BundleError, InputError, OutputExistsError, VitdeployError
from vitdeploy.bundle import Bundle
from vitdeploy.deploy import hub as pushing
from vitdeploy.deploy.hub import push
from vitdeploy.deploy.triton.repository import triton
from vitdeploy.runtime.remote import is_hub_name

pytest.importorskip("huggingface_hub")
NAME = "someone/tiny"
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub and an empty cache; the working folder holds nothing of that name."""
    from huggingface_hub import constants

    with hub_server() as server:
        cache = str(tmp_path / "cache")
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        settings = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": cache}
        for name, value in {**settings, "HF_HUB_OFFLINE": False}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        for name in [key for key in os.environ if key.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield server


def logits(path: Any, **options: Any) -> Any:
    with vitdeploy.load(path, "onnxruntime", "fp32", threads=1, **options) as classifier:
        return classifier.predict(IMAGE, top_k=10).top_k


def test_what_was_pushed_is_loaded_by_its_name_and_answers_the_same(
    hub: Hub, tiny_bundle: Path, cli: Callable[..., Any]
) -> None:
    pushed = push(tiny_bundle, NAME, private=True)
    assert pushed.commit == hub.commits[NAME][-1][0] and NAME in hub.private
    there = hub.commits[NAME][-1][1]
    files = {path.relative_to(tiny_bundle).as_posix(): path.read_bytes() for path in Bundle.open(tiny_bundle).files()}
    assert {name: there[name] for name in files} == files
    assert set(there) - set(files) == {".gitattributes", "README.md"}
    assert logits(NAME) == logits(tiny_bundle) == logits(NAME, revision=pushed.commit)
    shown = cli("inspect", NAME, "--json")
    assert shown.exit_code == 0 and json.loads(shown.stdout)["sound"]
    proven = cli("verify", NAME, "--precision", "fp32", "--backend", "onnxruntime", "--json")
    assert proven.exit_code == 0, proven.stderr
    assert json.loads(proven.stdout)["bundle"] == NAME.partition("/")[2]
    elsewhere = cli("bench", NAME, "--dataset", "digits")  # it writes, and the cache is read
    assert elsewhere.exit_code == 1 and f"hf download {NAME} --local-dir {NAME}" in elsewhere.stderr


def test_the_next_step_asks_what_the_bundle_answers(
    hub: Hub, tiny_bundle: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    pushed = cli("push", tiny_bundle, NAME)
    assert f"Next: vitdeploy predict {NAME} IMAGE\n" in pushed.stdout
    vectors = write_small_bundle(tmp_path / "vectors", embedding=True)
    pushed = cli("push", vectors, "someone/vectors")
    assert "Next: vitdeploy embed someone/vectors IMAGE --output vectors.parquet\n" in pushed.stdout, pushed.stderr


def test_triton_calls_a_model_as_the_hub_does(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    push(tiny_bundle, NAME)
    assert triton(NAME, tmp_path / "models").name == NAME.partition("/")[2]


def test_a_fetch_shows_our_progress_alone(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    """In a process of its own: the client's parts are loaded as they are used, its bars among them."""
    push(tiny_bundle, NAME)
    where = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    program = [sys.executable, "-m", "vitdeploy", "inspect", NAME]
    where["PYTHONPATH"] = str(Path(vitdeploy.__file__).parents[1])
    done = subprocess.run(program, env=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"Fetching {NAME} from the Hub" in done.stderr and "Fetching 1 files" not in done.stderr, done.stderr


def test_the_card_names_every_hash_and_no_path_of_this_machine(hub: Hub, tiny_bundle: Path) -> None:
    push(tiny_bundle, NAME)
    card = hub.commits[NAME][-1][1]["README.md"].decode()
    for artifact in Bundle.open(tiny_bundle).manifest.artifacts:
        assert artifact.sha256 in card
    assert "library_name: vitdeploy" in card and str(tiny_bundle.parent) not in card and "Not yet" in card


def test_without_a_connection_the_copy_in_the_cache_answers(
    hub: Hub, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tiny_bundle, NAME)
    before = logits(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert logits(NAME) == before and len(hub.requests) == asked
    with pytest.raises(BundleError, match="can't be"):
        vitdeploy.load("someone/else")


def test_an_interrupted_download_leaves_nothing_that_loads(
    hub: Hub, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tiny_bundle, NAME)
    hub.broken = {"model.fp16.onnx"}
    with pytest.raises(VitdeployError):
        vitdeploy.load(NAME)
    assert list((tmp_path / "cache").rglob("model*.onnx")) and not list((tmp_path / "cache").rglob("manifest.json"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match="can't be|not fetched to its end"):
        vitdeploy.load(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.broken = set()
    assert logits(NAME) == logits(tiny_bundle)


def test_a_file_that_was_changed_on_the_hub_is_not_loaded(hub: Hub, tiny_bundle: Path) -> None:
    push(tiny_bundle, NAME)
    files = dict(hub.commits[NAME][-1][1])
    graph = bytearray(files["model.onnx"])
    graph[len(graph) // 2] ^= 1
    hub.add(NAME, {**files, "model.onnx": bytes(graph)})
    with pytest.raises(BundleError, match="is not the file that the manifest describes"):
        vitdeploy.load(NAME, "onnxruntime", "fp32")


def test_a_second_push_replaces_the_first_and_leaves_what_is_not_the_bundles(
    hub: Hub, tiny_bundle: Path, tiny_bundle_copy: Path
) -> None:
    push(tiny_bundle, NAME)
    files = dict(hub.commits[NAME][-1][1])
    written = files["README.md"].replace(b"<!-- vitdeploy: begin -->", b"By hand.\n<!-- vitdeploy: begin -->")
    hub.add(NAME, {**files, "LICENSE": b"mine", "README.md": written})
    manifest = json.loads((tiny_bundle_copy / "manifest.json").read_text())
    manifest["artifacts"] = [file for file in manifest["artifacts"] if file["path"] != "model.fp16.onnx"]
    (tiny_bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    pushed = push(tiny_bundle_copy, NAME)
    there = hub.commits[NAME][-1][1]
    assert pushed.removed == ("model.fp16.onnx",) and "model.fp16.onnx" not in there and there["LICENSE"] == b"mine"
    card = there["README.md"].decode()
    assert "By hand." in card and "model.fp16.onnx" not in card
    assert logits(NAME) == logits(tiny_bundle_copy)


def test_a_card_of_somebody_else_stays(hub: Hub, tiny_bundle: Path) -> None:
    hub.add(NAME, {"README.md": b"my own"})
    push(tiny_bundle, NAME)
    assert hub.commits[NAME][-1][1]["README.md"] == b"my own"


def test_a_repository_of_something_else_is_left_alone(hub: Hub, tiny_bundle: Path, cli: Callable[..., Any]) -> None:
    hub.add(NAME, {"config.json": b"{}", "model.safetensors": b"0"})
    with pytest.raises(OutputExistsError, match="holds no bundle, but config.json, model.safetensors"):
        push(tiny_bundle, NAME)
    assert len(hub.commits[NAME]) == 1
    with pytest.raises(BundleError, match="is not a bundle: it has no manifest.json"):
        vitdeploy.load(NAME)
    assert not any("model.safetensors" in path for _, path in hub.requests)  # refused before anything large


def test_a_dry_run_uploads_nothing(hub: Hub, tiny_bundle: Path, cli: Callable[..., Any]) -> None:
    shown = cli("push", tiny_bundle, NAME, "--dry-run")
    assert shown.exit_code == 0 and "model.onnx" in shown.stdout and "would be uploaded" in shown.stdout
    assert not hub.commits
    shown = cli("push", tiny_bundle, NAME, "--json")
    assert json.loads(shown.stdout)["commit"] == hub.commits[NAME][-1][0]
    shown = cli("push", tiny_bundle, NAME)  # nothing changed: no empty commit
    assert shown.exit_code == 0 and "Next: vitdeploy predict" in shown.stdout


def test_what_is_refused(hub: Hub, tiny_bundle: Path, tiny_bundle_copy: Path) -> None:
    with pytest.raises(InputError, match="not a repository"):
        push(tiny_bundle, "tiny")
    with pytest.raises(InputError, match="not a repository"):
        push(tiny_bundle, "some one/ti:ny")
    hub.add(NAME, {})
    with pytest.raises(BundleError, match="no such branch"):
        push(tiny_bundle, NAME, revision="elsewhere")
    hub.read_only = True
    with pytest.raises(BundleError, match="refused the push") as error:
        push(tiny_bundle, "someone/new")
    assert "hf auth login" in str(error.value.hint)
    (tiny_bundle_copy / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="is not the file"):
        push(tiny_bundle_copy, NAME)
    with pytest.raises(InputError, match="is a local folder"):
        vitdeploy.load(tiny_bundle, revision="main")
    with pytest.raises(VitdeployError, match="no revision"):
        vitdeploy.load(NAME, revision="nothing")


def test_a_folder_here_comes_before_the_hub(hub: Hub, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, NAME)
    assert logits(NAME) == logits(tiny_bundle) and not hub.requests
    with pytest.raises(BundleError, match="there is no bundle at"):
        vitdeploy.load("someone/other")  # a folder `someone` is here, so a path is meant
    assert not hub.requests


def test_which_names_are_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("a/b")
    assert not any(map(is_hub_name, ("a", "./a/b", "a/b/c", "/a/b", "a/", "~/b", "..", "")))


def test_ctrl_c_at_any_line_of_a_push_leaves_the_bundle_from_before_or_the_new_one(hub: Hub, tiny_bundle: Path) -> None:
    def run() -> None:
        push(tiny_bundle, NAME)

    source, first = inspect.getsourcelines(pushing._push)
    own = range(first, first + len(source))
    lines = [line for line in lines_of(run, [pushing]) if line[1] in own]
    assert len(lines) > 10
    whole = set(hub.commits[NAME][-1][1])
    for line in lines:
        raised_at(line, run, [pushing], KeyboardInterrupt())
        assert all(set(files) in (whole, {".gitattributes"}) for _, files in hub.commits[NAME]), line
    run()
    assert logits(NAME) == logits(tiny_bundle)
