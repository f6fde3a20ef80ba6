"""Every command of the command line, those of groups included."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import click

from vitdeploy.cli.app import COMMANDS, app

__all__ = ["every_command", "name_of", "options_of", "parsed"]


@cache
def every_command() -> dict[str, click.Command]:
    """By name, such as "export", "deploy" (a group) and "deploy triton"."""
    context = click.Context(app, **app.context_settings)
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": each for inner, each in command.commands.items()}
    return found


def parsed(name: str, words: Sequence[str]) -> click.Context:
    """A command line as `vitdeploy` itself reads it. Without the group around it a command would say --help but not -h,
    and go on to, since it keeps that option."""
    return every_command()[name].make_context(name, list(words), parent=click.Context(app, **app.context_settings))


def name_of(words: Sequence[str]) -> str:
    """The command that a command line begins with; its first word where there is none of that name."""
    joined = " ".join(words[:2])
    return joined if joined in every_command() else words[0]


def options_of(name: str) -> set[str]:
    """The options of a command."""
    return {text for parameter in every_command()[name].params for text in (*parameter.opts, *parameter.secondary_opts)}
