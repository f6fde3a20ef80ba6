"""What leaves the public API: it works on for a while, and says what to use instead.

docs/versions.md has the policy.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["deprecated"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def deprecated(*, since: str, removed_in: str, instead: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Mark a public function: each call warns at the caller's line, and the docstring says it too.

    Args:
        since: the version that deprecates it, as in "0.2.0".
        removed_in: the first version without it.
        instead: what to call, as in "`vitdeploy.load`".

    Example:
        @deprecated(since="0.2.0", removed_in="0.4.0", instead="`vitdeploy.load`")
        def open_bundle(path): ...
    """

    def mark(function: Callable[_P, _R]) -> Callable[_P, _R]:
        message = f"{function.__qualname__} is deprecated since {since} and goes in {removed_in}: use {instead}"

        @functools.wraps(function)
        def warned(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        warned.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\nDeprecated since {since}: use {instead}.".lstrip()
        vars(warned)["removed_in"] = removed_in
        return warned

    return mark
