"""Write what today's code writes, for the tests of later code: bundles with every ONNX form, and the forms' logits.

    python -m tests.tools.make_frozen_bundle tests/frozen

Run it once for each manifest schema and commit what it writes (tests/frozen/schema-N/); never run it over an older
folder. Each bundle is made by the command line, as users make theirs:

- plain/      all forms, the calibration, the layers' analysis, and a benchmark with its report and choice
- attention/  INT8 with everything in it that can be, and its calibration

NAME.npz beside a bundle holds the images image_0 ... and, by path, the logits of each ONNX form in ONNX Runtime; of
BF16, which that can't load, in OpenVINO.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.tools.tiny import write_checkpoint, write_images
from vitdeploy.bundle.graphs import exact_bytes

IMAGES = 8
_MARGIN = 0.25
"""Least distance of the best class from the next, in each form: what another processor rounds must not reach it."""


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        checkpoint = write_checkpoint(work / "tiny-vit", layers=2)
        images = write_images(work / "drawn")
        (work / "recipe.toml").write_text("count = 16\n")  # of 32, so that the analysis has images of its own
        calibrate = ["--calibration", work / "recipe.toml", "--calibration-data", images]
        everything = ["--int8-also", "attention,patch-embedding,classifier"]
        for name, forms in (("plain", ["--fp16", "--bf16"]), ("attention", everything)):
            _vitdeploy("export", checkpoint, "--output", work / name)
            _vitdeploy("build-engine", work / name, *forms, "--int8", "--target", "onnx", *calibrate)
        _vitdeploy("analyze", work / "plain", "--dataset", images, "--count", 16)
        measured = ["--rounds", 5, "--callers", 2, "--rate", 20, "--load-seconds", 0.5, "--split", "all"]
        _vitdeploy("bench", work / "plain", "--dataset", images, "--baseline", checkpoint, *measured)
        schema = json.loads((work / "plain" / "manifest.json").read_text())["schema_version"]
        target = folder / f"schema-{schema}"
        target.mkdir(parents=True)
        for name in ("plain", "attention"):
            shutil.copytree(work / name, target / name, ignore=shutil.ignore_patterns(".lock"))
            np.savez_compressed(target / f"{name}.npz", **_answers(target / name))
    print(target)


def _vitdeploy(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "vitdeploy", "--quiet", *map(str, arguments)], check=True)


def run_form(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Image, uint8 (height, width, 3) -> logits (classes,) of an ONNX form, by nothing of ours."""
    if "bf16" in path.name:
        import openvino

        model = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda image: np.array(model(image[np.newaxis])[0])[0]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    exact_bytes(options)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["logits"], {"image": image[np.newaxis]})[0][0]


def _answers(bundle: Path) -> dict[str, np.ndarray]:
    """Images on which every form is sure of its best class, and the logits of each form."""
    forms = {path.name: run_form(path) for path in sorted(bundle.glob("*.onnx"))}
    generator = np.random.default_rng(11)
    images: list[np.ndarray] = []
    logits: dict[str, list[np.ndarray]] = {name: [] for name in forms}
    while len(images) < IMAGES:
        height, width = generator.integers(24, 48, 2)
        ramp = np.linspace(0, generator.integers(40, 220), width)[np.newaxis, :, np.newaxis] * generator.random(3)
        image = np.clip(ramp + generator.integers(0, 100, (height, width, 3)), 0, 255).astype(np.uint8)
        found = {name: run(image) for name, run in forms.items()}
        best = {int(values.argmax()) for values in found.values()}
        if len(best) == 1 and all(np.diff(np.sort(values)[-2:])[0] >= _MARGIN for values in found.values()):
            images.append(image)
            for name, values in found.items():
                logits[name].append(values)
    return {
        **{f"image_{place}": image for place, image in enumerate(images)},
        **{name: np.stack(values) for name, values in logits.items()},
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
