"""The whole pipeline on one machine, offline: train, export, FP16 and INT8, engines, benchmark, a search by an
image.

The images are scikit-learn's handwritten digits, real images that come with a package. The steps are the library calls
behind the commands, in the order in which a user would give them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.core import progress
from vitdeploy.core.storage import holds_only, staged_folder, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vitdeploy.bundle import Bundle
    from vitdeploy.data import ImageDataset
    from vitdeploy.report.records import BenchReport
    from vitdeploy.training import FinetuneResult

__all__ = ["DemoResult", "demo"]

_CHECKPOINT = "checkpoint"
_BUNDLE = "digits-vit"
_VECTORS = "digits-vectors"
_NEIGHBOURS = 5
_REPORT = "report.json"


@dataclass(frozen=True)
class DemoResult:
    """Where everything lies, and what was measured.

    `found` are the classes of the five test images whose vectors are nearest to that of the first one, `asked`, the
    nearest first. `alike` of all test images' five nearest are of the image's own class, 0..1.
    """

    folder: Path
    training: FinetuneResult
    report: BenchReport
    asked: str
    found: tuple[str, ...]
    alike: float

    @property
    def checkpoint(self) -> Path:
        return self.folder / _CHECKPOINT

    @property
    def bundle(self) -> Path:
        return self.folder / _BUNDLE

    @property
    def vectors(self) -> Path:
        """The bundle that gives the embedding of the same weights."""
        return self.folder / _VECTORS

    @property
    def report_json(self) -> Path:
        return self.folder / _REPORT

    @property
    def report_html(self) -> Path:
        return self.folder / "report.html"

    @property
    def image(self) -> Path:
        """One digit of the test split, to try `predict` on."""
        return self.folder / "digit.png"


def demo(
    output: str | os.PathLike[str] = "demo", *, overwrite: bool = False, epochs: float | None = None, seed: int = 0
) -> DemoResult:
    """Run the main job on the digits and write checkpoint, bundle and report to `output`.

    Args:
        output: folder to write; it appears when everything is done.
        overwrite: replace what an earlier demo wrote.
        epochs: passes over the training images; None: what the digits need.
        seed: of the weights, the order of images and the benchmark.

    Raises:
        OutputExistsError: `output` exists and may not be replaced.
        DependencyError: a package is missing; the message says which.

    Example:
        demo("demo", overwrite=True).report.rows
    """
    from vitdeploy.bench import bench, render_html, save
    from vitdeploy.bundle import Bundle
    from vitdeploy.compiler.build import build
    from vitdeploy.compiler.export import export
    from vitdeploy.compiler.quantization.recipe import Recipe
    from vitdeploy.data import load_dataset
    from vitdeploy.training import finetune
    from vitdeploy.training.run import is_ours
    from vitdeploy.training.scratch import create_digits_vit, digits_config

    def ours(folder: Path) -> bool:
        def known(name: str) -> bool:
            parts = (f"{_CHECKPOINT}/", f"{_BUNDLE}/", f"{_VECTORS}/")
            return name in (_REPORT, "report.html", "digit.png") or name.startswith(parts)

        bundles = [folder / _BUNDLE, *([folder / _VECTORS] if (folder / _VECTORS).exists() else [])]
        return holds_only(folder, known) and is_ours(folder / _CHECKPOINT) and all(map(Bundle.is_ours, bundles))

    with staged_folder(Path(output), overwrite=overwrite, ours=ours, what="demo") as folder:
        progress.note("1/5  Train a small ViT on scikit-learn's handwritten digits")
        start = create_digits_vit(folder / "start", seed=seed)
        changes = {"seed": seed} if epochs is None else {"seed": seed, "epochs": epochs}
        trained = finetune(digits_config(start, folder / _CHECKPOINT, **changes))
        progress.note("2/5  Export it, preprocessing inside the graph")
        bundle = export(folder / _CHECKPOINT, folder / _BUNDLE)
        progress.note("3/5  FP16 and INT8 forms, and the engines that this machine can build")
        recipe = Recipe(dataset="digits", split="train", count=256, seed=seed)
        bundle = build(bundle, ["fp16", "int8"], recipe=recipe).bundle
        progress.note("4/5  Compare every form with PyTorch on the test images")
        test = load_dataset("digits", "test")
        report = bench(bundle, test, baseline=folder / _CHECKPOINT, command="vitdeploy demo", seed=seed)
        page = render_html(report)
        save(report, bundle, page)
        write_atomically(folder / _REPORT, report.dumps() + "\n")
        write_atomically(folder / "report.html", page)
        _write_digit(test.image(0), folder / "digit.png")
        progress.note("5/5  Search by an image: the same weights give each test image a vector")
        found, alike = _nearest(export(folder / _CHECKPOINT, folder / _VECTORS, task="embedding"), test)
        shutil.rmtree(folder / "start")
    return DemoResult(Path(output), trained, report, test.labels[test.label_ids[0]], found, alike)


def _nearest(bundle: Bundle, images: ImageDataset) -> tuple[tuple[str, ...], float]:
    """The classes of the images whose vectors are nearest to the first one's, itself left out, the nearest first; and
    how many of every image's nearest are of its own class, 0..1."""
    import numpy as np

    from vitdeploy.evaluation.vectors import nearest
    from vitdeploy.models.tasks import unit
    from vitdeploy.runtime import load

    with load(bundle, precision="fp32") as model:
        vectors = unit(np.concatenate([model.embed(part) for part in images.parts(range(len(images)))]))
    classes = images.label_ids[nearest(vectors, vectors, _NEIGHBOURS)]
    alike = float((classes == images.label_ids[:, None]).mean())
    return tuple(images.labels[index] for index in classes[0]), alike


def _write_digit(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)
