"""Kinds of options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import click

from vitdeploy.backends import registry
from vitdeploy.core.precisions import precisions

__all__ = ["BackendOption", "GroupedCommand", "backend_option", "defaults_of", "precision_option", "section"]

_SECTIONS: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()
_Command = TypeVar("_Command", bound="Callable[..., Any] | click.Command")


class _BackendChoice(click.Choice[str]):
    """ "auto" or a backend, of those that are registered when the option is shown or read."""

    def __init__(self) -> None:
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("auto", *registry.names(bundles=True))

    @choices.setter
    def choices(self, value: Any) -> None:
        pass


class BackendOption(click.Option):
    """An option whose help names the backends, where it says {names}."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        found = super().get_help_record(ctx)
        return found and (found[0], found[1].replace("{names}", ", ".join(registry.names(bundles=True))))


def defaults_of(source: Callable[..., Any]) -> Callable[[_Command], _Command]:
    """Options named like fields of a settings object, or like parameters of a function, take their defaults from it;
    stands above them."""
    defaults = {parameter.name: parameter.default for parameter in inspect.signature(source).parameters.values()}

    def decorate(function: _Command) -> _Command:
        for parameter in getattr(function, "__click_params__", ()):
            default = defaults.get(parameter.name)
            if isinstance(parameter, click.Option) and default not in (None, inspect.Parameter.empty):
                parameter.default = default
                parameter.show_default = not isinstance(default, bool) and default != ()
        return function

    return decorate


def backend_option(help: str) -> Callable[[_Command], _Command]:
    """`--backend NAME`, "auto" if it is not given; {names} in the help stands for those that there are."""
    return click.option(
        "--backend",
        cls=BackendOption,
        type=_BackendChoice(),
        metavar="NAME",
        default="auto",
        show_default=True,
        help=help,
    )


def precision_option(help: str) -> Callable[[_Command], _Command]:
    """`--precision`, "auto" if it is not given."""
    choices = click.Choice(("auto", *precisions()))
    return click.option("--precision", type=choices, default="auto", show_default=True, help=help)


def section(title: str) -> Callable[[_Command], _Command]:
    """The options below, up to the next section, stand under this title in `--help` of a `GroupedCommand`."""

    def decorate(function: _Command) -> _Command:
        for parameter in getattr(function, "__click_params__", ()):
            _SECTIONS.setdefault(parameter, title)
        return function

    return decorate


class GroupedCommand(click.Command):
    """A command with so many options that `--help` shows them in sections; those without one come first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section after the other."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record is not None:
                sections.setdefault(_SECTIONS.get(option, "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
