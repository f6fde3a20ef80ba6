"""What vitdeploy's modules import, read from their sources."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path

import vitdeploy

__all__ = ["MODULES", "ROOT", "imported_parts", "imports", "parse", "part_of"]

ROOT = Path(vitdeploy.__file__).parent
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(tree: ast.AST, *, top_level: bool = False, modules: Container[str] = ()) -> Iterator[str]:
    """Dotted names that a module imports.

    Args:
        top_level: only what importing the module itself imports.
        modules: names of these that are imported from their packages count as themselves.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [name for name in members if name in modules]
            if len(inner) < len(members):
                yield node.module or ""
            yield from members if node.module == "vitdeploy" else inner
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if not top_level:
                yield from imports(node, top_level=top_level, modules=modules)
        elif not (top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            yield from imports(node, top_level=top_level, modules=modules)


@cache
def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def part_of(module: Path) -> str:
    """Which part of the house a file belongs to."""
    return module.parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST) -> dict[str, str]:
    """Dotted names of vitdeploy that a module imports -> their parts; the package itself is "__init__"."""
    found = {}
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "vitdeploy" and len(parts) > 1:
            is_part = (ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").is_file()
            found[name] = parts[1] if is_part else "__init__"
    return found
