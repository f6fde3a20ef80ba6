"""Search images by an image: the embeddings of a folder in an index of FAISS.

    python examples/search/search.py index bundles/vectors photos photos.index
    python examples/search/search.py query photos.index bundles/vectors cat.png
    python examples/search/web.py photos.index bundles/vectors          # the same with a page

An index is a folder:

    vectors.faiss   the vectors at length 1, for exact search by inner product: their cosine
    images.jsonl    a line for each of them: the image's path from the folder that was indexed
    index.json      that folder, and what the vectors were made by: the model's weights, what a vector is, the form

So what asks an index is compared with what made it. Another model is refused. Another form of the same bundle, as INT8
queries on an index of FP32, is a choice, and is said; where `vitdeploy bench` measured it, with how many neighbours it
finds. Indexing goes on where it was stopped. Needs `pip install '.[cpu,search]'`, or the extra of another backend.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vitdeploy import BenchReport, Bundle, Classifier, InputError, VitdeployError, embed_files, load
from vitdeploy.bundle.measurements import last_report
from vitdeploy.core.storage import lists_all, read_json, staged_folder
from vitdeploy.core.text import visible
from vitdeploy.models.tasks import EMBEDDING, unit

SCHEMA_VERSION = 1
FACTS, IMAGES, VECTORS = "index.json", "images.jsonl", "vectors.faiss"
AT_ONCE = 65_536  # vectors


@dataclass(frozen=True)
class Maker:
    """What makes vectors: `weights_sha256` and `embedding` say which ones, `precision`, `backend` and `sha256` (of the
    form's file) how exactly; `bundle_sha256` is that of the FP32 graph, which is exported anew with other versions."""

    name: str
    weights_sha256: str | None
    bundle_sha256: str | None
    embedding: dict[str, Any]
    precision: str
    backend: str
    sha256: str

    @classmethod
    def of(cls, model: Classifier) -> Maker:
        """That of an open bundle.

        Raises:
            InputError: it is a classifier.
        """
        described = model.describe()
        model.task.require(EMBEDDING, described["bundle"], "search")
        bundle = Bundle.open(described["bundle"])
        single = bundle.find(kind="onnx", precision="fp32")
        return cls(
            name=bundle.path.resolve().name,
            weights_sha256=bundle.manifest.model.get("weights_sha256"),
            bundle_sha256=None if single is None else single.sha256,
            embedding=described["embedding"],
            precision=model.precision,
            backend=model.backend,
            sha256=described["sha256"],
        )

    @property
    def form(self) -> str:
        return f"{self.precision} of {self.name}"


@dataclass(frozen=True)
class Hit:
    """An image that was found: its number in the index, its path, and how alike it is, -1..1."""

    number: int
    image: str
    cosine: float


def build(model: Classifier, folder: Path, output: Path, *, overwrite: bool = False) -> tuple[int, int]:
    """Index the images of a folder; how many there are, and how many could not be read.

    Args:
        model: an open embedding.
        output: the index's folder; what a stopped run answered is kept beside it, and gone on with.
        overwrite: replace an index that is there.

    Raises:
        InputError: a classifier, or a folder of tables and no images.
        OutputExistsError: `output` is there, and `overwrite` is off or it is no index.
    """
    maker = Maker.of(model)
    with staged_folder(output, overwrite=overwrite, ours=is_ours, what="index") as staging:
        answers = output.with_name(f"{output.name}.vectors.npy")
        done = embed_files(model, [folder], answers, overwrite=True)
        names = answers.with_name(f"{answers.name}.images.jsonl")
        rows = [json.loads(line) for line in names.read_text(encoding="utf-8").splitlines()]
        if any(row.get("row") is not None for row in rows):
            raise InputError(f"{folder} holds tables and no image files", hint="index a folder of images")
        vectors = np.load(answers, mmap_mode="r")  # (images, dimensions), NaN where an image could not be read
        index = faiss.IndexFlatIP(vectors.shape[1])
        for start in range(0, len(vectors), AT_ONCE):
            some = np.asarray(vectors[start : start + AT_ONCE])
            index.add(unit(some[np.isfinite(some).all(axis=1)]))
        kept = [os.path.relpath(row["image"], folder) for row in rows if row["error"] is None]
        if len(kept) != index.ntotal or not kept:
            raise InputError(f"no image of {folder} could be read", hint="check the files")
        faiss.write_index(index, str(staging / VECTORS))
        text = "".join(json.dumps({"image": name}, ensure_ascii=False) + "\n" for name in kept)
        (staging / IMAGES).write_text(text, encoding="utf-8")
        facts = {
            "schema_version": SCHEMA_VERSION,
            "made_by": asdict(maker),
            "folder": os.path.relpath(folder, output.parent),
            "images": len(kept),
            "files": [IMAGES, VECTORS],
        }
        (staging / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for file in (answers, names):
        file.unlink()
    return done.images, done.failed


def is_ours(folder: Path) -> bool:
    """Whether a folder is an index, and holds nothing else."""
    return lists_all(folder, FACTS, "files")


class Index:
    """An index that was built, and the model that asks it.

    Raises:
        InputError: it is no index, or of another model than the one that asks.
    """

    def __init__(self, path: Path, model: Classifier) -> None:
        try:
            facts = read_json(path / FACTS)
            self.made_by = Maker(**facts["made_by"])
            lines = (path / IMAGES).read_text(encoding="utf-8").splitlines()
            self.images: list[str] = [json.loads(line)["image"] for line in lines]
            self.folder = path.parent / facts["folder"]
            self._index = faiss.read_index(str(path / VECTORS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{path} is no index that can be read: {error}", hint="make it: search.py index"
            ) from error
        self._model, self.asked_by = model, Maker.of(model)
        check_same_vectors(path, self.made_by, self.asked_by)
        if self._index.ntotal != len(self.images):
            raise InputError(f"{path} has more or fewer vectors than images", hint="make it again: search.py index")

    @cached_property
    def note(self) -> str | None:
        """How what asks differs from what made the index, and what that costs where it was measured; None: it is the
        same."""
        made, asks = self.made_by, self.asked_by
        if made.sha256 == asks.sha256:
            return None
        if made.bundle_sha256 != asks.bundle_sha256:
            return f"{asks.form} asks an index that another export of the same weights made ({made.form})"
        found = measured(Path(self._model.describe()["bundle"]), made.precision, asks.precision)
        cost = "vitdeploy bench says how many neighbours that finds" if found is None else found
        return f"{asks.form} asks an index that {made.precision} made: {cost}"

    def path(self, number: int) -> Path:
        """Where image `number` lies."""
        return self.folder / self.images[number]

    def like(self, image: Any, count: int = 10) -> list[Hit]:
        """The images most like one, the best first.

        Args:
            image: as `Classifier.embed` takes it.

        Raises:
            ImageError: it can't be read.
        """
        return self._nearest(unit(self._model.embed([image])), count)

    def like_number(self, number: int, count: int = 10) -> list[Hit]:
        """The images most like one of the index, itself left out."""
        found = self._nearest(self._index.reconstruct(number)[np.newaxis], count + 1)
        return [hit for hit in found if hit.number != number][:count]

    def _nearest(self, vectors: np.ndarray, count: int) -> list[Hit]:
        cosines, numbers = self._index.search(vectors, min(count, len(self.images)))
        pairs = zip(numbers[0].tolist(), cosines[0].tolist(), strict=True)
        return [Hit(number, self.images[number], cosine) for number, cosine in pairs]


def check_same_vectors(path: Path, made: Maker, asks: Maker) -> None:
    """Refuse an index whose vectors mean something else.

    Raises:
        InputError: it was made by other weights, or its vectors are another output of them.
    """
    what = None
    if made.embedding != asks.embedding:
        what = f"has other vectors ({made.embedding} and not {asks.embedding})"
    elif made.weights_sha256 != asks.weights_sha256:
        what = f"was made by other weights ({made.name} and not {asks.name})"
    if what is not None:
        raise InputError(
            f"{path} {what}: distances between them mean nothing", hint="make it anew with this bundle: search.py index"
        )


def measured(bundle: Path, made: str, asks: str) -> str | None:
    """What the bundle's benchmark says of queries by one form on an index by another, where one of them is FP32."""
    opened = Bundle.open(bundle)
    report = last_report(opened)
    other, column = (asks, "queries") if made == "fp32" else (made, "index") if asks == "fp32" else (None, "")
    if report is None or other is None:
        return None
    for row in BenchReport.read(opened.file(report)).rows:
        found = None if row.embedding is None or row.form != other else getattr(row.embedding, column)
        if found is not None and row.embedding is not None:
            return f"the benchmark found {found.value:.1%} of FP32's {row.embedding.k} nearest that way"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Search images by an image.")
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", help="index the images of a folder")
    index.add_argument("bundle")
    index.add_argument("folder", type=Path)
    index.add_argument("index", type=Path)
    index.add_argument("--overwrite", action="store_true", help="replace an index that is there")
    query = commands.add_parser("query", help="print the images most like one")
    query.add_argument("index", type=Path)
    query.add_argument("bundle")
    query.add_argument("image")
    query.add_argument("-k", "--count", type=int, default=5)
    for command in (index, query):
        command.add_argument("--backend", default="auto")
        command.add_argument("--precision", default="auto")
    given = parser.parse_args()
    try:
        with load(given.bundle, given.backend, given.precision) as model:
            if given.command == "index":
                images, failed = build(model, given.folder, given.index, overwrite=given.overwrite)
                how = f"{model.precision} on {model.backend}"
                print(f"{images - failed} images in {given.index}, by {how}; {failed} failed")
                return 0
            opened = Index(given.index, model)
            if opened.note is not None:
                print(visible(f"Note: {opened.note}."), file=sys.stderr)
            for hit in opened.like(given.image, given.count):
                print(visible(f"{hit.cosine:.4f}\t{opened.path(hit.number)}"))
    except VitdeployError as error:
        print(visible(f"{error.message}\n{error.hint}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
