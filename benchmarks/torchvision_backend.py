"""How far transformers' torchvision processors are from Pillow's, whose pixels the graph reproduces: shares and levels.

    python benchmarks/torchvision_backend.py [--json FILE]

Needs torchvision, of the build that fits torch's. The two photographs that scikit-learn brings are brought to eleven
sizes and resized by ViTImageProcessor with each filter, and by the reference. Counted are the levels of 0..255 that
differ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from vitdeploy.compiler.preprocessing import reference, spec_from_processor
from vitdeploy.machine import machine, versions

SIZES = [
    (32, 32),
    (96, 128),
    (240, 320),
    (300, 451),
    (375, 500),
    (427, 640),
    (480, 640),
    (600, 800),
    (768, 1024),
    (720, 1280),
    (1080, 1920),
]
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # torchvision has no box or hamming for tensors


def photographs() -> list[np.ndarray]:
    """One for each of the sizes, the two in turns: uint8 (height, width, 3)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    return [
        np.asarray(Image.fromarray(images[index % 2]).resize((width, height), 3))
        for index, (height, width) in enumerate(SIZES)
    ]


def compare(resample: int, made: int) -> tuple[float, float, float]:
    """Mean and largest share of levels that differ in a photograph, and the largest difference in levels."""
    import torch
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size=made, resample=resample, do_rescale=False, do_normalize=False)
    spec = spec_from_processor(processor)
    shares, largest = [], 0.0
    for pixels in photographs():
        # (height, width, 3) -> (3, height, width)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        theirs = processor(tensor, return_tensors="pt")["pixel_values"][0].numpy()
        apart = np.abs(theirs.astype(np.float64) - reference(spec, pixels))
        shares.append(float((apart > 1e-3).mean()))
        largest = max(largest, float(apart.max()))
    return float(np.mean(shares)), max(shares), largest


def main() -> None:
    import torchvision

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the shares there")
    arguments = parser.parse_args()
    results = []
    for name, resample in FILTERS.items():
        for made in (224, 112):
            mean, worst, largest = compare(resample, made)
            print(f"{name:9}{made:4}  differ: mean {mean:7.2%}, worst {worst:7.2%}; largest {largest:.0f} levels")
            results.append(
                {"resample": name, "to": made, "mean": round(mean, 5), "worst": round(worst, 5), "levels": largest}
            )
    if arguments.json is not None:
        document = {
            "images": f"scikit-learn's two photographs, brought to {len(SIZES)} sizes",
            "torchvision": torchvision.__version__,
            "machine": machine(),
            "versions": versions(),
            "results": results,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
