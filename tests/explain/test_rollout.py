"""The arithmetic of the pictures, against loops and by what must hold for any model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdeploy.explain import position_similarity, rollout, token_maps


def softmaxes(seed: int, layers: int, heads: int, tokens: int) -> list[np.ndarray]:
    powers = np.exp(np.random.default_rng(seed).normal(0, 2, (layers, heads, tokens, tokens)))
    return list((powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32))


def by_hand(attentions: list[np.ndarray]) -> np.ndarray:
    """Rollout in loops: the share of input token j in token i, followed layer by layer."""
    tokens = attentions[0].shape[-1]
    shares = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for attention in attentions:
        following = []
        for i in range(tokens):
            row = [0.5 * shares[i][j] for j in range(tokens)]
            for k in range(tokens):
                weight = sum(float(head[i][k]) for head in attention) / len(attention)
                for j in range(tokens):
                    row[j] += 0.5 * weight * shares[k][j]
            following.append(row)
        shares = following
    return np.array(shares)


def test_rollout_is_what_loops_compute() -> None:
    attentions = softmaxes(0, layers=3, heads=2, tokens=5)
    assert np.abs(rollout(attentions)[-1] - by_hand(attentions)).max() < 1e-6  # float32 rows sum to 1 within 1e-7
    assert np.abs(rollout(attentions[::-1])[-1] - by_hand(attentions)).max() > 1e-3  # the order of layers counts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.integers(2, 12))
def test_every_row_is_a_distribution(seed: int, layers: int, heads: int, tokens: int) -> None:
    for dtype in (np.float32, np.float16):
        rolled = rollout([array.astype(dtype) for array in softmaxes(seed, layers, heads, tokens)])
        assert len(rolled) == layers
        assert all(np.allclose(matrix.sum(axis=1), 1, atol=1e-12) and (matrix >= 0).all() for matrix in rolled)


def test_attention_to_oneself_changes_nothing() -> None:
    assert np.allclose(rollout([np.eye(5)[np.newaxis]] * 4)[-1], np.eye(5))


def test_maps_show_the_rows_that_make_the_logits() -> None:
    matrix = np.full((6, 6), 0.1)  # two special tokens, four patches
    matrix[0, 3], matrix[1, 4] = 0.7, 0.4
    first, both = token_maps([matrix], (0,), (2, 2))[0], token_maps([matrix], (0, 1), (2, 2))[0]
    assert np.unravel_index(first.argmax(), (2, 2)) == (0, 1)
    assert first.mean() == pytest.approx(1) and both.mean() == pytest.approx(1)
    assert both[1, 0] > first[1, 0]
    everyone = token_maps([matrix], (), (2, 2))[0]
    assert np.allclose(everyone, 1)  # all patches look evenly


def test_similarity_is_the_cosine() -> None:
    positions = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    cosines = position_similarity(positions, (2, 3))
    a, b = positions[1], positions[5]
    assert cosines.shape == (2, 3, 2, 3)
    assert cosines[0, 1, 1, 2] == pytest.approx(float(a @ b / np.sqrt((a @ a) * (b @ b))), abs=1e-6)
    assert np.allclose(np.diagonal(cosines.reshape(6, 6)), 1)
    assert np.isfinite(position_similarity(np.zeros((6, 8)), (2, 3))).all()
