"""Seeded tiny classifiers of every family that export is tested with, from their configs alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE = 32
CLASSES = 4
PLAIN = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": SIZE,
    "patch_size": 8,
}


def _vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**PLAIN, num_labels=CLASSES))


def _deit() -> Any:
    from transformers import DeiTConfig, DeiTForImageClassification

    return DeiTForImageClassification(DeiTConfig(**PLAIN, num_labels=CLASSES))


def _deit_distilled() -> Any:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return DeiTForImageClassificationWithTeacher(DeiTConfig(**PLAIN, num_labels=CLASSES))


def _beit() -> Any:
    from transformers import BeitConfig, BeitForImageClassification

    return BeitForImageClassification(
        BeitConfig(
            **PLAIN,
            num_labels=CLASSES,
            use_relative_position_bias=True,
            use_mean_pooling=True,
            layer_scale_init_value=0.1,
        )
    )


def _beit_absolute() -> Any:
    from transformers import BeitConfig, BeitForImageClassification

    return BeitForImageClassification(
        BeitConfig(**PLAIN, num_labels=CLASSES, use_absolute_position_embeddings=True, use_mean_pooling=False)
    )


def _dinov2() -> Any:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    return Dinov2ForImageClassification(Dinov2Config(**PLAIN, num_labels=CLASSES, layerscale_value=0.5))


def _dinov2_swiglu() -> Any:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    return Dinov2ForImageClassification(
        Dinov2Config(**PLAIN, num_labels=CLASSES, layerscale_value=0.5, use_swiglu_ffn=True)
    )


def _dinov2_registers() -> Any:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    return Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(**PLAIN, num_labels=CLASSES, layerscale_value=0.5, num_register_tokens=3)
    )


_WINDOWED = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": SIZE, "patch_size": 4}


def _swin() -> Any:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(SwinConfig(**_WINDOWED, window_size=4, num_labels=CLASSES))


def _swinv2() -> Any:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    return Swinv2ForImageClassification(Swinv2Config(**_WINDOWED, window_size=4, num_labels=CLASSES))


def _convnext() -> Any:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(
            hidden_sizes=[16, 24, 32, 48],
            depths=[1, 1, 2, 1],
            image_size=SIZE,
            num_labels=CLASSES,
            layer_scale_init_value=0.1,
        )
    )


def _convnextv2() -> Any:
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    return ConvNextV2ForImageClassification(
        ConvNextV2Config(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], image_size=SIZE, num_labels=CLASSES)
    )


def _siglip() -> Any:
    from transformers import SiglipConfig, SiglipForImageClassification

    return SiglipForImageClassification(SiglipConfig(vision_config=dict(PLAIN), num_labels=CLASSES))


def _clip() -> Any:
    from transformers import CLIPConfig, CLIPForImageClassification

    return CLIPForImageClassification(CLIPConfig(vision_config=dict(PLAIN), num_labels=CLASSES))


def _metaclip_2() -> Any:
    from transformers import MetaClip2Config, MetaClip2ForImageClassification

    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    return MetaClip2ForImageClassification(
        MetaClip2Config(vision_config=dict(PLAIN), text_config={**text, "vocab_size": 99}, num_labels=CLASSES)
    )


def _siglip2() -> Any:
    """It takes patches that were cut before, not images."""
    from transformers import Siglip2Config, Siglip2ForImageClassification

    vision = {name: value for name, value in PLAIN.items() if name != "image_size"}
    return Siglip2ForImageClassification(Siglip2Config(vision_config={**vision, "num_patches": 16}, num_labels=CLASSES))


def _ijepa() -> Any:
    from transformers import IJepaConfig, IJepaForImageClassification

    return IJepaForImageClassification(IJepaConfig(**PLAIN, num_labels=CLASSES))


def _vit_msn() -> Any:
    from transformers import ViTMSNConfig, ViTMSNForImageClassification

    return ViTMSNForImageClassification(ViTMSNConfig(**PLAIN, num_labels=CLASSES))


def _data2vec() -> Any:
    from transformers import Data2VecVisionConfig, Data2VecVisionForImageClassification

    return Data2VecVisionForImageClassification(
        Data2VecVisionConfig(**PLAIN, num_labels=CLASSES, use_relative_position_bias=True)
    )


def _resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 24], depths=[1, 1], num_labels=CLASSES)
    )


def _hiera() -> Any:
    from transformers import HieraConfig, HieraForImageClassification

    return HieraForImageClassification(
        HieraConfig(
            embed_dim=24,
            image_size=[64, 64],
            depths=[1, 1],
            num_heads=[1, 2],
            query_stride=[2, 2],
            num_query_pool=1,
            num_labels=CLASSES,
        )
    )


def pyramid(config: Any, model: Any) -> Any:
    """A PVT or PVT v2."""
    return model(
        config(
            image_size=SIZE,
            hidden_sizes=[16, 24, 32, 48],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 2, 4],
            num_labels=CLASSES,
        )
    )


def _pvt() -> Any:
    """transformers saves it with no names for its classes."""
    from transformers import PvtConfig, PvtForImageClassification

    return pyramid(PvtConfig, PvtForImageClassification)


def _pvt_v2() -> Any:
    from transformers import PvtV2Config, PvtV2ForImageClassification

    return pyramid(PvtV2Config, PvtV2ForImageClassification)


FAMILIES: dict[str, Callable[[], Any]] = {
    "vit": _vit,
    "deit": _deit,
    "deit-distilled": _deit_distilled,
    "beit": _beit,
    "beit-absolute": _beit_absolute,
    "data2vec": _data2vec,
    "dinov2": _dinov2,
    "dinov2-swiglu": _dinov2_swiglu,
    "dinov2-registers": _dinov2_registers,
    "swin": _swin,
    "swinv2": _swinv2,
    "convnext": _convnext,
    "convnextv2": _convnextv2,
    "siglip": _siglip,
    "clip": _clip,
    "metaclip-2": _metaclip_2,
    "ijepa": _ijepa,
    "vit-msn": _vit_msn,
    "resnet": _resnet,
    "hiera": _hiera,
    "pvt": _pvt,
    "pvt-v2": _pvt_v2,
    "siglip2": _siglip2,
}


def write_family(name: str, folder: Path, *, size: int = SIZE) -> Path:
    """The checkpoint of a family, with an image processor that makes pixel values of its size."""
    import torch
    from transformers import ViTImageProcessor

    torch.manual_seed(0)
    module = FAMILIES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            if (parameter == parameter.flatten()[0]).all():  # biases, LayerNorm, tables: zeros hide what reads them
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.mul_(3)  # logits that differ in the first digits
    module.save_pretrained(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return folder
