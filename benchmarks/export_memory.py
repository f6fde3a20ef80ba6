"""Peak memory of an export against the model's size.

    python benchmarks/export_memory.py [--model large] [--work FOLDER] [--json FILE]

A ViT of random weights is written to FOLDER, then exported by `vitdeploy export` in a process of its own, whose peak
resident memory the operating system reports. Pages of files that are mapped count too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
WRITE = """
import sys, torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
hidden, layers, heads = map(int, sys.argv[2:])
config = ViTConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                   intermediate_size=4 * hidden, num_labels=1000)
torch.manual_seed(0)
ViTForImageClassification(config).save_pretrained(sys.argv[1])
ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(sys.argv[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="large")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        checkpoint, bundle = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        writer = [sys.executable, "-c", WRITE, str(checkpoint), *map(str, SIZES[arguments.model])]
        # In a process of its own, and so is the export: peaks of children are reported as the largest of them.
        subprocess.run([sys.executable, "-c", f"import subprocess; subprocess.run({writer!r}, check=True)"], check=True)
        size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        program = (
            "import resource, subprocess, sys\n"
            f"done = subprocess.run([sys.executable, '-m', 'vitdeploy', 'export', {str(checkpoint)!r}, '-o',"
            f" {str(bundle)!r}])\n"
            "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
            "sys.exit(done.returncode)"
        )
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    peak = int(done.stdout.rpartition("peak ")[2]) * (1 if sys.platform == "darwin" else 1024)
    alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak > alone
    print(f"ViT-{arguments.model}: {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {peak / size:.2f}x, {seconds:.0f} s")
    if arguments.json:
        data = {"model": arguments.model, "size_bytes": size, "peak_bytes": peak, "ratio": peak / size}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
