"""examples/camera.py on a video that OpenCV itself wrote."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.running import EXAMPLES, run
from vitdeploy import load

cv2: Any = pytest.importorskip(
    "cv2", reason="opencv-python-headless is not installed: pip install 'vitdeploy[examples]'"
)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """24 frames of 96x128: 12 of one noise, 12 of a red field."""
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (128, 96))
    assert writer.isOpened()
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for number in range(24):
        writer.write(noise if number < 12 else np.full((96, 128, 3), (0, 0, 220), np.uint8))
    writer.release()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(frame[1])
    return found


def test_a_video(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.mp4"
    done = run("camera.py", tiny_bundle, "--source", video, "--output", labelled, "--smooth", 0)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(24))
    with load(tiny_bundle) as classifier:
        expected = [classifier.predict(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)) for frame in frames_of(video)]
        swapped = [classifier.predict(frame) for frame in frames_of(video)]
    assert [line["label"] for line in lines] == [answer.label for answer in expected]
    assert [line["score"] for line in lines] == pytest.approx([answer.score for answer in expected], abs=1e-3)
    # the same frames with blue for red score differently: the comparison sees the order of the channels
    assert [line["score"] for line in lines] != pytest.approx([answer.score for answer in swapped], abs=1e-3)
    written = frames_of(labelled)
    assert len(written) == 24 and written[0].shape == (96, 128, 3)
    corner = written[-1][:8, :8].astype(int)
    assert corner.mean() < 60 < written[-1][50:, 50:].astype(int).mean()  # the label's black ground on red


def test_smoothing_and_limit(tiny_bundle: Path, video: Path) -> None:
    done = run("camera.py", tiny_bundle, "--source", video, "--smooth", 0.9, "--limit", 15)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 15
    jump = run("camera.py", tiny_bundle, "--source", video, "--smooth", 0, "--limit", 15)
    sharp = [json.loads(line)["score"] for line in jump.stdout.splitlines()]
    smooth = [line["score"] for line in lines]
    assert abs(smooth[12] - smooth[11]) < abs(sharp[12] - sharp[11])


def test_a_camera_gives_its_newest_frame(video: Path) -> None:
    spec = importlib.util.spec_from_file_location("camera", EXAMPLES / "camera.py")
    assert spec and spec.loader
    camera = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(camera)

    class Slow:
        """Numbers its frames; the sixth is the last."""

        number = 0

        def read(self) -> tuple[bool, Any]:
            time.sleep(0.02)
            self.number += 1
            return self.number <= 6, np.full((1, 1, 3), self.number, np.uint8)

    taken = []
    for frame in camera.Newest(Slow()):
        taken.append(int(frame[0, 0, 0]))
        time.sleep(0.05)  # a model that takes longer than two frames
    assert taken == sorted(set(taken)) and len(taken) < 6


def test_nothing_to_open(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("camera.py", tiny_bundle, "--source", tmp_path / "none.mp4")
    assert done.returncode == 1
    assert "can't open" in done.stderr
