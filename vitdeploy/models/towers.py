"""Image towers that give an embedding: which class of transformers, and what makes one vector of its tokens.

One row a kind of checkpoint. The vector is the one that transformers itself gives: what a classifier of the family
reads, what a projection makes for words to be compared with, or what an attention pooling head gives. Kinds without a
row are taken as transformers' own tables of image models and backbones name them, and pooled by what their output is:
by their own code where it pools, else by the mean over the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.specs import EmbeddingSpec
from vitdeploy.core.text import first_line
from vitdeploy.models.folders import CheckpointFolder

__all__ = ["TOWERS", "Tower", "check_inputs", "is_tower", "pooled", "tower_of", "unit_length"]

_CLASS_TOKEN = "the class token behind the last LayerNorm"
_PATCHES = "takes patch sequences of any shape (NaFlex), no images of one size"
_FAMILIES = "docs/export.md has the families"
_HINT = f"a classifier gives what it reads as a further output: export --output-features; {_FAMILIES}"


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
        width: the setting that says how many dimensions that is; "": none does, and a run tells.
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

    def spec(self, module: Any, normalized: bool | None = None) -> EmbeddingSpec:
        """What its vectors are; `module` is the tower."""
        length_1 = self.normalized if normalized is None else normalized
        config = module.config
        width = int(getattr(config, self.width)) if self.width else self.pool(_run(module)).shape[1]
        return EmbeddingSpec(self.pooling(config), length_1, width)

    def answer(self, spec: EmbeddingSpec) -> Callable[[Any], Any]:
        """What makes vectors (batch, dimensions) of the module's output."""
        return (lambda output: unit_length(self.pool(output))) if spec.normalized else self.pool


def unit_length(vectors: Any) -> Any:
    """Tensors (batch, n) at length 1, in single steps, so that each can be looked at for what FP16 would do to it."""
    return vectors / (vectors * vectors).sum(dim=-1, keepdim=True).sqrt()


def _class_token(output: Any) -> Any:
    return output.last_hidden_state[:, 0]


def _patches_mean(output: Any) -> Any:
    return output.last_hidden_state[:, 1:].mean(dim=1)


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
_DATA2VEC = Tower("data2vec-vision", "Data2VecVisionModel", _of_beit)
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
    replace(_VIT, model_type="vit_mae", pooling=_is(f"{_CLASS_TOKEN}, no patch hidden")),  # the same weights' names
    replace(_VIT, model_type="vit_msn", architecture="ViTMSNModel", options={}),
    Tower("pvt", "PvtModel", _is(_CLASS_TOKEN), _class_token, width=""),
    replace(_DATA2VEC, saved_as=("Data2VecVisionForImageClassification",), options={"add_pooling_layer": True}),
    replace(_DATA2VEC, pooling=_is("the mean of the patches"), pool=_patches_mean),
)
_QUERIES = "finds objects: it gives a vector for each, none of the image"
_VIDEO = "takes videos"
_TEXT = "reads and writes text beside images"
_OTHER_INPUTS = {
    **dict.fromkeys(("siglip2", "siglip2_vision_model"), _PATCHES),
    **dict.fromkeys(("timesformer", "videomae", "videoprism_vision_model", "vivit"), _VIDEO),
    **dict.fromkeys(("cohere2_vision", "llama4", "mllama", "shieldgemma2"), _TEXT),
    "imagegpt": "takes colours as tokens, no images",
}
"""What transformers lists among image models and classifiers, and takes something else, in words behind their name."""
_REFUSED = {
    **_OTHER_INPUTS,
    **dict.fromkeys(("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer"), _QUERIES),
    "depth_pro": "gives depths, and features of pieces of the image",
    "timm_backbone": "transformers fills with timm's own weights by name, and never from a checkpoint",
}
"""Image models without one vector of an image, and why."""


@dataclass(frozen=True)
class _Pooling:
    """What makes one vector of an output of no known family, where `fits` says that it is there."""

    words: str
    fits: Callable[[Any], bool]
    pool: Callable[[Any], Any]


_MAP = "the mean of the last feature map"
_POOLINGS = (
    _Pooling(
        "the pooling of the model's own code",
        lambda out: _has(out, "pooler_output"),
        lambda out: out.pooler_output.flatten(1),
    ),
    _Pooling(_MAP, lambda out: _has(out, "feature_maps"), lambda out: out.feature_maps[-1].mean(dim=(2, 3))),
    _Pooling(_MAP, lambda out: _rank(out) == 4, lambda out: out.last_hidden_state.mean(dim=(2, 3))),
    _Pooling(
        "the mean of the last layer's tokens",
        lambda out: _rank(out) == 3,
        lambda out: out.last_hidden_state.mean(dim=1),
    ),
)


def _has(output: Any, name: str) -> bool:
    return getattr(output, name, None) is not None


def _rank(output: Any) -> int:
    return output.last_hidden_state.ndim if _has(output, "last_hidden_state") else 0


def _run(module: Any) -> Any:
    """The output for an image of zeros, of the size that the configuration names."""
    torch = require("torch", extra="build")
    config = module.config
    named = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", [0])[1:]  # timm's
    size = named or getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        return module.eval()(pixel_values=torch.zeros(1, 3, height, width))


def pooled(tower: Tower, module: Any, name: str) -> Tower:
    """The tower with what makes a vector of its output, where its family has no row; `name` is the checkpoint's.

    Raises:
        ModelError: nothing known here does, or it does not run.
    """
    if tower.pool is not _by_output:
        return tower
    try:
        output = _run(module)
        found = next(pooling for pooling in _POOLINGS if pooling.fits(output))
    except (StopIteration, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        line = first_line(error) if str(error) else "its output has no tokens and no feature map"
        raise ModelError(f"{tower.architecture} gives no vector of an image: {line}", hint=_HINT) from error
    return replace(tower, pooling=_is(found.words), pool=found.pool)


def tower_of(folder: CheckpointFolder) -> Tower:
    """The row of a checkpoint.

    Raises:
        ModelError: its family's embedding is not known here.
    """
    kind = str(folder.config["model_type"])
    found = _find(folder)
    if found is not None:
        return found
    _refuse(folder, _REFUSED)
    raise ModelError(f"{folder.name} is a {kind} model, which transformers does not list as one of images", hint=_HINT)


def check_inputs(folder: CheckpointFolder) -> None:
    """
    Raises:
        ModelError: its family takes no images, whatever it is to answer.
    """
    _refuse(folder, _OTHER_INPUTS)


def _refuse(folder: CheckpointFolder, reasons: Mapping[str, str]) -> None:
    kind = str(folder.config["model_type"])
    if kind in reasons:
        one_size = "take a SigLIP 2 of one size, such as google/siglip2-base-patch16-224"
        hint = one_size if "siglip" in kind else _HINT if reasons is _REFUSED else _FAMILIES
        raise ModelError(f"{folder.name} is a {kind} model, which {reasons[kind]}", hint=hint)


def is_tower(folder: CheckpointFolder) -> bool:
    """Whether a checkpoint says of itself that it is no classifier, and has an embedding that is known here."""
    saved = _saved_as(folder)
    return bool(saved) and "ForImageClassification" not in saved and _find(folder) is not None


def _find(folder: CheckpointFolder) -> Tower | None:
    kind, saved = folder.config["model_type"], _saved_as(folder)
    fitting = (
        tower for tower in TOWERS if tower.model_type == kind and (not tower.saved_as or saved in tower.saved_as)
    )
    backbones, models = _architectures()
    if saved in backbones and kind not in _REFUSED:
        return Tower(kind, saved, _is(_MAP), _by_output, width="")
    found = next(fitting, None)
    if found is None and kind in models and kind not in _REFUSED:
        found = Tower(kind, models[kind], _is(""), _by_output, width="")
    return found


def _architectures() -> tuple[set[str], dict[str, str]]:
    """transformers' own tables: the classes of backbones, and that of each kind of image model."""
    auto = require("transformers.models.auto.modeling_auto", extra="build")
    return set(auto.MODEL_FOR_BACKBONE_MAPPING_NAMES.values()), dict(auto.MODEL_FOR_IMAGE_MAPPING_NAMES)


def _by_output(output: Any) -> Any:
    raise AssertionError("`pooled` says what makes a vector of this")


def _saved_as(folder: CheckpointFolder) -> str:
    """The class that a checkpoint was saved as; nothing where it does not say."""
    named = folder.config.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    timms_own = folder.config["model_type"] == "timm_wrapper" and folder.config.get("num_classes") == 0
    return "TimmWrapperModel" if timms_own else ""
