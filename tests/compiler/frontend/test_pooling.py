"""Pooling that a window covers is traced as a mean: TensorRT takes no window as large as EfficientNet's."""

from __future__ import annotations

import pytest

from tests.tools.backends import needs_torch
from vitdeploy.compiler.frontend.tracing import _pooling


@needs_torch
@pytest.mark.parametrize(
    ("settings", "whole"),
    [
        ({"kernel_size": 640, "ceil_mode": True}, True),
        ({"kernel_size": (2, 5)}, True),
        ({"kernel_size": 2}, False),
        ({"kernel_size": (2, 3), "padding": (0, 1)}, False),
        ({"kernel_size": (2, 5), "divisor_override": 7}, False),
    ],
)
def test_only_what_the_window_covers_is_a_mean(settings: dict[str, object], whole: bool) -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.AvgPool2d(**settings))
    values = torch.randn(2, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    wanted = module(values)
    with _pooling(module), torch.no_grad():
        program = torch.export.export(module, (values,))
        torch.testing.assert_close(module(values), wanted)
    assert any("mean" in str(node.target) for node in program.graph.nodes) == whole
    assert "forward" not in vars(module[0]), "as it was"
