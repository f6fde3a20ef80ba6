"""The ways to run a checkpoint in PyTorch that a benchmark can compare with; to know them takes no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """What a report calls it as a form, and what `PyTorchRunner` is given for it.

    `preprocessed`: its calls are timed from pixel values that lie where the model runs, so without the image processor.
    """

    form: str
    options: dict[str, Any] = field(default_factory=dict)
    preprocessed: bool = False

    @property
    def tf32(self) -> bool:
        """Whether its FP32 products on a GPU are in TF32."""
        return bool(self.options.get("tf32"))


VARIANTS = {
    "": Variant("fp32"),
    "tf32": Variant("fp32-tf32", {"tf32": True}),
    "bf16": Variant("bf16-autocast", {"autocast": "bf16"}),
    "fp16": Variant("fp16-autocast", {"autocast": "fp16"}),
    "half": Variant("fp16-half", {"half": True}),
    "compile": Variant("fp32-compile", {"compiled": True}),
    "bf16-compile": Variant("bf16-compile", {"autocast": "bf16", "compiled": True}),
    "half-compile": Variant("fp16-half-compile", {"half": True, "compiled": True}),
    "preprocessed": Variant("fp32-preprocessed", preprocessed=True),
    "half-preprocessed": Variant("fp16-half-preprocessed", {"half": True}, preprocessed=True),
}
"""By what `bench --also` calls them; "" is the baseline."""
