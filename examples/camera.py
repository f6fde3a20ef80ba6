"""A camera or a video file, classified frame by frame with OpenCV.

    python examples/camera.py bundles/vit --source 0 --show                        # the first camera, in a window
    python examples/camera.py bundles/vit --source walk.mp4 --output labelled.mp4  # a file, with the label drawn in

prints one JSON line per frame. A file is read frame by frame. A camera does not wait: while the model runs, older
frames are dropped, so that the label is always that of the newest picture. Scores are averaged over the last frames,
since the label of a single frame flickers. Needs `pip install '.[cpu,examples]'`; `--show` needs opencv-python
instead of opencv-python-headless.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import cv2
import numpy as np

from vitdeploy import Classifier, InputError, VitdeployError, load
from vitdeploy.models.tasks import reached

Frame = np.ndarray  # uint8 (height, width, 3), OpenCV's order of channels: blue, green, red


class Newest:
    """Reads a camera in a thread and keeps only its last frame."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while not self._ended:
            good, frame = self._capture.read()
            with self._changed:
                self._frame, self._ended = (frame if good else None), self._ended or not good
                self._changed.notify()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frame is not None or self._ended)
                frame, self._frame = self._frame, None
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """Stop reading."""
        self._ended = True


def frames(capture: cv2.VideoCapture) -> Iterator[Frame]:
    """Every frame of a file."""
    while True:
        good, frame = capture.read()
        if not good:
            return
        yield frame


def draw(frame: Frame, text: str) -> None:
    """Write on a frame, white on black, large enough for its size."""
    scale = max(0.4, frame.shape[0] / 500)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    cv2.rectangle(frame, (0, 0), (width + 12, height + below + 12), (0, 0, 0), cv2.FILLED)
    cv2.putText(frame, text, (6, height + 6), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify what a camera or a video shows.")
    parser.add_argument("bundle")
    parser.add_argument("--source", default="0", help="number of a camera, or a video file (default: 0)")
    parser.add_argument("--output", help="write the frames with their label to this .mp4 or .avi")
    parser.add_argument("--show", action="store_true", help="open a window; q ends it")
    parser.add_argument("--smooth", type=float, default=0.8, help="weight of the frames before, 0..1 (default: 0.8)")
    parser.add_argument("--limit", type=int, help="stop after this many frames")
    given = parser.parse_args()
    is_camera = given.source.isdecimal()
    capture = cv2.VideoCapture(int(given.source) if is_camera else given.source)
    if not capture.isOpened():
        print(f"can't open {'camera ' if is_camera else ''}{given.source}", file=sys.stderr)
        return 1
    try:
        with load(given.bundle) as classifier:
            run(classifier, capture, is_camera, given)
    except KeyboardInterrupt:
        return 130
    except VitdeployError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 1
    finally:
        capture.release()
    return 0


def run(classifier: Classifier, capture: cv2.VideoCapture, is_camera: bool, given: argparse.Namespace) -> None:
    """Classify until the source ends."""
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    mean = None
    writer = None
    with closing(Newest(capture) if is_camera else frames(capture)) as source:
        for number, frame in enumerate(source):
            began = time.perf_counter()
            logits = classifier.logits(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))[0]  # (classes,)
            scores = classifier.task.scores(logits)
            if scores is None:
                raise InputError("this model is a regression and has no scores to show", hint="use a classifier")
            mean = scores if mean is None else given.smooth * mean + (1 - given.smooth) * scores
            best = int(mean.argmax())
            took = 1000 * (time.perf_counter() - began)
            line = {"frame": number, "label": classifier.labels[best], "score": round(float(mean[best]), 4)}
            said = f"{classifier.labels[best]} {mean[best]:.0%}"
            if classifier.threshold is not None:  # any number of labels: those whose score reaches it
                has = reached(mean, classifier.threshold)
                found = [name for name, there in zip(classifier.labels, has, strict=True) if there]
                line["labels"], said = found, ", ".join(found) or "none"
            print(json.dumps({**line, "milliseconds": round(took, 2)}), flush=True)
            draw(frame, f"{said}  {took:.0f} ms")
            if given.output and writer is None:
                kind = cv2.VideoWriter_fourcc(*("MJPG" if given.output.endswith(".avi") else "mp4v"))
                writer = cv2.VideoWriter(given.output, kind, rate, (frame.shape[1], frame.shape[0]))
                if not writer.isOpened():
                    raise VitdeployError(f"can't write {given.output}", hint="end the name with .mp4 or .avi")
            if writer is not None:
                writer.write(frame)
            if given.show:
                cv2.imshow("vitdeploy", frame)
                if cv2.waitKey(1) & 0xFF == ord("q"):
                    break
            if number + 1 == given.limit:
                break
    if writer is not None:
        writer.release()


if __name__ == "__main__":
    sys.exit(main())
