"""Attention rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers") and position similarity.

With A_l (heads, tokens, tokens) the softmax of layer l, row i saying where token i looks,

    A'_l = 0.5 mean_heads(A_l) + 0.5 I      half of a token's new value comes through the residual connection
    R_l  = A'_l R_(l-1),  R_0 = I           row i of R_l: from which input tokens the value of token i was mixed

Every row of every R_l is a distribution: it sums to 1. Values, projections and the MLP are left out, so this tells
where information may flow from, not what made the model decide.

Position similarity is the cosine of two patches' position embeddings (Dosovitskiy et al. 2021, figure 7).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["position_similarity", "rollout", "token_maps"]


def rollout(attentions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """R_1 ... R_L, each (tokens, tokens) float64, from the layers' softmax outputs (heads, tokens, tokens)."""
    rolled: list[np.ndarray] = []
    for attention in attentions:
        mean = attention.astype(np.float64).mean(axis=0)  # (tokens, tokens)
        mixed = 0.5 * mean + 0.5 * np.eye(len(mean))
        mixed /= mixed.sum(axis=1, keepdims=True)  # half precision leaves rows that sum to 1 up to a thousandth
        rolled.append(mixed @ rolled[-1] if rolled else mixed)
    return rolled


def token_maps(matrices: Sequence[np.ndarray], readout: Sequence[int], grid: tuple[int, int]) -> np.ndarray:
    """Where the tokens that make the logits look, over the patches.

    Args:
        matrices: (tokens, tokens) each; the patches are the last rows x columns tokens.
        readout: rows to average, as (0,) for the class token; empty: all patches, for models that pool them.
        grid: (rows, columns) of patches.

    Returns:
        (matrices, rows, columns), in multiples of an even spread over the patches: each map's mean is 1.
    """
    rows, columns = grid
    maps = []
    for matrix in matrices:
        special = len(matrix) - rows * columns
        looking = matrix[list(readout)] if readout else matrix[special:]
        over_patches = looking.mean(axis=0)[special:].reshape(rows, columns)
        maps.append(over_patches / over_patches.mean())
    return np.stack(maps)


def position_similarity(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cosine of the position embeddings (patches, hidden): (rows, columns, rows, columns), from -1 to 1."""
    exact = positions.astype(np.float64)
    unit = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    cosines: np.ndarray = np.clip(unit @ unit.T, -1.0, 1.0)
    return cosines.reshape(*grid, *grid)
