"""Image towers that give an embedding: which class of transformers, and what makes one vector of its tokens.

One row a kind of checkpoint. The vector is the one that transformers itself gives: what a classifier of the family
reads, what a projection makes for words to be compared with, or what an attention pooling head gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitdeploy.core.errors import ModelError
from vitdeploy.core.specs import EmbeddingSpec
from vitdeploy.models.folders import CheckpointFolder

__all__ = ["TOWERS", "Tower", "is_tower", "tower_of", "unit_length"]

_CLASS_TOKEN = "the class token behind the last LayerNorm"
_PATCHES = "patch sequences of any shape (NaFlex), no images of one size"


def _pooled(output: Any) -> Any:
    return output.pooler_output


@dataclass(frozen=True)
class Tower:
    """A kind of checkpoint, and the embedding that it gives.

    Args:
        model_type: of its config.json.
        architecture: the class of transformers that holds the tower alone.
        pooling: what makes one vector of the tokens, in words.
        pool: that, of the module's output: a tensor (batch, dimensions).
        width: the setting that says how many dimensions that is.
        normalized: whether the model itself compares vectors of length 1, as those trained with words do.
        part: the setting that the tower's own configuration is in, for checkpoints that have more in them.
        saved_as: classes that such a checkpoint may have been saved as; none: any.
        options: what the class is made with.
    """

    model_type: str
    architecture: str
    pooling: Callable[[Any], str]
    pool: Callable[[Any], Any] = _pooled
    width: str = "hidden_size"
    normalized: bool = False
    part: str | None = None
    saved_as: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, whole: Any) -> Any:
        """The tower's own configuration in a checkpoint's."""
        if self.part is None:
            return whole
        own = getattr(whole, self.part)
        if hasattr(whole, self.width) and hasattr(own, self.width):  # CLIP: the whole model's decides
            setattr(own, self.width, getattr(whole, self.width))
        return own

    def spec(self, config: Any, normalized: bool | None = None) -> EmbeddingSpec:
        """What its vectors are; `config` is the tower's own."""
        length_1 = self.normalized if normalized is None else normalized
        return EmbeddingSpec(self.pooling(config), length_1, int(getattr(config, self.width)))

    def answer(self, spec: EmbeddingSpec) -> Callable[[Any], Any]:
        """What makes vectors (batch, dimensions) of the module's output."""
        return (lambda output: unit_length(self.pool(output))) if spec.normalized else self.pool


def unit_length(vectors: Any) -> Any:
    """Tensors (batch, n) at length 1, in single steps, so that each can be looked at for what FP16 would do to it."""
    return vectors / (vectors * vectors).sum(dim=-1, keepdim=True).sqrt()


def _class_token(output: Any) -> Any:
    return output.last_hidden_state[:, 0]


def _of_beit(config: Any) -> str:
    return "the mean of the patches and a LayerNorm" if config.use_mean_pooling else _CLASS_TOKEN


def _is(words: str) -> Callable[[Any], str]:
    return lambda config: words


_VIT = Tower("vit", "ViTModel", _is(_CLASS_TOKEN), _class_token, options={"add_pooling_layer": False})
_CLIP = Tower(
    "clip_vision_model",
    "CLIPVisionModelWithProjection",
    _is("the class token and the projection to the words' space"),
    lambda output: output.image_embeds,
    width="projection_dim",
    normalized=True,
)
_SIGLIP = Tower("siglip_vision_model", "SiglipVisionModel", _is("the attention pooling head"), normalized=True)
TOWERS: tuple[Tower, ...] = (
    _VIT,
    replace(_VIT, model_type="deit", architecture="DeiTModel"),
    Tower("beit", "BeitModel", _of_beit),
    Tower("dinov2", "Dinov2Model", _is(_CLASS_TOKEN)),
    Tower("dinov2_with_registers", "Dinov2WithRegistersModel", _is(_CLASS_TOKEN)),
    Tower("dinov3_vit", "DINOv3ViTModel", _is(_CLASS_TOKEN)),
    replace(_CLIP, model_type="clip", part="vision_config"),
    Tower("clip_vision_model", "CLIPVisionModel", _is(_CLASS_TOKEN), saved_as=("CLIPVisionModel",)),
    _CLIP,
    replace(_SIGLIP, model_type="siglip", part="vision_config"),
    _SIGLIP,
)
_REFUSED = {"siglip2": _PATCHES, "siglip2_vision_model": _PATCHES}


def tower_of(folder: CheckpointFolder) -> Tower:
    """The row of a checkpoint.

    Raises:
        ModelError: its family's embedding is not known here.
    """
    kind = str(folder.config["model_type"])
    found = _find(folder)
    if found is not None:
        return found
    if kind in _REFUSED:
        raise ModelError(
            f"{folder.name} is a {kind} model, which takes {_REFUSED[kind]}",
            hint="take a SigLIP 2 of one size, such as google/siglip2-base-patch16-224",
        )
    raise ModelError(
        f"{folder.name} is a {kind} model, and what its embedding is, is not known here",
        hint=f"known are {', '.join(dict.fromkeys(tower.model_type for tower in TOWERS))}; a classifier gives what it"
        " reads as a further output: export --output-features",
    )


def is_tower(folder: CheckpointFolder) -> bool:
    """Whether a checkpoint says of itself that it is no classifier, and has an embedding that is known here."""
    saved = _saved_as(folder)
    return bool(saved) and "ForImageClassification" not in saved and _find(folder) is not None


def _find(folder: CheckpointFolder) -> Tower | None:
    kind, saved = folder.config["model_type"], _saved_as(folder)
    fitting = (
        tower for tower in TOWERS if tower.model_type == kind and (not tower.saved_as or saved in tower.saved_as)
    )
    return next(fitting, None)


def _saved_as(folder: CheckpointFolder) -> str:
    """The class that a checkpoint was saved as; nothing where it does not say."""
    named = folder.config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""
