"""Words as a classifier's last layer: the embeddings of sentences about them, as CLIP and SigLIP compare with images.

t_c     = mean over the templates of unit(text(template with word c)), at length 1 again      (Radford et al. 2021)
z_c     = exp(scale) unit(image) . t_c + bias                    the bias is SigLIP's (Zhai et al. 2023), 0 of CLIP
scores  = softmax(z), CLIP        sigmoid(z), SigLIP
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitdeploy.core import progress
from vitdeploy.core.errors import ModelError, require
from vitdeploy.core.text import first_line
from vitdeploy.models import hub
from vitdeploy.models.folders import CheckpointFolder
from vitdeploy.models.tasks import SINGLE_LABEL, TASKS, TEMPLATE, Task, TaskRequest
from vitdeploy.models.towers import unit_length

__all__ = ["FAMILIES", "Words", "words_of"]

_BATCH = 64  # sentences at a time
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_COPY = "copy tokenizer.json and tokenizer_config.json of the model it was made from into the folder"


@dataclass(frozen=True)
class _Family:
    """How a family reads sentences and what its logits mean.

    `padding` is what its tokenizer is called with, as transformers' own pipeline calls it.
    """

    task: Task
    padding: dict[str, Any]


FAMILIES = {
    "clip": _Family(SINGLE_LABEL, {"padding": True}),
    "siglip": _Family(TASKS["single_label_sigmoid"], {"padding": "max_length", "max_length": 64, "truncation": True}),
}


@dataclass(frozen=True)
class Words:
    """What makes logits of an image's vector: `weight` (dimensions, classes) has the scale in it, `bias` is (1,)."""

    task: Task
    weight: Any
    bias: Any
    templates: tuple[str, ...]

    def logits(self, vectors: Any) -> Any:
        """Logits (batch, classes) of an image tower's vectors (batch, dimensions), of any length."""
        return unit_length(vectors) @ self.weight.to(vectors) + self.bias.to(vectors)


def words_of(folder: CheckpointFolder, config: Any, request: TaskRequest) -> Words:
    """The last layer for the request's labels, by the checkpoint's own text tower and tokenizer.

    Raises:
        ModelError: the checkpoint has no text tower that is known here, no tokenizer, or a sentence is too long for it.
    """
    torch = require("torch", extra="build")
    family = FAMILIES.get(str(folder.config["model_type"]))
    if family is None:
        raise ModelError(
            f"{folder.name} is a {folder.config['model_type']} model, which has learnt no words",
            hint=f"take a checkpoint with image and text tower: {', '.join(FAMILIES)}",
        )
    templates = request.templates or (TEMPLATE,)
    module, tokenizer = _loaded(folder, config)
    rows = []
    with progress.task("Reading the words", total=len(request.labels), unit="words") as step, torch.inference_mode():
        for label in request.labels:
            sentences = [template.replace("{}", label) for template in templates]
            vectors = [_embedded(folder, module, tokenizer, family, part) for part in _parts(sentences)]
            rows.append(unit_length(unit_length(torch.cat(vectors)).mean(dim=0, keepdim=True)))
            step.advance()
        weight = (torch.cat(rows).T * module.logit_scale.exp()).contiguous()
        bias = getattr(module, "logit_bias", None)
        return Words(family.task, weight.clone(), torch.zeros(1) if bias is None else bias.detach().clone(), templates)


def _loaded(folder: CheckpointFolder, config: Any) -> tuple[Any, Any]:
    torch, transformers = require("torch", extra="build"), require("transformers", extra="build")
    if not any((folder.path / name).is_file() for name in _VOCABULARIES):  # transformers would make an empty one
        raise ModelError(f"{folder.name} has no tokenizer", hint=_COPY)
    with hub.quiet_libraries():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder.path, local_files_only=True)
        except Exception as error:  # each tokenizer's own
            raise ModelError(
                f"the tokenizer of {folder.name} can't be loaded: {first_line(error)}",
                hint=_COPY,
            ) from error
        module = transformers.AutoModelForZeroShotImageClassification.from_pretrained(
            folder.path, config=config, dtype=torch.float32, local_files_only=True
        )
    return module.eval(), tokenizer


def _parts(sentences: list[str]) -> list[list[str]]:
    return [sentences[start : start + _BATCH] for start in range(0, len(sentences), _BATCH)]


def _embedded(folder: CheckpointFolder, module: Any, tokenizer: Any, family: _Family, sentences: list[str]) -> Any:
    """The text tower's vectors, (sentences, dimensions)."""
    tokens = tokenizer(sentences, return_tensors="pt", **family.padding)
    most = module.config.text_config.max_position_embeddings
    if tokens["input_ids"].shape[1] > most:
        longest = max(sentences, key=len)
        raise ModelError(
            f"the sentence {longest!r} is longer than the {most} tokens that {folder.name} reads",
            hint="shorten the word or its template",
        )
    found = module.get_text_features(**tokens)
    return getattr(found, "pooler_output", found)
