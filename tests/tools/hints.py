"""The hints of vitdeploy's errors, read from its sources, and what in a hint can't be followed."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click

from tests.tools.command_names import every_command, name_of, options_of, parsed
from tests.tools.imports import MODULES, parse
from vitdeploy.core.errors import VitdeployError
from vitdeploy.core.precisions import precisions

__all__ = ["Hint", "command_lines", "dead_ends", "hints", "refused", "without_hint"]

ROOT = Path(__file__).parents[2]
# options of programs that are not ours, and names that pip, accelerate and Python take
FOREIGN = {"--upgrade", "--force-reinstall", "--no-deps", "--fsdp_state_dict_type", "--use_fsdp"}  # pip, accelerate
FOREIGN |= {"--local-dir"}  # hf


@dataclass(frozen=True)
class Hint:
    """What a call says by `hint=`; what is only known when it runs is "X"."""

    module: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.text}"


def _texts(node: ast.expr | None, constants: dict[str, ast.expr]) -> Iterator[str]:
    """What an expression may say."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(value.value if isinstance(value, ast.Constant) else "X" for value in node.values)  # type: ignore[misc]
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, constants)
        yield from _texts(node.orelse, constants)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _texts(value, constants)
    elif isinstance(node, ast.BinOp):
        yield "".join(text for side in (node.left, node.right) for text in (*_texts(side, constants), "X")[:1])
    elif isinstance(node, ast.Name) and node.id in constants:
        yield from _texts(constants[node.id], {})


def hints() -> list[Hint]:
    """Every hint that is written out in a call, in a constant of its module or in a variable of that name."""
    found = []
    for module in MODULES:
        tree = parse(module)
        constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and any(ast.unparse(target) == "hint" for target in node.targets):
                found += [Hint(str(module), node.lineno, text) for text in _texts(node.value, constants)]
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "hint":
                        found += [Hint(str(module), node.lineno, text) for text in _texts(keyword.value, constants)]
    return found


def without_hint() -> list[str]:
    """Where an error of ours is raised without a hint."""
    from vitdeploy.core import errors

    ours = {name for name in errors.__all__ if name.endswith("Error")}
    found = []
    for module in MODULES:
        for node in ast.walk(parse(module)):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            call = node.exc
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            says = len(call.args) > 1 or any(keyword.arg in ("hint", None) for keyword in call.keywords)
            starred = any(isinstance(argument, ast.Starred) for argument in call.args)
            if name in ours and not says and not starred:
                found.append(f"{module}:{node.lineno}: {ast.unparse(call)[:100]}")
    return found


@cache
def _commands() -> dict[str, set[str]]:
    always = {"--help", "--debug", "--quiet", "--verbose"}
    found = {name: always | options_of(name) for name in every_command()}
    for name in found:  # a hint names a command of a group by the group, or both
        group = name.partition(" ")[0]
        found[group] = found[group] | found[name]
    return found


@cache
def _extras() -> set[str]:
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]\n")[2]
    return set(re.findall(r"^([\w-]+) = \[", table.partition("\n[")[0], flags=re.M))


def dead_ends(text: str) -> list[str]:
    """What a hint names that is not there: commands, their options, extras, pages and names of Python."""
    commands = _commands()
    wrong = []
    for begin, name, rest in re.findall(r"(^|: |`|(?<![\w./-]))vitdeploy ([a-z][a-z-]+)([^;:()`]*)", text):
        if name in commands:
            wrong += [f"{name} {option}" for option in _options(rest) if option not in commands[name] | FOREIGN]
        elif begin:
            wrong.append(f"vitdeploy {name}")
    known = set().union(*commands.values()) | FOREIGN
    wrong += [option for option in _options(text) if option not in known]
    for extras in re.findall(r"(?:vitdeploy|\.)\[([\w,-]+)\]", text):
        wrong += [f"[{extra}]" for extra in extras.split(",") if extra not in {*_extras(), "X"}]
    wrong += [page for page in re.findall(r"docs/[\w/-]+\.md", text) if not (ROOT / page).is_file()]
    wrong += [name for name in re.findall(r"\bvitdeploy(?:\.\w+)+", text) if not _exists(name)]
    return wrong


def command_lines(text: str) -> list[str]:
    """What a text has its reader type: from `vitdeploy` at its begin or behind a colon to the next mark, with the prose
    that may follow the command there, as in "vitdeploy verify BUNDLE shows every form"."""
    return re.findall(r"(?:^|: )(vitdeploy [a-z][^;:()`]*)", text)


def refused(line: str, *, written: bool = False) -> str | None:
    """Why the command line would refuse the begin of `line`, up to its last option at least; None if it would not.

    A line that is `written` in the sources has "X" for what is only known when it runs, and in it small words that are
    no value of an option are prose. Whether a file is there is not looked at.
    """
    words = shlex.split(line.rstrip(".,"))[1:]
    name = name_of(words)
    if name not in every_command():
        return f"no command {name}"
    own = len(name.split())
    least = max((place + 1 for place, word in enumerate(words) if word.startswith("-")), default=own)
    prose = [place for place in range(least + 1, len(words)) if written and re.fullmatch(r"[a-z]+,?", words[place])]
    if written and least == own and re.fullmatch(r"[a-z]+", "".join(words[own : own + 1])):
        prose = [own]
    first: str | None = None
    for count in range(min(prose, default=len(words)), least - 1, -1):
        for values in (words[own:count], [word.replace("X", "1") for word in words[own:count]]):
            why = _problem(name, values)
            if why is None:
                return None
            first = first or why
    return first


def _problem(name: str, words: list[str]) -> str | None:
    try:
        given = parsed(name, words).params
    except click.MissingParameter as error:
        return error.format_message()
    except click.BadParameter as error:
        return None if isinstance(getattr(error.param, "type", None), click.Path) else error.format_message()
    except click.UsageError as error:
        return error.format_message()
    except VitdeployError:  # a file of settings that is not there
        return None
    if name == "build-engine" and not any(given[precision] for precision in precisions()):
        return "no precision"
    return None


def _options(text: str) -> list[str]:
    return [option for option in re.findall(r"(?<![\w-])(--[a-z][a-z0-9_-]*)", text) if "X" not in option]


def _exists(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        return all(hasattr(found, part) and (found := getattr(found, part)) for part in parts[count:])
    return False
