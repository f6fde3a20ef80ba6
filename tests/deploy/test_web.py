"""The site that `deploy web` writes, without a browser; tests in Node and Chromium are beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.small_bundle import write_small_bundle
from tests.tools.web import FOLDER, served, stand_in_package
from vitdeploy import BundleError, DependencyError, InputError, OutputExistsError
from vitdeploy.backends.onnxruntime.runner import OnnxRuntimeRunner
from vitdeploy.bundle import Bundle
from vitdeploy.bundle.selftest import Selftest
from vitdeploy.core.storage import sha256
from vitdeploy.deploy.web import serve
from vitdeploy.deploy.web.onnxruntime_web import FILES, NAME, TESTED, find
from vitdeploy.deploy.web.site import web

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_package(tmp_path_factory.mktemp("npm"))


def facts(site: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((site / "site.json").read_text())
    return found


def logits(graph: Path, images: list[np.ndarray]) -> list[bytes]:
    with OnnxRuntimeRunner(graph, threads=1) as runner:
        return [runner.infer({"image": image[np.newaxis]})["logits"].tobytes() for image in images]


def test_a_site_has_both_forms_the_labels_and_the_selftest(tiny_bundle: Path, package: Path, tmp_path: Path) -> None:
    written = web(tiny_bundle, tmp_path / "site", onnxruntime_web=package)
    bundle, site = Bundle.open(tiny_bundle), facts(tmp_path / "site")
    assert written.forms == ("model.int8-cpu.onnx", "model.onnx") and written.onnxruntime_web == TESTED
    assert (
        site["labels"] == list(bundle.manifest.labels) and site["activation"] == "softmax" and site["threshold"] is None
    )
    int8, fp32 = site["forms"]
    assert (int8["backends"], fp32["backends"]) == (["wasm"], ["webgpu", "wasm"])
    assert (tmp_path / "site" / int8["file"]).read_bytes() == (tiny_bundle / "model.int8-cpu.onnx").read_bytes()
    for form in site["forms"]:
        assert form["sha256"] == sha256(tmp_path / "site" / form["file"])
        assert form["made_from"] == sha256(tiny_bundle / form["file"]) and form["size"] == [None, None]
    on_disk = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.*")}
    assert set(written.files) == on_disk == {*site["files"], "site.json"}
    assert {f"ort/{name}" for name in FILES} <= on_disk


def test_the_selftest_is_the_bundles(tiny_bundle: Path, package: Path, tmp_path: Path) -> None:
    web(tiny_bundle, tmp_path / "site", onnxruntime_web=package)
    if Bundle.open(tiny_bundle).find(kind="selftest") is None:
        pytest.skip("the bundle that there is without PyTorch has no self-test")
    site, selftest = facts(tmp_path / "site"), Selftest.of(Bundle.open(tiny_bundle))
    text = (tmp_path / "site" / "selftest.json").read_bytes()
    assert site["selftest"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert site["selftest"]["made_from"] == sha256(tiny_bundle / "selftest.npz")
    made = json.loads(text)
    assert [(image["height"], image["width"]) for image in made["images"]] == [i.shape[:2] for i in selftest.images]
    for entry in made["logits"]:
        size = None if entry["size"] is None else tuple(entry["size"])
        assert np.array_equal(np.array(entry["values"], np.float32), selftest.logits[size])
    for form in site["forms"]:
        assert np.array_equal(np.array(form["bounds"], np.float32), selftest.bounds[form["file"]])


def test_fp32_answers_bit_for_bit_as_in_the_bundle(tiny_bundle: Path, package: Path, tmp_path: Path) -> None:
    web(tiny_bundle, tmp_path / "site", onnxruntime_web=package, precision="fp32")
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*size, 3), np.uint8) for size in ((32, 32), (47, 31), (200, 130), (480, 640))]
    assert logits(tmp_path / "site" / "model.onnx", images) == logits(tiny_bundle / "model.onnx", images)
    assert (tmp_path / "site" / "model.int8-cpu.onnx").exists() is False


@pytest.mark.parametrize(
    ("task", "stored", "threshold"),
    [("multi_label", 0.3, 0.3), ("multi_label", None, 0.5), ("binary", None, 0.5), ("regression", None, None)],
)
def test_several_labels_come_with_their_threshold(
    task: str, stored: float | None, threshold: float | None, package: Path, tmp_path: Path
) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", labels=("cat",) if task == "binary" else ("a", "b"), engine=False)
    manifest = {**json.loads((bundle / "manifest.json").read_text()), "task": task}
    (bundle / "manifest.json").write_text(json.dumps(manifest if stored is None else {**manifest, "threshold": stored}))
    web(bundle, tmp_path / "site", onnxruntime_web=package)
    assert facts(tmp_path / "site")["threshold"] == threshold


def test_text_of_a_bundle_is_data_and_nothing_else(tiny_bundle_copy: Path, package: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny_bundle_copy / "manifest.json").read_text())
    manifest["labels"][0] = manifest["model"]["name"] = EVIL
    (tiny_bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    web(tiny_bundle_copy, tmp_path / "site", onnxruntime_web=package)
    for path in (tmp_path / "site").glob("*.*"):
        if path.suffix in (".html", ".js", ".css", ".py"):
            assert EVIL not in path.read_text() and path.read_bytes() == original(path.name), path
    assert facts(tmp_path / "site")["labels"][0] == EVIL


def original(name: str) -> bytes:
    folder = Path(serve.__file__).parent
    return (folder / name if name == "serve.py" else folder / "page" / name).read_bytes()


def test_the_page_forbids_what_comes_from_elsewhere_and_scripts_in_it() -> None:
    class Reader(HTMLParser):
        found: list[tuple[str, dict[str, str | None]]]

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, dict(attributes)))

    reader = Reader()
    reader.found = []
    reader.feed(original("index.html").decode())
    policy = next(each["content"] for tag, each in reader.found if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
    assert "default-src 'none'" in policy and "http" not in policy
    assert [each for tag, each in reader.found if tag == "script"] == [{"type": "module", "src": "page.js"}]
    assert not [each for _, each in reader.found if any(name.startswith("on") or name == "style" for name in each)]
    for name in ("page.js", "vitdeploy.js", "pixels.js", "scores.js", "selftest.js"):
        text = original(name).decode()
        assert "innerHTML" not in text and "document.write" not in text and "://" not in text, name


def test_a_bundle_without_a_selftest_gives_a_site_without_one(
    tiny_bundle_copy: Path, package: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    bundle = Bundle.open(tiny_bundle_copy)
    if bundle.find(kind="selftest") is not None:
        manifest = json.loads((tiny_bundle_copy / "manifest.json").read_text())
        manifest["artifacts"] = [file for file in manifest["artifacts"] if file["kind"] != "selftest"]
        (tiny_bundle_copy / "manifest.json").write_text(json.dumps(manifest))
        (tiny_bundle_copy / "selftest.npz").unlink()
    arguments = ("deploy", "web", tiny_bundle_copy, "--output", tmp_path / "site", "--onnxruntime-web", package)
    shown = cli(*arguments)
    assert shown.exit_code == 0 and "without a self-test" in shown.stdout and "serve.py" in shown.stdout
    assert facts(tmp_path / "site")["selftest"] is None
    assert {form["bounds"] is None for form in facts(tmp_path / "site")["forms"]} == {True}
    shown = cli(*arguments, "--overwrite", "--json")
    assert json.loads(shown.stdout)["selftest"] is False


def test_what_can_not_be_written_is_refused(tiny_bundle_copy: Path, package: Path, tmp_path: Path) -> None:
    output = tmp_path / "site"
    with pytest.raises(InputError, match="precision is 'fp16'"):
        web(tiny_bundle_copy, output, onnxruntime_web=package, precision="fp16")
    manifest = (tiny_bundle_copy / "manifest.json").read_text()
    artifacts = [a for a in json.loads(manifest)["artifacts"] if a["path"] != "model.int8-cpu.onnx"]
    (tiny_bundle_copy / "manifest.json").write_text(json.dumps({**json.loads(manifest), "artifacts": artifacts}))
    with pytest.raises(BundleError, match="no int8 form that a browser can run") as error:
        web(tiny_bundle_copy, output, onnxruntime_web=package, precision="int8")
    assert "build-engine" in str(error.value.hint)
    (tiny_bundle_copy / "manifest.json").write_text(json.dumps({**json.loads(manifest), "schema_version": 99}))
    with pytest.raises(BundleError, match="newer"):
        web(tiny_bundle_copy, output, onnxruntime_web=package)
    (tiny_bundle_copy / "manifest.json").write_text(manifest)
    (tiny_bundle_copy / "model.int8-cpu.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="is not the file"):
        web(tiny_bundle_copy, output, onnxruntime_web=package)
    assert not output.exists() and not list(tmp_path.glob(".site*"))


def test_a_bundle_that_is_its_own_output_is_refused(tiny_bundle_copy: Path, package: Path) -> None:
    for output in (tiny_bundle_copy, tiny_bundle_copy.parent, package):
        with pytest.raises(OutputExistsError, match="is, or holds, the input"):
            web(tiny_bundle_copy, output, onnxruntime_web=package, overwrite=True)
    Bundle.open(tiny_bundle_copy).verify()


def test_only_a_site_of_ours_is_replaced(tiny_bundle: Path, package: Path, tmp_path: Path) -> None:
    output = tmp_path / "site"
    web(tiny_bundle, output, onnxruntime_web=package)
    with pytest.raises(OutputExistsError, match="already exists"):
        web(tiny_bundle, output, onnxruntime_web=package)
    web(tiny_bundle, output, onnxruntime_web=package, precision="int8", overwrite=True)
    assert not (output / "model.onnx").exists()
    (output / "ort" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds other files too"):
        web(tiny_bundle, output, onnxruntime_web=package, overwrite=True)
    assert (output / "ort" / "notes.txt").read_text() == "mine"
    (output / "ort" / "notes.txt").unlink()
    aside = tmp_path / "aside"
    aside.mkdir()
    (aside / "photo.jpg").write_text("mine")
    (output / "pictures").symlink_to(aside)  # a link to a folder is not ours either, and not walked through
    with pytest.raises(OutputExistsError, match="holds other files too"):
        web(tiny_bundle, output, onnxruntime_web=package, overwrite=True)
    assert (aside / "photo.jpg").read_text() == "mine"


def test_a_link_as_output_stays_one_and_links_in_a_bundle_are_read(
    tiny_bundle: Path, package: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in tiny_bundle.rglob("*"):
        if path.is_file():
            (linked / path.relative_to(tiny_bundle)).parent.mkdir(exist_ok=True)
            (linked / path.relative_to(tiny_bundle)).symlink_to(path)
    (tmp_path / "real").mkdir()
    (tmp_path / "site").symlink_to(tmp_path / "real")
    web(linked, tmp_path / "site", onnxruntime_web=package)
    assert (tmp_path / "site").is_symlink() and (tmp_path / "real" / "index.html").is_file()
    assert not [path for path in (tmp_path / "real").rglob("*") if path.is_symlink()]


def test_onnxruntime_web_is_found_as_node_does(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    inner = package.parents[1] / "a" / "b"
    inner.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(inner)
    assert find() == find(package) == find(package.parents[1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DependencyError, match="no onnxruntime-web in node_modules") as missing:
        web(tiny_bundle, tmp_path / "site")
    assert f"npm install {NAME}@{TESTED}" in str(missing.value.hint)
    other = Path(shutil.copytree(package, tmp_path / "other"))
    (other / "package.json").write_text(json.dumps({"name": "onnxruntime-common", "version": "1"}))
    with pytest.raises(DependencyError, match="there is no onnxruntime-web in"):
        find(other)
    (other / "package.json").write_text("{")
    with pytest.raises(DependencyError, match="can't read"):
        find(other)
    shutil.copy(package / "package.json", other)
    (other / "dist" / "ort.wasm.min.mjs").unlink()
    with pytest.raises(DependencyError, match=r"has no dist/ort\.wasm\.min\.mjs"):
        web(tiny_bundle, tmp_path / "site", onnxruntime_web=other)
    assert not (tmp_path / "site").exists()


def test_the_version_that_is_tested_is_the_one_that_is_named() -> None:
    assert json.loads((FOLDER / "package.json").read_text())["dependencies"] == {NAME: TESTED}
    lock = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    assert lock[f"node_modules/{NAME}"]["version"] == TESTED
    assert all("integrity" in entry and "resolved" not in entry for name, entry in lock.items() if name)


def test_the_server_isolates_the_page_and_gives_its_folder_alone(
    tiny_bundle: Path, package: Path, tmp_path: Path
) -> None:
    web(tiny_bundle, tmp_path / "site", onnxruntime_web=package)
    (tmp_path / "secret.txt").write_text("secret")
    kinds = {"": "text/html", "vitdeploy.js": "text/javascript", f"ort/{FILES[1]}": "text/javascript"}
    kinds |= {f"ort/{FILES[2]}": "application/wasm", "site.json": "application/json"}
    with served(tmp_path / "site") as address:
        for path, kind in kinds.items():
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                assert answer.headers["Content-Type"].partition(";")[0] == kind, path
                for name, value in serve.HEADERS.items():
                    assert answer.headers[name] == value
        for path in ("ort/", "nothing", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(address + path, timeout=30)
            assert refused.value.code == 404, path
