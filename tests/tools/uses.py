"""What code does with TensorRT's objects, read from its syntax: which members of which class, and how they are called.

A variable's class is known from `names`, or from what was assigned to it: the classes that calls and attributes give
are in the stubs. A member that code looks for with getattr or hasattr may be missing, and is told apart.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.tools.signatures import CLASSES, Api

__all__ = ["MODULE", "Call", "Uses", "uses"]

MODULE = "the module"
_LOOKING = ("getattr", "hasattr", "_look")


@dataclass(frozen=True)
class Call:
    """A call of a method with arguments of these classes (None: not TensorRT's)."""

    kind: str
    name: str
    line: int
    positional: tuple[str | None, ...]
    named: Mapping[str, str | None]


@dataclass
class Uses:
    """Of one file: {(class, member): lines}, calls, what may be missing, methods of derived classes, and the members
    with a name of TensorRT's of variables whose class is not known: {(variable, member): lines}."""

    members: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    looked_up: set[tuple[str, str]] = field(default_factory=set)
    overrides: dict[tuple[str, str], int] = field(default_factory=dict)  # number of parameters without self
    unknown: dict[tuple[str, str], list[int]] = field(default_factory=dict)


def uses(source: str, names: Mapping[str, str], api: Api) -> Uses:
    """Read a file. `names` gives the class of parameters and attributes, `MODULE` for a module of TensorRT."""
    tree, reader = ast.parse(source), _Reader(dict(names), api)
    while True:  # what is assigned may be used above its assignment
        before = len(reader.names)
        reader.found = Uses()
        reader.visit(tree)
        if len(reader.names) == before:
            return reader.found


class _Reader(ast.NodeVisitor):
    def __init__(self, names: dict[str, str], api: Api) -> None:
        self.names, self._api, self.found = names, api, Uses()
        self._every = {name for members in api.values() for name in members}

    def kind(self, node: ast.AST | None) -> str | None:
        """The class of an expression."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.kind(node.value)
            if owner == MODULE:
                return node.attr if node.attr in CLASSES else None
            return self._gives(owner, node.attr) if owner else self.names.get(node.attr)
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and self.kind(called.value) == MODULE:
                return called.attr if called.attr in CLASSES else None
            return self.kind(called) if isinstance(called, ast.Attribute) else None
        return None

    def _gives(self, owner: str, name: str) -> str | None:
        member = self._api.get(owner, {}).get(name)
        return member.type if member is not None and member.type in CLASSES else None

    def visit_Assign(self, node: ast.Assign) -> None:
        kind = self.kind(node.value)
        for target in node.targets:
            name = getattr(target, "id", None) or getattr(target, "attr", None)
            if kind is not None and name is not None and not isinstance(node.value, ast.Name | ast.Attribute):
                assert self.names.setdefault(name, kind) == kind, f"line {node.lineno}: {name} is of two classes"
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self.kind(node.value)
        if owner is not None:
            self.found.members.setdefault((owner, node.attr), []).append(node.lineno)
        elif node.attr in self._every and not isinstance(node.value, ast.Call):
            variable = getattr(node.value, "id", None) or getattr(node.value, "attr", None) or ast.unparse(node.value)
            self.found.unknown.setdefault((variable, node.attr), []).append(node.lineno)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", None)
        if name in _LOOKING and isinstance(node.args[1], ast.Constant):
            owner = self.kind(node.args[0])
            if owner is not None:
                self.found.looked_up.add((owner, str(node.args[1].value)))
        if isinstance(node.func, ast.Attribute):
            owner = self.kind(node.func.value)
            if owner == MODULE and node.func.attr in CLASSES:
                self._call(node.func.attr, "__init__", node, node.args)
            elif owner in CLASSES and node.func.attr == "__init__":  # trt.ILogger.__init__(self)
                self._call(owner, "__init__", node, node.args[1:])
            elif owner is not None and owner != MODULE:
                self._call(owner, node.func.attr, node, node.args)
        self.generic_visit(node)

    def _call(self, owner: str, name: str, node: ast.Call, arguments: list[ast.expr]) -> None:
        positional = tuple(self.kind(argument) for argument in arguments)
        named = {word.arg: self.kind(word.value) for word in node.keywords if word.arg is not None}
        self.found.calls.append(Call(owner, name, node.lineno, positional, named))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            if isinstance(base, ast.Attribute) and self.kind(base.value) == MODULE:
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and item.name != "__init__":
                        self.found.overrides[base.attr, item.name] = len(item.args.args) - 1
        self.generic_visit(node)
