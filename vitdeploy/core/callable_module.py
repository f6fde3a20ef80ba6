"""A package of a command's name that can also be called: `vitdeploy.bench(...)` and `from vitdeploy.bench import ...`.

Importing a submodule sets it as an attribute of its package, over a function of the same name. So the submodule itself
answers to a call, and `vitdeploy.bench` is the same object whatever was imported before (PEP 713 names this way).
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__dict__[self.__dict__["__called__"]](*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.__dict__[self.__dict__["__called__"]])


def make_callable(module: str, function: str) -> None:
    """Let a module that is being imported answer to a call as its function of that name does."""
    found = sys.modules[module]
    found.__dict__["__called__"] = function
    found.__class__ = _CallableModule
