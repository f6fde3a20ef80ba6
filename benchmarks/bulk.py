"""Bulk prediction against its two halves: does decoding hide behind inference? All in one process, taking turns.

    python benchmarks/bulk.py bundles/vit [--precision int8] [--threads 1] [--workers 1] [--rounds 4]

For each size of image: the rate of decoding JPEG files alone (`--workers` threads), of inference alone (`predict` on
decoded pixels, `--threads` threads), of `classifier.stream` from the files, and of a whole `predict_files` that writes
parquet (CSV where pyarrow is missing). A round makes one of each; the ratio is that of a round's end-to-end rate to the
slower half's, and the median over the rounds counts. There are at least 24 batches in each: the first is decoded before
the model has anything to do, which counts in a run of a few batches and not in one of thousands. The halves have
threads of their own, so with at least `workers + threads` free cores the ratio can reach 1; with fewer they share them,
and it cannot.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from vitdeploy import Classifier, load
from vitdeploy.bulk import predict_files
from vitdeploy.core.machine import machine, versions
from vitdeploy.data.images import decode

SIZES = {"32x32": (32, 32, 256), "480x640": (480, 640, 192), "1080x1920": (1080, 1920, 192)}  # height, width, images
SUFFIX = "parquet" if importlib.util.find_spec("pyarrow") else "csv"


def write_images(folder: Path, height: int, width: int, count: int) -> list[str]:
    """JPEG files of one size, each a cut of a photograph that scikit-learn brings."""
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg"))  # 640x427
    generator = np.random.default_rng(0)
    paths = []
    for index in range(count):
        left, top = generator.integers(0, 200), generator.integers(0, 100)
        cut = photo.crop((int(left), int(top), int(left) + 400, int(top) + 300)).resize((width, height), 3)
        paths.append(str(folder / f"{index:04}.jpg"))
        cut.save(paths[-1], quality=90)
    return paths


def sides(
    classifier: Classifier, paths: list[str], workers: int, batch: int, folder: Path
) -> dict[str, Callable[[], Any]]:
    """The work of each side, on all images once."""
    pixels = [decode(path) for path in paths[:batch]]
    outputs: Iterator[Path] = (folder / f"results{number}.{SUFFIX}" for number in range(1_000_000))

    def decoding() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, paths):
                pass

    def inference() -> None:
        for start in range(0, len(paths), batch):
            classifier.predict(pixels[: len(paths) - start])

    return {
        "decoding": decoding,
        "inference": inference,
        "stream": lambda: list(classifier.stream(paths, workers=workers, batch=batch)),
        "predict_files": lambda: predict_files(classifier, paths, next(outputs), workers=workers, batch=batch),
    }


def measure(calls: dict[str, Callable[[], Any]], count: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each side in each round."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first round warms up
                rates[name].append(count / (time.perf_counter() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of the model (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="threads that decode (default: 1)")
    parser.add_argument("--batch", type=int, default=8, help="images of one call of the model (default: 8)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sizes", default=",".join(SIZES), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write all rates here")
    given = parser.parse_args()
    kept: dict[str, Any] = {"machine": machine(), "versions": versions()}
    kept |= {"threads": given.threads, "workers": given.workers, "batch": given.batch, "rates": {}}
    with load(given.bundle, given.backend, given.precision, threads=given.threads) as classifier:
        kept |= {"backend": classifier.backend, "precision": classifier.precision}
        form = f"{classifier.precision} on {classifier.backend}"
        print(f"{form}, {given.threads} thread(s) of the model, {given.workers} that decode; images/s, median")
        heads = (("", 10), ("decoding", 10), ("inference", 11), ("stream", 9), ("/ slower", 10))
        heads = (*heads, ("predict_files", 15), ("/ slower", 10))
        print("".join(f"{head:>{room}}" for head, room in heads))
        for name in given.sizes.split(","):
            height, width, count = SIZES[name]
            with tempfile.TemporaryDirectory() as folder:
                paths = write_images(Path(folder), height, width, count)
                rates = measure(sides(classifier, paths, given.workers, given.batch, Path(folder)), count, given.rounds)
            kept["rates"][name] = rates
            slower = [min(pair) for pair in zip(rates["decoding"], rates["inference"], strict=True)]
            line = f"{name:10}{median(rates['decoding']):10.1f}{median(rates['inference']):11.1f}"
            for side, room in (("stream", 9), ("predict_files", 15)):
                ratio = median(rate / half for rate, half in zip(rates[side], slower, strict=True))
                line += f"{median(rates[side]):{room}.1f}{ratio:10.2f}"
            print(line, flush=True)
    if given.json:
        given.json.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
