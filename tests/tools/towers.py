"""Seeded tiny checkpoints of every image tower whose embedding is known, and words for those that have learnt some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tools.families import PLAIN, SIZE

WORDS = ("cat", "dog", "red car", "a photo", "photo of a", "this is a photo of")
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {
    **_IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 40,
}


def _plain(name: str, config: str, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**PLAIN, **more))

    return make


def _two(name: str, config: str, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        text = {**_TEXT, **more.get("text_config", {})}
        whole = {"vision_config": dict(PLAIN), **more, "text_config": text}
        return getattr(transformers, name)(getattr(transformers, config)(**whole))

    return make


def _pvt() -> Any:
    from transformers import PvtConfig, PvtModel

    from tests.tools.families import pyramid

    return pyramid(PvtConfig, PvtModel)


_GEMMA = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}  # as SigLIP 2's tokenizer has them
_RELATIVE = {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}
TOWERS: dict[str, Callable[[], Any]] = {
    "vit": _plain("ViTModel", "ViTConfig"),
    "deit": _plain("DeiTModel", "DeiTConfig"),
    "beit": _plain("BeitModel", "BeitConfig", use_mean_pooling=True, **_RELATIVE),
    "beit-class": _plain("BeitModel", "BeitConfig", use_mean_pooling=False, **_RELATIVE),
    "dinov2": _plain("Dinov2Model", "Dinov2Config", layerscale_value=0.5),
    "dinov2-registers": _plain("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", num_register_tokens=3),
    "dinov3": _plain("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2),
    "clip": _two("CLIPModel", "CLIPConfig", projection_dim=24),
    "clip-projected": _plain("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=20),
    "clip-tower": _plain("CLIPVisionModel", "CLIPVisionConfig"),
    "siglip": _two("SiglipModel", "SiglipConfig", text_config={"projection_size": 48}),
    "siglip-tower": _plain("SiglipVisionModel", "SiglipVisionConfig"),
    "siglip2": _two("SiglipModel", "SiglipConfig", text_config={"projection_size": 48, **_GEMMA}),
    "vit-mae": _plain("ViTMAEForPreTraining", "ViTMAEConfig", decoder_num_hidden_layers=1, decoder_hidden_size=32),
    "vit-msn": _plain("ViTMSNModel", "ViTMSNConfig"),
    "pvt": _pvt,
    "data2vec": _plain("Data2VecVisionModel", "Data2VecVisionConfig", use_mean_pooling=True, **_RELATIVE),
}


def write_tower(name: str, folder: Path, *, words: bool = False) -> Path:
    """The checkpoint of a tower with an image processor; `words`: with a tokenizer for `WORDS`."""
    import torch
    from transformers import ViTImageProcessor

    torch.manual_seed(0)
    module = TOWERS[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():  # zeros hide what reads them
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.mul_(3)
    module.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    if words:
        (_write_letters if name == "siglip2" else _write_tokenizer)(folder)
    return folder


def _write_letters(folder: Path) -> None:
    """SigLIP 2's own tokenizer, which knows letters alone here."""
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), "▁", "."]
    vocabulary = {word: place for place, word in enumerate([*special, *letters])}
    Siglip2Tokenizer(vocab=vocabulary, merges=[], padding_side="right").save_pretrained(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<start>", "<end>", "<unknown>"]
    known = dict.fromkeys([*special, *" ".join(WORDS).split(), "This", "."])
    made = Tokenizer(WordLevel({word: place for place, word in enumerate(known)}, unk_token="<unknown>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing("<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(folder)
