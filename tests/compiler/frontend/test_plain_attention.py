"""What stands in for PyTorch's attention while a model is traced gives what PyTorch's gives, and leaves when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.families import write_family
from vitdeploy.compiler.frontend.plain_attention import Weights, plain_attention
from vitdeploy.models.checkpoints import load_checkpoint

functional = torch.nn.functional


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


QUERY, KEY, VALUE, BIAS = tensors((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8), (1, 3, 5, 5))
ALLOWED = BIAS > 0


@pytest.fixture
def module(tmp_path: Path) -> Any:
    return load_checkpoint(write_family("vit", tmp_path / "checkpoint")).module


def weights_left(module: Any, query: torch.Tensor, **options: Any) -> Any:
    """What the stand-in leaves in `Weights`, having given what PyTorch gives."""
    expected = functional.scaled_dot_product_attention(query, KEY, VALUE, **options)
    Weights.last = None
    with plain_attention(module):
        found = functional.scaled_dot_product_attention(query, KEY, VALUE, **options)
    torch.testing.assert_close(found, expected)
    return Weights.last


@pytest.mark.parametrize("options", [{}, {"attn_mask": BIAS}, {"scale": 0.5}, {"attn_mask": BIAS, "scale": 2.0}])
def test_it_is_pytorchs(module: Any, options: dict[str, Any]) -> None:
    weights = weights_left(module, QUERY, **options)
    assert weights is not None and weights.shape == (2, 3, 5, 5)
    torch.testing.assert_close(weights @ VALUE, functional.scaled_dot_product_attention(QUERY, KEY, VALUE, **options))


@pytest.mark.parametrize("options", [{"attn_mask": ALLOWED}, {"is_causal": True}, {"enable_gqa": True}])
def test_what_it_does_not_know_stays_pytorchs(module: Any, options: dict[str, Any]) -> None:
    assert weights_left(module, QUERY, **options) is None


def test_one_token_that_reads_all_is_not_attention_of_all(module: Any) -> None:
    assert weights_left(module, QUERY[:, :, :1]) is None


def test_everything_is_put_back(module: Any) -> None:
    before, own = functional.scaled_dot_product_attention, module.config._attn_implementation
    with pytest.raises(ZeroDivisionError), plain_attention(module):
        assert functional.scaled_dot_product_attention is not before and module.config._attn_implementation != own
        raise ZeroDivisionError
    assert functional.scaled_dot_product_attention is before and module.config._attn_implementation == own
