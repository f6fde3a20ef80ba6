"""A bundle or checkpoint and an image -> pictures in a folder, and in the bundle where that is asked for."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__
from vitdeploy.bundle import Bundle
from vitdeploy.core import progress
from vitdeploy.core.errors import InputError
from vitdeploy.core.storage import check_apart, check_output, lists_all, staged_folder
from vitdeploy.data.images import Source, decode
from vitdeploy.explain.inside import Inside
from vitdeploy.explain.rollout import position_similarity, rollout, token_maps

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Explanation", "explain", "look_inside"]

_FACTS = "explain.json"
_WHAT = "folder of vitdeploy explain"


@dataclass(frozen=True)
class Explanation:
    """What was seen and drawn.

    `rolled` (rows, columns) is the rollout of all layers, `layers_alone` (layers, rows, columns) the attention of each,
    both in multiples of an even spread; `similarity` is (rows, columns, rows, columns) or None; `pictures` the files.
    """

    inside: Inside
    rolled: np.ndarray
    layers_alone: np.ndarray
    similarity: np.ndarray | None
    pictures: tuple[Path, ...]
    in_bundle: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Explanation by {self.inside.source}: {self.inside.prediction.label}, {len(self.pictures)} pictures>"

    def _repr_html_(self) -> str:
        """For a notebook: the pictures, of those files that are still there."""
        from vitdeploy.core.notebook import picture

        return "".join(picture(path.read_bytes(), path.stem) for path in self.pictures if path.is_file())

    def to_json(self) -> dict[str, Any]:
        inside, last = self.inside, self.rolled
        row, column = np.unravel_index(int(last.argmax()), last.shape)
        return {
            "vitdeploy": __version__,
            "model": inside.source,
            "form": inside.form,
            "prediction": {"label": inside.prediction.label, "score": inside.prediction.score},
            "grid": list(inside.grid),
            "patch_size": list(inside.patch_size),
            "special_tokens": inside.special_tokens,
            "attention_of": inside.looking,
            "layers": len(self.layers_alone),
            "rollout": np.round(last, 4).tolist(),
            "strongest_patch": {"row": int(row), "column": int(column), "times_even": round(float(last.max()), 4)},
            "no_positions": inside.no_positions,
            "pictures": [path.name for path in self.pictures],
            "in_bundle": list(self.in_bundle),
        }


def look_inside(
    model: str | os.PathLike[str] | Bundle,
    image: Source,
    *,
    precision: str | None = None,
    trust_remote_code: bool = False,
) -> Inside:
    """Run a model on one image and keep its attention, position embeddings and the pixels that it sees.

    Args:
        model: a bundle, or a checkpoint (Hub id or folder).
        image: as `vitdeploy.data.images.decode` takes it.
        precision: form of a bundle, fp32 by default; a checkpoint runs in PyTorch.
        trust_remote_code: run Python code that comes with a checkpoint.

    Raises:
        ModelError: the model has no attention over one grid of patches.
        ImageError, BundleError, InputError: the image, bundle or form can't be used.
    """
    from vitdeploy.explain.graph import look_inside_bundle
    from vitdeploy.explain.module import look_inside_checkpoint

    pixels = decode(image)
    if isinstance(model, Bundle) or Bundle.is_bundle(Path(model)):
        bundle = model if isinstance(model, Bundle) else Bundle.open(model)
        with progress.task("Running the graph"):
            return look_inside_bundle(bundle, pixels, precision or "fp32")
    if precision is not None:
        raise InputError(
            f"{os.fspath(model)} is not a bundle, so it has no forms to choose from", hint="leave --precision out"
        )
    from vitdeploy.models.checkpoints import load_checkpoint

    with progress.task("Running the model"):
        return look_inside_checkpoint(load_checkpoint(model, trust_remote_code=trust_remote_code), pixels)


def explain(
    model: str | os.PathLike[str],
    image: Source,
    output: str | os.PathLike[str],
    *,
    precision: str | None = None,
    add_to_bundle: bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Explanation:
    """Draw attention rollout, position similarity and patches as PNG files, with their numbers in explain.json.

    Args:
        model, image, precision, trust_remote_code: as `look_inside` takes them.
        output: the folder to write.
        add_to_bundle: also put the pictures into the bundle, for the benchmark's report. They show the image.
        overwrite: replace an `output` that an earlier call wrote.

    Raises:
        OutputExistsError: `output` exists.
        InputError: `add_to_bundle` for a checkpoint.
        As `look_inside`.
    """
    folder = Path(output)
    check_output(folder, overwrite=overwrite, ours=_is_ours, what=_WHAT)
    check_apart(folder, (model, image))
    if add_to_bundle and not Bundle.is_bundle(Path(model)):
        raise InputError(
            f"{os.fspath(model)} is not a bundle, so pictures can't be added to it",
            hint="export it first, or leave --add-to-bundle out",
        )
    if add_to_bundle:
        Bundle.open(model).check_changeable()
    inside = look_inside(model, image, precision=precision, trust_remote_code=trust_remote_code)
    rolled = token_maps(rollout(inside.attentions)[-1:], inside.readout, inside.grid)[0]
    alone = token_maps([heads.mean(axis=0) for heads in inside.attentions], inside.readout, inside.grid)
    similarity = None if inside.positions is None else position_similarity(inside.positions, inside.grid)
    drawn = {name: _png(picture) for name, picture in _draw(inside, rolled, alone, similarity).items()}
    in_bundle = tuple(f"explain/{name}" for name in drawn) if add_to_bundle else ()
    result = Explanation(inside, rolled, alone, similarity, tuple(folder / name for name in drawn), in_bundle)
    with staged_folder(folder, overwrite=overwrite, ours=_is_ours, what=_WHAT) as staging:
        for name, content in drawn.items():
            (staging / name).write_bytes(content)
        text = json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n"
        (staging / _FACTS).write_text(text, encoding="utf-8")
    if add_to_bundle:
        _add(Bundle.open(model), drawn, inside)
    return result


def _draw(inside: Inside, rolled: np.ndarray, alone: np.ndarray, similarity: np.ndarray | None) -> dict[str, Image]:
    from vitdeploy.explain.pictures import draw_patches, draw_positions, draw_rollout

    pictures = {"attention-rollout.png": draw_rollout(inside, rolled, alone)}
    if similarity is not None:
        pictures["position-similarity.png"] = draw_positions(inside, similarity)
    else:
        progress.note(f"No picture of positions: {inside.no_positions}.")
    pictures["patches.png"] = draw_patches(inside)
    return pictures


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _add(bundle: Bundle, drawn: dict[str, bytes], inside: Inside) -> None:
    with bundle.edit(patient=True) as editor:
        for name, content in drawn.items():
            path = f"explain/{name}"
            editor.path_for(path).write_bytes(content)
            editor.add(path, kind="explanation", built_with={"vitdeploy": __version__, "form": inside.form})


def _is_ours(folder: Path) -> bool:
    return lists_all(folder, _FACTS, "pictures")
