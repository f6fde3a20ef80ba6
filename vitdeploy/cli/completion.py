"""`vitdeploy completion`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vitdeploy.cli.terminal import echo

__all__ = ["command"]

# shell: (file of the script, below the user's data or configuration; the file that a shell reads when it starts)
_SHELLS = {
    "bash": ("~/.local/share/vitdeploy/completion.bash", "~/.bashrc"),
    "zsh": ("~/.local/share/vitdeploy/completion.zsh", "~/.zshrc"),
    "fish": ("~/.config/fish/completions/vitdeploy.fish", None),  # fish reads every file there
}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_SHELLS)), required=False)
@click.option("--print", "prints", is_flag=True, help="Print the script, and install nothing.")
@click.pass_context
def command(context: click.Context, shell: str | None, prints: bool) -> None:
    """Let the Tab key complete commands, options and values in your shell.

    Without SHELL it is the one that $SHELL names. The script is a file of its own; bash and zsh get one line in
    ~/.bashrc or ~/.zshrc that reads it. A second call only renews the script.

    \b
    Example:
      vitdeploy completion
      vitdeploy completion zsh --print
    """
    from click.shell_completion import get_completion_class

    shell = shell or _own_shell()
    made = get_completion_class(shell)
    assert made is not None
    script = made(context.find_root().command, {}, "vitdeploy", "_VITDEPLOY_COMPLETE").source()
    if prints:
        echo(script)
        return
    place, startup = (None if path is None else Path(path).expanduser() for path in _SHELLS[shell])
    assert place is not None
    _install(script, place, startup)
    echo(f"Written: {place}")
    echo(f"Open a new {shell}, or: source {place}")


def _own_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name in _SHELLS:
        return name
    known = ", ".join(_SHELLS)
    raise click.UsageError(f"$SHELL names none of {known}: name the shell, as in `vitdeploy completion bash`")


def _install(script: str, place: Path, startup: Path | None) -> None:
    from vitdeploy.core.storage import write_atomically

    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, script)
    if startup is None:
        return
    line = f'[ -r "{place}" ] && . "{place}"  # by `vitdeploy completion`\n'
    text = startup.read_text(encoding="utf-8") if startup.is_file() else ""
    if line not in text:
        with startup.open("a", encoding="utf-8") as file:  # appended: whatever else is in it stays as it is
            file.write(line if text.endswith("\n") or not text else f"\n{line}")
