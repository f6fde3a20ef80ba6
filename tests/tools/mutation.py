"""JSON as a stranger may have changed it."""

from __future__ import annotations

import copy
import random
from typing import Any

VALUES: tuple[Any, ...] = (None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), "", "x", "\x1b[31m", "../x")
VALUES += ("0" * 64, [], [None], {}, {"x": 1}, [[[]]])


def mutate(data: Any, draw: random.Random) -> None:
    """Change one value somewhere inside `data`, or remove or repeat it."""
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(data[key], (dict, list)) and data[key] and draw.random() < 0.8:
            data = data[key]
            continue
        kind = draw.random()
        if kind < 0.15:
            del data[key]
        elif kind < 0.25 and isinstance(data, list):
            data.append(copy.deepcopy(data[key]))
        else:
            data[key] = copy.deepcopy(draw.choice(VALUES))
        return
