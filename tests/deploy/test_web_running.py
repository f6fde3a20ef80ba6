"""Sites of `deploy web` in Node and in Chromium, beside Python's ONNX Runtime; `make test-web` runs them."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.browser import Browser, find_chromium
from tests.tools.small_bundle import write_small_bundle
from tests.tools.web import encoded, onnxruntime_web, predict_in_node, served
from vitdeploy import load
from vitdeploy.data.images import decode
from vitdeploy.deploy.web.site import web

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(onnxruntime_web() is None, reason="no onnxruntime-web of npm: make test-web"),
    pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed"),
]
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
SIZES = ((32, 32), (24, 40), (47, 31), (200, 130), (1, 1), (480, 640))
COUNT = 300  # images of CIFAR-10
ISOLATED_THREADS = 2


def images_of(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[np.ndarray]:
    draw = np.random.default_rng(7)
    return [draw.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def site_of(bundle: Path, output: Path, **options: Any) -> Path:
    web(bundle, output, onnxruntime_web=onnxruntime_web(), **options)
    return output


def in_python(bundle: Path, images: list[Any], precision: str, top_k: int = 5) -> list[list[dict[str, Any]]]:
    with load(bundle, "onnxruntime", precision, device="cpu", threads=1) as classifier:
        found = classifier.predict(images, top_k)
    return [[score.to_json() for score in answer.top_k] for answer in found]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    """The answers of an image have the same classes in the same order, and scores as near as that."""
    assert [one["index"] for one in found] == [one["index"] for one in expected]
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        for kind in ("score", "value"):
            assert (one[kind] is None) == (other.get(kind) is None)
            assert one[kind] is None or abs(one[kind] - other[kind]) <= tolerance * max(1, abs(other[kind]))


@pytest.fixture(scope="module")
def tiny_site(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site_of(tiny_bundle, tmp_path_factory.mktemp("web") / "site")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with Browser(program, tmp_path_factory.mktemp("profile"), options=camera) as opened:
        yield opened


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_node_answers_as_python_does(precision: str, tiny_bundle: Path, tiny_site: Path) -> None:
    images = images_of()
    made = predict_in_node(tiny_site, images, {"precision": precision})
    assert (made["backend"], made["precision"]) == ("wasm", precision)
    assert made["selftest"]["status"] == "passed" and made["selftest"]["images"] == 32
    with load(tiny_bundle, "onnxruntime", precision, device="cpu", threads=1) as classifier:
        classes = [answer.index for answer in classifier.predict(images)]
    assert [answer["index"] for answer in made["answers"]] == classes
    if precision == "fp32":
        for found, expected in zip(made["answers"], in_python(tiny_bundle, images, precision), strict=True):
            assert_same(found["topK"], expected, 1e-4)


def test_node_has_threads_by_the_npm_package_itself(tiny_site: Path) -> None:
    images = images_of(((32, 32), (47, 31)))
    made = [predict_in_node(tiny_site, images, {"precision": "int8", "threads": 2}, own=own) for own in (False, True)]
    assert [one["threads"] for one in made] == [1, 2]
    assert np.allclose(made[0]["logits"], made[1]["logits"], atol=1e-4)


def test_transparency_is_laid_over_white_as_in_python(tiny_site: Path) -> None:
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = np.stack([value, value[::-1, ::-1], value.T, alpha], axis=-1)
    over_white = predict_in_node(tiny_site, [image, decode(image)], {"precision": "fp32"}, top_k=10)["answers"]
    assert over_white[0]["topK"] == over_white[1]["topK"]


def bundle_of(folder: Path, labels: tuple[str, ...], **facts: Any) -> Path:
    """A small bundle whose manifest says these facts."""
    bundle = write_small_bundle(folder, labels=labels, engine=False)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, **facts}))
    return bundle


@pytest.mark.parametrize(
    ("task", "labels"),
    [("multi_label", ("a", "b", "c")), ("binary", ("cat",)), ("regression", ("x", "y")), ("single_label", ("a", "b"))],
)
def test_scores_are_those_of_the_bundles_task(task: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", labels, task=task)
    images = images_of()
    made = predict_in_node(site_of(bundle, tmp_path / "site"), images, {"precision": "fp32"})
    assert made["selftest"] is None
    for found, expected in zip(made["answers"], in_python(bundle, images, "fp32"), strict=True):
        assert_same(found["topK"], expected, 1e-6)
        assert (found["labels"] is None) == (task not in ("multi_label", "binary"))


def test_of_several_labels_those_count_that_reach_the_bundles_threshold(tmp_path: Path) -> None:
    names = tuple("abcdefgh")
    images = [np.full((9, 12, 3), colour, np.uint8) for colour in np.random.default_rng(5).integers(0, 256, (24, 3))]
    answers = []
    for threshold in (0.1, 0.9):
        place = tmp_path / str(threshold)
        bundle = bundle_of(place / "bundle", names, task="multi_label", threshold=threshold)
        made = predict_in_node(site_of(bundle, place / "site"), images, {"precision": "fp32"}, top_k=2)["answers"]
        with load(bundle, "onnxruntime", "fp32", device="cpu") as classifier:
            expected = [[score.index for score in answer.labels or ()] for answer in classifier.predict(images)]
        assert [[one["index"] for one in answer["labels"]] for answer in made] == expected
        assert all(one["label"] == names[one["index"]] for answer in made for one in answer["labels"])
        answers.append(expected)
    assert answers[0] != answers[1] and max(map(len, answers[0])) > 2  # not only of the best that are listed


def test_a_form_of_one_size_takes_that_alone(one_layer_checkpoint: Path, tmp_path: Path) -> None:
    from vitdeploy import export

    export(one_layer_checkpoint, tmp_path / "bundle", input_size=(40, 50))
    images = images_of(((40, 50), (50, 40)))
    made = predict_in_node(site_of(tmp_path / "bundle", tmp_path / "site"), images)
    assert made["selftest"]["status"] == "passed" and made["selftest"]["images"] == 32  # enlarged to that size
    assert_same(made["answers"][0]["topK"], in_python(tmp_path / "bundle", images[:1], "fp32")[0], 1e-4)
    assert "50x40 is not what this form takes: height 40, width 50" in made["answers"][1]["error"]


def test_what_fails_its_selftest_is_passed_over(tiny_site: Path, tmp_path: Path) -> None:
    site = Path(shutil.copytree(tiny_site, tmp_path / "site"))
    facts = json.loads((site / "site.json").read_text())
    facts["forms"][0]["bounds"] = [1e-30] * 32
    (site / "site.json").write_text(json.dumps(facts))
    made = predict_in_node(site, images_of(((32, 32),)))
    assert made["precision"] == "fp32" and made["selftest"]["status"] == "passed"
    (passed_over,) = made["tried"]
    assert (passed_over["precision"], passed_over["backend"]) == ("int8", "wasm")
    assert re.fullmatch(r"it fails the self-test: a logit of image \d+ is off by .+", passed_over["reason"])
    made = predict_in_node(site, [], {"precision": "int8"})
    assert "no form of" in made["error"] and "it fails the self-test" in made["error"]
    assert "int8 for wasm, fp32 for webgpu and wasm" in made["hint"]


def test_what_is_damaged_or_newer_is_refused(tiny_site: Path, tmp_path: Path) -> None:
    site = Path(shutil.copytree(tiny_site, tmp_path / "site"))
    text = (site / "site.json").read_text()
    graph = bytearray((site / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (site / "model.onnx").write_bytes(graph)
    refused = predict_in_node(site, [], {"precision": "fp32"})
    assert refused["error"].startswith("model.onnx is not the file that site.json describes")
    facts = json.loads(text)
    (site / "model.int8-cpu.onnx").unlink()  # nor is another form taken
    assert re.match(r"can't read file:.*/model\.int8-cpu\.onnx: ENOENT", predict_in_node(site, [])["error"])
    facts["forms"][0]["file"] = "../model.onnx"
    (site / "site.json").write_text(json.dumps(facts))
    assert "leaves the site" in predict_in_node(site, [], {"precision": "int8"})["error"]
    (site / "site.json").write_text(json.dumps({**facts, "schema_version": 99}))
    assert "written by a newer vitdeploy" in predict_in_node(site, [])["error"]
    (site / "site.json").write_text("{}")
    assert "is not a site of vitdeploy" in predict_in_node(site, [])["error"]
    (site / "site.json").unlink()
    assert "can't read" in predict_in_node(site, [])["error"]
    assert "WebGPU is not to be had here" in predict_in_node(tiny_site, [], {"backend": "webgpu"})["error"]
    assert predict_in_node(tiny_site, [], {"threads": 0})["error"] == "threads is 0"
    assert "no form for backend cuda" in predict_in_node(tiny_site, [], {"backend": "cuda"})["error"]


def test_what_is_no_image_is_refused_alone(tiny_site: Path) -> None:
    images = [np.zeros((8, 8, 2), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
    made = predict_in_node(tiny_site, images, {"precision": "fp32"})["answers"]
    assert "128 values are not an image of 8x8" in made[0]["error"] and "RGBA" in made[0]["hint"]
    assert "error" in made[1] and made[2]["label"]
    (refused,) = predict_in_node(tiny_site, images[2:], {"precision": "fp32"}, top_k=0)["answers"]
    assert refused["error"] == "topK is 0"


def shown(browser: Browser, selector: str) -> str:
    value: str = browser.evaluate(f"document.querySelector({selector!r}).innerText")
    return value


def visible(selector: str) -> str:
    return f"document.querySelector({selector!r}).checkVisibility()"


def opened(browser: Browser, address: str, seconds: float = 120) -> None:
    """The page, when its model is there."""
    browser.events.clear()
    browser.open(address)
    browser.wait("document.querySelector('#file').disabled === false || " + visible("#error"), seconds)
    assert not browser.evaluate(visible("#error")), shown(browser, "#error")


def outside(browser: Browser, address: str) -> list[str]:
    """What the page asked of others since it was opened, and its errors."""
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    errors = [json.dumps(e["params"]) for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
    return [url for url in asked if not url.startswith((address, "blob:", "data:", "about:"))] + errors


def test_an_image_is_dropped_on_the_page_and_the_result_read(
    tiny_bundle: Path, tiny_site: Path, browser: Browser, tmp_path: Path
) -> None:
    (image,) = images_of(((47, 31),))
    Image.fromarray(image).save(tmp_path / "photo.png")
    (expected,) = in_python(tiny_bundle, [image], "fp32")
    with served(tiny_site) as address:
        browser.resize(1100, 800)
        opened(browser, f"{address}?precision=fp32&backend=wasm&threads={ISOLATED_THREADS}")
        assert browser.evaluate("crossOriginIsolated") is True
        assert shown(browser, "#runs") == f"FP32 on WebAssembly, {ISOLATED_THREADS} threads, 10 classes"
        assert shown(browser, "#selftest").startswith("Self-test passed: 32 images, the best class of")
        assert not browser.evaluate(visible("#answer"))
        browser.drop("#drop", tmp_path / "photo.png")
        browser.wait(visible("#answer"))
        assert shown(browser, "#label") == expected[0]["label"]
        lines = browser.evaluate(
            "[...document.querySelectorAll('#scores li')].map(line => [...line.children].map(c => c.innerText))"
        )
        assert lines == [[one["label"], f"{100 * one['score']:.1f} %"] for one in expected]
        latency = shown(browser, "#latency")
        assert re.fullmatch(r"[\d.]+ ms, [\d.]+ of them the model; 31 × 47 pixels", latency), latency
        (tmp_path / "notes.txt").write_text("no image")
        browser.drop("#drop", tmp_path / "notes.txt")
        browser.wait(visible("#error"))
        assert "otes.txt is not an image that this browser reads" in shown(browser, "#error")
        browser.choose("#file", tmp_path / "photo.png")
        browser.wait(visible("#answer"))
        assert outside(browser, address) == []


def test_the_camera_is_classified_until_it_is_stopped(tiny_site: Path, browser: Browser) -> None:
    with served(tiny_site) as address:
        opened(browser, f"{address}?threads=1")
        assert shown(browser, "#runs") == "INT8 on WebAssembly, 1 thread, 10 classes"
        browser.evaluate("document.querySelector('#camera').click()")
        browser.wait(visible("#answer"), 60)
        browser.evaluate("document.querySelector('#latency').textContent = ''")
        browser.wait("document.querySelector('#latency').textContent.includes('480')")  # the next frame
        assert shown(browser, "#camera") == "Stop the camera"
        browser.evaluate("document.querySelector('#camera').click()")
        assert shown(browser, "#camera") == "Use the camera" and not browser.evaluate(visible("#video"))
        assert outside(browser, address) == []


def test_the_page_on_a_phone(tiny_site: Path, browser: Browser, tmp_path: Path) -> None:
    Image.new("RGB", (1200, 300), (200, 40, 40)).save(tmp_path / "photo.png")
    with served(tiny_site) as address:
        browser.resize(360, 740, mobile=True, dark=True)
        opened(browser, address)
        browser.choose("#file", tmp_path / "photo.png")
        browser.wait(visible("#answer"))
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out
        box = "document.querySelector({!r}).getBoundingClientRect()"
        assert browser.evaluate(f"{box.format('#result')}.top >= {box.format('#input')}.bottom")


def test_labels_and_names_are_shown_as_text(tmp_path: Path, browser: Browser) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", labels=(EVIL, f"{EVIL}2"), engine=False)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"]["name"] = EVIL
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    Image.new("RGB", (8, 8), (200, 40, 40)).save(tmp_path / "photo.png")
    with served(site_of(bundle, tmp_path / "site")) as address:
        opened(browser, address)
        browser.choose("#file", tmp_path / "photo.png")
        browser.wait(visible("#answer"))
        assert shown(browser, "#label").startswith(EVIL) and shown(browser, "#model") == EVIL
        assert browser.evaluate("document.querySelectorAll('main script, img[src=x]').length") == 0
        assert "no self-test" in shown(browser, "#selftest")
        assert not [event for event in browser.events if event["method"] == "Page.javascriptDialogOpening"]
        assert outside(browser, address) == []


def test_the_page_names_all_labels_that_the_image_has(tmp_path: Path, browser: Browser) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), (200, 40, 40)).save(photo)
    for threshold in (0.05, 0.999):
        place = tmp_path / str(threshold)
        bundle = bundle_of(place / "bundle", ("a", "b", "c", "d"), task="multi_label", threshold=threshold)
        with load(bundle, "onnxruntime", "fp32", device="cpu") as classifier:
            found = classifier.predict(photo).labels
        assert found is not None and (len(found) > 1) == (threshold == 0.05)
        with served(site_of(bundle, place / "site", precision="fp32")) as address:
            opened(browser, address)
            browser.choose("#file", photo)
            browser.wait(visible("#answer"))
            assert shown(browser, "#label") == (", ".join(s.label for s in found) or "none of the labels")
            assert shown(browser, "#sure") == f"from a score of {100 * threshold:.1f} %"


def test_files_give_the_pixels_that_python_reads(tiny_site: Path, browser: Browser, tmp_path: Path) -> None:
    """Turned as EXIF says, without a change of colours, transparent over white."""
    from PIL import ImageCms

    draw = np.random.default_rng(3)
    smooth = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize((60, 45), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    clear = smooth.copy()
    clear.putalpha(Image.fromarray(draw.integers(0, 2, (45, 60), np.uint8) * 255))
    grey = smooth.convert("L")
    files: dict[str, tuple[Image.Image, dict[str, Any], int]] = {
        "plain.png": (smooth, {}, 0),
        "turned.png": (smooth, {"exif": exif}, 0),
        "profile.png": (smooth, {"icc_profile": profile}, 0),
        "clear.png": (clear, {}, 0),
        "grey.png": (grey, {}, 0),
        "palette.png": (smooth.quantize(16), {}, 0),
        "photo.jpg": (smooth, {"quality": 90, "subsampling": 0}, 1),
        "turned.jpg": (smooth, {"quality": 90, "subsampling": 0, "exif": exif}, 1),
        "lossless.webp": (smooth, {"lossless": True}, 0),
    }
    with served(tiny_site) as address:
        opened(browser, address)
        for name, (image, options, most) in files.items():
            stream = io.BytesIO()
            image.save(stream, Path(name).suffix[1:].replace("jpg", "jpeg"), **options)
            expected = decode(stream.getvalue())
            found = browser.evaluate(
                "(async () => { const { toPixels } = await import('./pixels.js');"
                f"const bytes = {list(stream.getvalue())};"
                "const made = await toPixels(new File([new Uint8Array(bytes)], 'file'), 1e6);"
                "return [made.height, made.width, ...made.data]; })()"
            )
            assert tuple(found[:2]) == expected.shape[:2], name
            off = np.abs(np.array(found[2:], int).reshape(expected.shape) - expected).max()
            assert off <= most, f"{name} is off by {off}"


EVERY_KIND = """
(async () => {
  const { load } = await import("./vitdeploy.js");
  const classifier = await load("./", { precision: "fp32", backend: "wasm", threads: 1, selftest: false });
  const bitmap = await createImageBitmap(new Blob([new Uint8Array(BYTES)]));
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const element = new Image();
  element.src = canvas.toDataURL();
  const data = context.getImageData(0, 0, canvas.width, canvas.height);
  const frame = new VideoFrame(canvas, { timestamp: 0 });
  const plain = { data: data.data, width: data.width, height: data.height };
  const kinds = [new Blob([new Uint8Array(BYTES)]), bitmap, canvas, element, data, plain, frame];
  const all = await Promise.all(kinds.map((kind) => classifier.predict(kind, { topK: 10 })));  // at once
  frame.close();
  const said = (error) => (error.hint ? error.name : String(error));
  const wrongs = [null, undefined, 7, "cat.png", {}, document.body, new Image(), document.createElement("video")];
  const refused = [];
  for (const wrong of [...wrongs, { data: [1, 2, 3], width: 1, height: 1 }])
    refused.push(await classifier.predict(wrong).then(() => "taken", said));
  await classifier.close();
  refused.push(await classifier.predict(data).then(() => "taken", (error) => error.message));
  return [all.map((answer) => answer.topK), refused];
})()
"""


def test_every_kind_of_image_gives_the_same_answer(tiny_site: Path, tiny_bundle: Path, browser: Browser) -> None:
    (image,) = images_of(((47, 31),))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    (expected,) = in_python(tiny_bundle, [image], "fp32", top_k=10)
    with served(tiny_site) as address:
        browser.open(f"{address}site.json")
        answers, refused = browser.evaluate(EVERY_KIND.replace("BYTES", str(list(stream.getvalue()))))
    for answer in answers:
        assert answer == answers[0]
        assert_same(answer, expected, 1e-4)
    assert refused == ["VitdeployError"] * 9 + ["the classifier is closed"]


def test_without_isolation_one_thread_runs(tiny_site: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.deploy.web.serve.HEADERS", {"Cache-Control": "no-store"})
    with served(tiny_site) as address:
        opened(browser, f"{address}?precision=int8&threads=4")
        assert browser.evaluate("crossOriginIsolated") is False
        assert shown(browser, "#runs") == "INT8 on WebAssembly, 1 thread, 10 classes"


def test_fp32_runs_on_webgpu(tmp_path: Path) -> None:
    """On an emulated GPU, which Chromium brings, at 112 pixels: the bundle's own graph has a Split into 14 parts there,
    and a kernel of WebGPU has 10 buffers."""
    from tests.tools.tiny import write_checkpoint
    from vitdeploy import export

    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    emulated = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader")
    (image,) = images_of(((47, 31),))
    Image.fromarray(image).save(tmp_path / "photo.png")
    bundle = tmp_path / "bundle"
    export(write_checkpoint(tmp_path / "checkpoint", image_size=112), bundle)
    (expected,) = in_python(bundle, [image], "fp32")
    site = site_of(bundle, tmp_path / "site")
    with Browser(program, tmp_path / "profile", options=emulated) as browser, served(site) as address:
        browser.open(f"{address}?backend=webgpu")
        if browser.evaluate("(async () => Boolean(await navigator.gpu?.requestAdapter()))()") is not True:
            pytest.skip("this Chromium has no WebGPU, not even an emulated one")
        opened(browser, f"{address}?backend=webgpu", seconds=600)
        assert shown(browser, "#runs") == "FP32 on WebGPU, 10 classes"
        assert shown(browser, "#selftest").startswith("Self-test passed: 32 images")
        browser.choose("#file", tmp_path / "photo.png")
        browser.wait(visible("#answer"), 120)
        assert shown(browser, "#label") == expected[0]["label"]


@pytest.fixture(scope="module")
def cifar10(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], dict[str, Any]]:
    """A site of the trained ViT-S, `COUNT` test images, and by precision the best classes of Python's ONNX Runtime."""
    from vitdeploy import Recipe, build, export, load_dataset

    work = tmp_path_factory.mktemp("cifar10")
    bundle = export(test_data / "models" / "vit-small-patch14-112-cifar10", work / "bundle")
    build(bundle, ["int8"], target="onnx", recipe=Recipe(dataset=str(test_data / "cifar10"), count=128))
    dataset = load_dataset(test_data / "cifar10", split="test")
    images = [dataset.image(index) for index in range(COUNT)]
    classes = {}
    for precision in ("int8", "fp32"):
        with load(work / "bundle", "onnxruntime", precision, device="cpu") as classifier:
            classes[precision] = [answer.index for answer in classifier.predict(images)]
    return site_of(work / "bundle", work / "site"), images, classes


def assert_agreement(found: list[int], expected: list[int], precision: str) -> None:
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    assert same >= {"fp32": COUNT, "int8": COUNT - 2}[precision], f"{precision}: {same} of {COUNT}"


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_cifar10_in_node(precision: str, cifar10: tuple[Path, list[np.ndarray], dict[str, Any]]) -> None:
    site, images, classes = cifar10
    made = predict_in_node(site, images, {"precision": precision}, top_k=1)
    assert made["selftest"]["status"] == "passed"
    assert_agreement([answer["index"] for answer in made["answers"]], classes[precision], precision)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_cifar10_in_chromium(
    precision: str, cifar10: tuple[Path, list[np.ndarray], dict[str, Any]], browser: Browser
) -> None:
    site, images, classes = cifar10
    found: list[int] = []
    with served(site) as address:
        opened(browser, f"{address}?precision={precision}&backend=wasm&threads={ISOLATED_THREADS}")
        assert shown(browser, "#selftest").startswith("Self-test passed")
        browser.evaluate(
            "(async () => { const { load } = await import('./vitdeploy.js');"
            f"const options = {{ precision: {precision!r}, backend: 'wasm', selftest: false }};"
            "window.classifier = await load('./', options); })()"
        )
        for start in range(0, COUNT, 10):  # a call of the browser's protocol waits a minute at most
            part = json.dumps([encoded(image) for image in images[start : start + 10]])
            found += browser.evaluate(
                f"(async () => {{ const found = []; for (const {{ data, width, height }} of {part})"
                "{ const rgb = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));"
                "found.push((await window.classifier.predict({ data: rgb, width, height })).index); }"
                "return found; })()"
            )
    assert_agreement(found, classes[precision], precision)
