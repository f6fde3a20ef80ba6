"""Bulk prediction on a Ray cluster against one process: rates, and what a second node adds. The sides take turns.

    python benchmarks/ray_scale.py bundles/vit [--cpus 1] [--images 4000] [--rounds 4] [--json rates.json]

Sides: `predict_files` in one process with `--cpus` threads, that decode and run the model; Ray on a cluster of one node
of `--cpus` CPUs; Ray on one of two such nodes. Both clusters are of this machine (ray.cluster_utils), so it needs
2 x `--cpus` free cores, one more for Ray itself, and nothing else to do: the load is printed. A cluster is started
before the clock; starting the workers, shipping the bundle (the first time) and writing the parts are within it.

The efficiency is a round's rate on two nodes over twice its rate on one; Ray's overhead shows in its rate on one node
over that of one process. The medians of the rounds count. A worker opens the bundle in each run, so give enough images:
twice as many tell what a run costs beyond them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from vitdeploy import load
from vitdeploy.bulk import predict_files as predict_here
from vitdeploy.core.machine import machine, versions
from vitdeploy.deploy.ray import RaySettings, predict_files

SIDES = ("one process", "Ray, 1 node", "Ray, 2 nodes")


def write_images(folder: Path, count: int, height: int, width: int) -> None:
    """JPEG files of smooth noise, a hundred different ones; the rest are links to them."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06}.jpg"
        if number < 100:
            small = Image.fromarray(draw.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
            small.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            os.link(folder / f"{number % 100:06}.jpg", path)


def one_process(bundle: str, images: Path, output: Path, form: dict[str, Any], cpus: int) -> float:
    """Seconds, the opening of the bundle included as on a cluster."""
    start = time.perf_counter()
    with load(bundle, **form, device="cpu", threads=cpus) as classifier:
        predict_here(classifier, [images], output / "rows.parquet", workers=cpus)
    return time.perf_counter() - start


def by_ray(bundle: str, images: Path, output: Path, form: dict[str, Any], nodes: int, cpus: int, block: int) -> float:
    """Seconds of a run on a cluster of so many nodes, which is started before."""
    cluster = Cluster()
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False)
        start = time.perf_counter()
        settings = RaySettings(num_cpus=cpus, block=block, **form)
        predict_files(bundle, [images], output / f"rows-{nodes}", settings)
        return time.perf_counter() - start
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cpus", type=int, default=1, help="of a node and of the one process (default: 1)")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--block", type=int, default=256, help="images of a part (default: 256)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write all rates here")
    given = parser.parse_args()
    with load(given.bundle, given.backend, given.precision, device="cpu", threads=given.cpus) as classifier:
        form = {"backend": classifier.backend, "precision": classifier.precision}  # the same on every side
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    print(f"{form}, {given.cpus} CPU(s) a node, {given.images} images of {given.size}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        write_images(images, given.images, *given.size)
        for turn in range(given.rounds):
            output = Path(folder, str(turn))
            output.mkdir()
            calls: dict[str, Callable[[], float]] = {
                SIDES[0]: lambda out=output: one_process(given.bundle, images, out, form, given.cpus),
                SIDES[1]: lambda out=output: by_ray(given.bundle, images, out, form, 1, given.cpus, given.block),
                SIDES[2]: lambda out=output: by_ray(given.bundle, images, out, form, 2, given.cpus, given.block),
            }
            for side in SIDES[turn % 3 :] + SIDES[: turn % 3]:  # another side begins each round
                rates[side].append(given.images / calls[side]())
                print(f"  round {turn + 1}, {side}: {rates[side][-1]:.1f} images/s", flush=True)
    for side in SIDES:
        print(f"{side:14}{median(rates[side]):10.1f} images/s")
    here, one, two = (rates[side] for side in SIDES)
    overhead = median(a / b for a, b in zip(one, here, strict=True))
    efficiency = median(b / (2 * a) for a, b in zip(one, two, strict=True))
    print(f"Ray on 1 node / one process: {overhead:.2f}; efficiency of 2 nodes: {efficiency:.2f}")
    if given.json:
        kept = {"machine": machine(), "versions": versions() | {"ray": ray.__version__}, "form": form, "rates": rates}
        kept |= {name: getattr(given, name) for name in ("cpus", "images", "size", "block", "rounds")}
        given.json.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
