"""A ViT from scratch on scikit-learn's digits, with the settings of the demo: accuracy and time.

python benchmarks/digits.py --seeds 0 1 2 --json docs/results/digits.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from vitdeploy.machine import machine, versions
from vitdeploy.training import create_digits_vit, digits_config, finetune


def measure(seed: int, folder: Path) -> dict[str, Any]:
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
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(seed, Path(folder)))
        print(json.dumps(runs[-1]))
    if options.json:
        packages = versions(["torch", "transformers"])
        data = {"runs": runs, "machine": machine(), "versions": packages}
        options.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
