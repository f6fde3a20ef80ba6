"""Every example does what a bundle's task asks for, or says in one line that it can't: a row for each task there is."""

from __future__ import annotations

import csv
import json
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from tests.tools.browser import Browser, find_chromium
from tests.tools.running import load_service, run_here
from tests.tools.serving import Service, serving_here
from tests.tools.tiny import write_checkpoint
from vitdeploy.models.tasks import CLASSIFICATION, TASKS, THRESHOLD_KEY

pytest.importorskip("onnxruntime")
PROBLEMS = {  # of a checkpoint: problem_type and number of logits
    "single_label": (None, 5),
    "multi_label": ("multi_label_classification", 5),
    "binary": (None, 1),
    "regression": ("regression", 2),
}
THRESHOLDS = {"multi_label": 0.54}  # of the bundles that store one; at the usual 0.5 the photo has more labels
Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """`bundle_of("binary")`: a bundle of that task, exported once."""
    root = tmp_path_factory.mktemp("tasks")
    made: dict[str, Path] = {}

    def bundle(task: str) -> Path:
        if task in made:
            return made[task]
        folder = root / task
        if task == "single_label_sigmoid":  # as words of SigLIP: an ordinary bundle whose logits mean something else
            shutil.copytree(bundle("single_label"), folder)
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**manifest, "task": task}))
        else:
            problem, classes = PROBLEMS.get(task, (None, 5))
            labels = tuple(f"label {number}" for number in range(classes))
            checkpoint = write_checkpoint(root / f"{task}-checkpoint", layers=1, labels=labels, problem_type=problem)
            if task in THRESHOLDS:
                config = json.loads((checkpoint / "config.json").read_text())
                (checkpoint / "config.json").write_text(json.dumps({**config, THRESHOLD_KEY: THRESHOLDS[task]}))
            vitdeploy.export(checkpoint, folder, task="embedding" if task == "embedding" else None)
        assert vitdeploy.Bundle.open(folder).manifest.task == task
        made[task] = folder
        return folder

    return bundle


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def refused(stderr: str) -> None:
    """It was said what the model gives, without a traceback."""
    assert "Traceback" not in stderr and "embedding" in stderr, stderr


@pytest.mark.parametrize("task", TASKS)
def test_classify(task: str, bundle_of: Bundles, photo: Path) -> None:
    bundle = bundle_of(task)
    done = run_here("classify.py", bundle, photo)
    if TASKS[task].kind is not CLASSIFICATION:
        assert done.returncode == 1
        return refused(done.stderr)
    assert done.returncode == 0, done.stderr
    with vitdeploy.load(bundle) as classifier:
        answer = classifier.predict(photo)
    _, *found = done.stdout.rstrip("\n").split("\t")
    wanted = answer.top_k[:1] if answer.labels is None else answer.labels
    assert found[::2] == [score.label for score in wanted]
    numbers = [score.value if score.score is None else score.score for score in wanted]
    np.testing.assert_allclose(list(map(float, found[1::2])), numbers, atol=1e-3)
    return None


@pytest.mark.parametrize("task", TASKS)
def test_without_vitdeploy(task: str, bundle_of: Bundles, photo: Path) -> None:
    bundle = bundle_of(task)
    done = run_here("plain_onnxruntime.py", bundle / "model.onnx", photo)
    assert done.returncode == 0, done.stderr
    with vitdeploy.load(bundle, "onnxruntime", "fp32") as model:
        if TASKS[task].kind is not CLASSIFICATION:
            np.testing.assert_allclose(list(map(float, done.stdout.split())), model.embed(photo)[0], atol=1e-5)
            return
        answer = model.predict(photo, 5)
        wanted, has = answer.top_k, answer.labels
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(line[0]) for line in lines] == [score.index for score in wanted]
    numbers = [score.value if score.score is None else score.score for score in wanted]
    np.testing.assert_allclose([float(line[1]) for line in lines], numbers, atol=2e-5)
    assert {int(line[0]) for line in lines if line[2:] == ["yes"]} == {score.index for score in has or ()}


@pytest.mark.parametrize("task", TASKS)
def test_batch_job(task: str, bundle_of: Bundles, photo: Path, tmp_path: Path) -> None:
    bundle, reports = bundle_of(task), tmp_path / "reports"
    done = run_here("batch_job.py", bundle, photo.parent, reports, "--unsure", 0)
    if TASKS[task].activation is None:
        assert done.returncode == 1 and "Traceback" not in done.stderr and TASKS[task].title in done.stderr
        return
    assert done.returncode == 0, done.stderr
    with vitdeploy.load(bundle) as classifier:
        answer = classifier.predict(photo)
    summary = json.loads((reports / "summary.json").read_text())
    found = [answer.label] if answer.labels is None else [score.label for score in answer.labels]
    assert summary["classes"] == dict.fromkeys(found, 1)
    assert summary["to_review"] == (0 if found else 1)
    with open(reports / "results.csv", newline="") as file:
        assert ("labels" in next(csv.reader(file))) == TASKS[task].several


@pytest.mark.parametrize("task", TASKS)
def test_camera(task: str, bundle_of: Bundles, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    frame = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    video = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(2):
        writer.write(frame)
    writer.release()
    done = run_here("camera.py", bundle_of(task), "--source", video)
    if TASKS[task].activation is None:
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert ("regression" if task == "regression" else "embedding") in done.stderr
        return
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[0])
    assert ("labels" in line) == TASKS[task].several
    if TASKS[task].several:
        assert (line["label"] in line["labels"]) == (line["score"] >= THRESHOLDS.get(task, 0.5))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser | None]:
    """A real one, where there is one."""
    program = find_chromium()
    if program is None:
        yield None
        return
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def shows_the_answer(browser: Browser, service: Service, photo: Path, answer: dict[str, Any], threshold: float) -> None:
    """The page says what the service answered: a class, any number of labels, or a number."""
    browser.open(f"http://127.0.0.1:{service.port}/")
    browser.wait("document.querySelector('#model').textContent.includes('classes')", 60)
    browser.drop("#drop", photo)
    browser.wait("document.querySelector('#answer').checkVisibility()", 60)
    label, sure = (browser.evaluate(f"document.querySelector('{place}').innerText") for place in ("#label", "#sure"))
    if "labels" in answer:
        assert label == (", ".join(score["label"] for score in answer["labels"]) or "none of the labels")
        assert sure == f"from a score of {100 * threshold:.1f} %"
    elif answer["score"] is None:
        assert float(label) == pytest.approx(answer["value"], rel=1e-5) and sure == answer["label"]
    else:
        assert label == answer["label"] and sure == f"{100 * answer['score']:.1f} % sure"


@pytest.mark.parametrize("task", TASKS)
def test_the_service(task: str, bundle_of: Bundles, photo: Path, browser: Browser | None) -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'vitdeploy[examples]'")
    if TASKS[task].kind is not CLASSIFICATION:
        done = run_here("service/app.py", bundle_of(task))
        assert done.returncode == 1
        return refused(done.stderr)
    classifier, app = vitdeploy.load(bundle_of(task), threads=1), load_service()
    with serving_here(
        lambda port: app.server_config(app.create_app(classifier, app.Limits()), app.Limits(), "127.0.0.1", port)
    ) as service:
        status, answer = service.predict(photo.read_bytes())
        health, metrics = (service.ask("GET", path)[2].decode() for path in ("/health", "/metrics"))
        asked = {
            "name": "IMAGE",
            "datatype": "BYTES",
            "shape": [1, 1],
            "data": [b64encode(photo.read_bytes()).decode()],
        }
        model = f"/v2/models/{bundle_of(task).name}"
        tensors = json.loads(service.ask("POST", f"{model}/infer", json.dumps({"inputs": [asked]}))[2])["outputs"]
        described = json.loads(service.ask("GET", model)[2])["outputs"]
        if browser is not None and status == 200:
            shows_the_answer(browser, service, photo, answer, THRESHOLDS.get(task, 0.5))
    assert status == 200
    health = json.loads(health)
    threshold = THRESHOLDS.get(task, 0.5) if TASKS[task].several else None
    assert health["task"] == task and health["threshold"] == threshold
    assert ("labels" in answer) == TASKS[task].several
    assert [(one["name"], one["shape"][1]) for one in tensors] == [(one["name"], one["shape"][1]) for one in described]
    has = [json.loads(text) for one in tensors if one["name"] == "LABELS" for text in one["data"]]
    assert has == ([answer["labels"]] if TASKS[task].several else [])
    counted = [score["label"] for score in answer.get("labels", answer["top_k"][:1])]
    assert metrics.count("\nvitdeploy_predictions_total{") == len(counted)
    assert all(f'label="{label}"' in metrics for label in counted)
    return None
