"""A ViT from scratch on scikit-learn's digits, with the settings of the demo: accuracy and time.

A run has one thread; with --side-by-side 2 there are two runs at a time, each on a core of its own.

python benchmarks/digits.py --seeds 0 1 2 3 4 --side-by-side 2 --json docs/results/digits.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from vitdeploy.core.machine import machine, versions
from vitdeploy.training import create_digits_vit, digits_config, finetune


def measure(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = create_digits_vit(folder / "start", seed=seed)
        wall, cpu = time.perf_counter(), time.process_time()
        result = finetune(digits_config(start, folder / "out", seed=seed))
    return {
        "seed": seed,
        "test_accuracy": result.test_accuracy,
        "test_images": result.data["test"]["count"],
        "steps": result.steps,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = []
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.side_by_side, mp_context=fresh) as pool:
        for run in pool.map(measure, options.seeds):
            print(json.dumps(run), flush=True)
            runs.append(run)
    if options.json:
        packages = versions(["torch", "transformers"])
        data = {"side_by_side": options.side_by_side, "runs": runs, "machine": machine(), "versions": packages}
        options.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
