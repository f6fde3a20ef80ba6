"""The reference of commands and of the Python API, written from the code.

python -m tests.tools.reference    writes docs/reference anew
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import is_dataclass
from pathlib import Path

import vitdeploy
from tests.tools.help_pages import NAMES, help_page

__all__ = ["FOLDER", "PAGES"]

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
_WRITTEN = "<!-- written from the code by `make goldens` -->\n\n"


def commands_page() -> str:
    """Every command: what `--help` prints."""
    parts = ["# Commands\n\n", _WRITTEN, "What `vitdeploy --help` and `vitdeploy COMMAND --help` print.\n\n"]
    for name in NAMES:
        parts.append(f"## {name}\n\n```text\n{help_page(name).rstrip()}\n```\n\n")
    return "".join(parts).rstrip() + "\n"


def api_page() -> str:
    """Every public name: its signature and its docstring, what is called first, then what is held, then errors."""
    groups: dict[str, list[str]] = {"Calls": [], "Classes": [], "Errors": []}
    for name in vitdeploy.__all__:
        value = getattr(vitdeploy, name)
        if name == "__version__":
            continue
        is_class = inspect.isclass(value)
        is_error = is_class and issubclass(value, Exception)
        groups["Errors" if is_error else "Classes" if is_class else "Calls"].append(name)
    parts = [
        "# Python\n\n",
        _WRITTEN,
        "All that is public is in `vitdeploy`. [The library](../library.md) shows it in use.\n\n",
    ]
    for group, names in groups.items():
        parts.append(f"## {group}\n\n")
        parts += [_entry(name) for name in sorted(names, key=str.lower)]
    return "".join(parts).rstrip() + "\n"


def _entry(name: str) -> str:
    value = getattr(vitdeploy, name)
    function = value
    if inspect.ismodule(value):  # a module that can be called
        function = getattr(value, "examine" if name == "doctor" else name)
    text = f"vitdeploy.{name}{_signature(function)}"
    if documented := _plain_docstring(function):
        text += "\n\n" + "\n".join(f"    {line}" if line else "" for line in documented.splitlines())
    if inspect.isclass(value) and not issubclass(value, Exception):
        for base in filter(is_dataclass, value.__mro__[1:]):  # whose fields are in the signature
            text += "\n\n" + "\n".join(f"    {line}" if line else "" for line in _plain_docstring(base).splitlines())
        for member, method in vars(value).items():
            if not member.startswith("_") and (lines := _member(member, method)):
                text += "\n\n" + "\n".join(f"    {line}" if line else "" for line in lines.splitlines())
    return f"### {name}\n\n```text\n{text}\n```\n\n"


def _member(name: str, value: object) -> str:
    """A public method or property."""
    if isinstance(value, property):
        title = f"{name}: {_type(value.fget.__annotations__.get('return', '')) if value.fget else ''}"
        documented = value.__doc__
    elif isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        title, documented = f"{name}{_signature(function)}", function.__doc__
    else:
        return ""
    first = inspect.cleandoc(documented or "").partition("\n\n")[0]
    return title + "".join(f"\n    {line}" for line in first.splitlines())


def _signature(function: object) -> str:
    try:
        signature = inspect.signature(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "()"
    shown: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(text.startswith("*") for text in shown):
            shown.append("*")
        if parameter.name not in ("self", "cls"):
            shown.append(_parameter(parameter))
    returned = signature.return_annotation
    end = "" if returned is inspect.Signature.empty or inspect.isclass(function) else f" -> {_type(returned)}"
    text = ", ".join(shown)
    if len(text) > 90:
        text = "\n" + "".join(f"        {each},\n" for each in shown) + "    "
    return f"({text}){end}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is not inspect.Parameter.empty:
        default = repr(parameter.default)
        text += " = ..." if default.startswith("<") else f" = {default}"
    return text


class _Bare(ast.NodeTransformer):
    """Leaves the notes beside a type out: `Annotated[int, ABOVE_ZERO]` is an int."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def _type(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return ast.unparse(_Bare().visit(ast.parse(text, mode="eval"))) if "Annotated[" in text else text


def _plain_docstring(value: object) -> str:
    documented = inspect.getdoc(value) or ""
    name = getattr(value, "__name__", "")
    return "" if documented.startswith(f"{name}(") else documented  # a dataclass without one


PAGES = {"commands.md": commands_page, "python.md": api_page}


def main() -> None:
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
