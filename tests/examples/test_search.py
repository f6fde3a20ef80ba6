"""examples/search: an index of a folder, asked by an image, in a terminal and in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from tests.tools.browser import Browser, find_chromium
from tests.tools.running import run, run_here
from tests.tools.serving import Service, serving
from tests.tools.tiny import write_checkpoint, write_images
from vitdeploy import Recipe
from vitdeploy.models.tasks import unit

pytest.importorskip("onnxruntime")
pytest.importorskip("faiss", reason="faiss-cpu is not installed: pip install 'vitdeploy[search]'")
FP32 = ("--backend", "onnxruntime", "--precision", "fp32")


@dataclass(frozen=True)
class Made:
    bundle: Path
    photos: Path
    index: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of vectors with INT8 in it, 40 images and one that is damaged, and their index by FP32."""
    root = tmp_path_factory.mktemp("search")
    photos = write_images(root / "photos")
    (photos / "zero" / "broken.png").write_bytes(b"oops")
    bundle = vitdeploy.export(write_checkpoint(root / "vit", layers=1), root / "vectors", task="embedding").path
    (photos / "zero" / "broken.png").rename(root / "broken.png")
    vitdeploy.build(bundle, ["int8"], target="onnx", recipe=Recipe(dataset=str(photos), count=24))
    (root / "broken.png").rename(photos / "zero" / "broken.png")
    done = run("search/search.py", "index", bundle, photos, root / "photos.index", *FP32)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"40 images in {root / 'photos.index'}, by fp32 on onnxruntime; 1 failed\n"
    assert sorted(path.name for path in root.iterdir()) == ["photos", "photos.index", "vectors", "vit"]
    return Made(bundle, photos, root / "photos.index")


@pytest.fixture(scope="module")
def service(made: Made) -> Iterator[Service]:
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'vitdeploy[examples]'")
    with serving("search/web.py", made.index, made.bundle, *FP32, "--threads", 1, "--max-bytes", 100_000) as running:
        yield running


def nearest(made: Made, image: Path, precision: str = "fp32") -> list[tuple[Path, float]]:
    """Every image of the index with its cosine to one, the nearest first, computed without an index."""
    paths = sorted(path for path in made.photos.rglob("*.png") if path.name != "broken.png")
    with vitdeploy.load(made.bundle, "onnxruntime", "fp32") as model:
        gallery = unit(model.embed(paths))
    with vitdeploy.load(made.bundle, "onnxruntime", precision) as model:
        cosines = gallery @ unit(model.embed(image))[0]
    return [(paths[place], float(cosines[place])) for place in np.argsort(-cosines, kind="stable")]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_query_finds_what_a_plain_comparison_finds(made: Made, precision: str) -> None:
    image = made.photos / "seven" / "2.png"
    done = run_here(
        *("search/search.py", "query", made.index, made.bundle, image, "-k", 6),
        *("--backend", "onnxruntime", "--precision", precision),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    wanted = nearest(made, image, precision)[:6]
    assert [Path(name).resolve() for _, name in lines] == [path.resolve() for path, _ in wanted]
    np.testing.assert_allclose([float(cosine) for cosine, _ in lines], [cosine for _, cosine in wanted], atol=2e-4)
    assert ("Note: int8 of vectors asks an index that fp32 made" in done.stderr) == (precision == "int8")


def test_what_bench_measured_of_such_queries_is_said(made: Made, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "vectors"))
    good = Path(shutil.copytree(made.photos, tmp_path / "good", ignore=shutil.ignore_patterns("broken.png")))
    settings = {"latency": False, "backends": ("onnxruntime",), "threads": 1, "neighbours": 5, "min_recall": 0.01}
    report = vitdeploy.bench(bundle, vitdeploy.load_dataset(good, "all"), **settings)
    from vitdeploy.bench import render_html, save

    save(report, vitdeploy.Bundle.open(bundle), render_html(report))
    found = report.row("int8/onnxruntime").embedding
    assert found is not None and found.queries is not None
    image = made.photos / "one" / "0.png"
    done = run_here(
        "search/search.py", "query", made.index, bundle, image, "--backend", "onnxruntime", "--precision", "int8"
    )
    assert f"the benchmark found {found.queries.value:.1%} of FP32's 5 nearest that way" in done.stderr


def test_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "vit", seed=1, layers=1)
    other = vitdeploy.export(checkpoint, tmp_path / "other", task="embedding").path
    image = made.photos / "one" / "0.png"
    done = run_here("search/search.py", "query", made.index, other, image, *FP32)
    assert done.returncode == 1 and "was made by other weights (vectors and not other)" in done.stderr
    assert "make it anew with this bundle" in done.stderr and "Traceback" not in done.stderr
    longer = vitdeploy.export(tmp_path / "vit", tmp_path / "unit", task="embedding", normalize=True).path
    done = run_here("search/search.py", "query", made.index, longer, image, *FP32)
    assert done.returncode == 1 and "has other vectors" in done.stderr


def test_a_classifier_is_refused(made: Made, tiny_bundle: Path, tmp_path: Path) -> None:
    for command in (("index", tiny_bundle, made.photos, tmp_path / "i"), ("query", made.index, tiny_bundle, "a.png")):
        done = run_here("search/search.py", *command)
        assert done.returncode == 1 and "search is not for" in done.stderr and "one class an image" in done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "i").exists()


def test_indexing_goes_on_where_it_was_stopped_and_replaces_only_an_index(made: Made, tmp_path: Path) -> None:
    index = tmp_path / "photos.index"
    index.mkdir()
    (index / "notes.txt").write_text("mine")
    done = run_here("search/search.py", "index", made.bundle, made.photos, index, "--overwrite", *FP32)
    assert done.returncode == 1 and "Traceback" not in done.stderr and (index / "notes.txt").exists()
    (index / "notes.txt").unlink()
    index.rmdir()
    for more in ((), ("--overwrite",)):
        done = run_here("search/search.py", "index", made.bundle, made.photos, index, *FP32, *more)
        assert done.returncode == 0, done.stderr
    again = run_here("search/search.py", "index", made.bundle, made.photos, index, *FP32)
    assert again.returncode == 1 and "already exists" in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos.index"]
    wanted = {path.name: path.read_bytes() for path in made.index.iterdir() if path.name != "index.json"}
    assert {name: (index / name).read_bytes() for name in wanted} == wanted


@pytest.mark.parametrize(
    ("file", "content"), [("index.json", "{}"), ("images.jsonl", ""), ("vectors.faiss", "oops"), ("index.json", None)]
)
def test_a_damaged_index_is_named(made: Made, tmp_path: Path, file: str, content: str | None) -> None:
    index = Path(shutil.copytree(made.index, tmp_path / "photos.index"))
    (index / file).unlink() if content is None else (index / file).write_text(content)
    done = run_here("search/search.py", "query", index, made.bundle, made.photos / "one" / "0.png", *FP32)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "search.py index" in done.stderr


def test_the_service_answers_as_the_index_does(service: Service, made: Made) -> None:
    image = made.photos / "three" / "1.png"
    status, _, body = service.ask("POST", "/search?count=4", image.read_bytes())
    hits = json.loads(body)["hits"]
    wanted = nearest(made, image)
    assert status == 200 and [hit["image"] for hit in hits] == [
        path.relative_to(made.photos).as_posix() for path, _ in wanted[:4]
    ]
    assert hits[0]["image"] == "three/1.png" and hits[0]["cosine"] == pytest.approx(1, abs=1e-4)
    status, _, body = service.ask("GET", f"/like/{hits[0]['number']}?count=3")
    assert status == 200 and [hit["number"] for hit in json.loads(body)["hits"]] == [hit["number"] for hit in hits[1:]]
    status, headers, body = service.ask("GET", f"/images/{hits[1]['number']}")
    assert status == 200 and headers["content-type"] == "image/jpeg" and body[:2] == b"\xff\xd8"
    health = json.loads(service.ask("GET", "/health")[2])
    assert health["images"] == 40 and health["note"] is None and health["asked_by"] == "fp32 on onnxruntime"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/search", b"oops", 422, "not an image that can be read"),
        ("POST", "/search", b"", 400, "empty"),
        ("POST", "/search", b"x" * 100_001, 413, "larger than 100000 bytes"),
        ("POST", "/search?count=0", b"x", 400, "count"),
        ("GET", "/like/40", None, 404, "no image 40"),
        ("GET", "/images/-1", None, 404, "no image -1"),
        ("GET", "/images/..%2f..%2fetc%2fpasswd", None, 404, "Not Found"),
        ("GET", "/like/many", None, 400, "number"),
    ],
)
def test_what_it_refuses(service: Service, method: str, path: str, body: bytes | None, status: int, said: str) -> None:
    found, _, answer = service.ask(method, path, body)
    assert found == status and said in json.loads(answer)["error"]


def test_the_page_in_a_browser(service: Service, made: Made, tmp_path: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    image = tmp_path / "asked.png"
    Image.open(made.photos / "five" / "3.png").save(image)
    wanted = [path.relative_to(made.photos).as_posix() for path, _ in nearest(made, image)[:12]]
    names = "[...document.querySelectorAll('#hits span')].map((name) => name.innerText)"
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(f"http://127.0.0.1:{service.port}/")
        browser.wait("document.querySelector('#about').textContent.includes('40 images')", 60)
        browser.drop("#drop", image)
        browser.wait(f"{names}.length === 12", 60)
        assert browser.evaluate(names) == wanted
        browser.wait("[...document.querySelectorAll('#hits img')].every((i) => i.complete && i.naturalWidth > 0)", 60)
        browser.evaluate("document.querySelectorAll('#hits button')[2].click()")
        browser.wait(f"{names}.length === 12 && !{names}.includes({wanted[2]!r})", 60)
        (tmp_path / "notes.txt").write_text("no image")
        browser.drop("#drop", tmp_path / "notes.txt")
        browser.wait("document.querySelector('#error').innerText.includes('not an image that can be read')", 60)
        assert not browser.evaluate("document.querySelector('#note').checkVisibility()")
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        allowed = (f"http://127.0.0.1:{service.port}/", "blob:", "data:")
        assert [url for url in asked if not url.startswith(allowed)] == []
        assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
        browser.resize(360, 740, mobile=True)
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_says_that_int8_asks_what_fp32_made(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'vitdeploy[examples]'")
    form = ("--backend", "onnxruntime", "--precision", "int8", "--threads", 1)
    with serving("search/web.py", made.index, made.bundle, *form) as service:
        note = json.loads(service.ask("GET", "/health")[2])["note"]
    assert note == "int8 of vectors asks an index that fp32 made: vitdeploy bench says how many neighbours that finds"
