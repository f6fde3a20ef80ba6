"""`vitdeploy` alone: what to do next in this folder."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.cli.terminal import echo, program

__all__ = ["show_next_steps"]

_SHOWN = 8
_BEGIN = (
    ("try the whole job on handwritten digits, offline", "demo"),
    ("take a checkpoint that is trained", "export google/vit-base-patch16-224 --output bundles/vit"),
    ("fine-tune one on your images", "finetune google/vit-base-patch16-224-in21k --dataset FOLDER --output runs/vit"),
    ("see what this machine can do", "doctor"),
)


def show_next_steps() -> None:
    """Say what lies here and how to go on with it, or how to begin."""
    from vitdeploy.inspection.next_step import next_steps

    steps = next_steps(Path())
    if not steps:
        echo("There is no bundle and no checkpoint in this folder. To begin:\n")
        for what, command in _BEGIN:
            echo(f"  {what}:\n    {program()} {command}")
    for step in steps[:_SHOWN]:
        echo(f"{step.path}: {step.found}\n    {program()}{step.command.removeprefix('vitdeploy')}")
    if len(steps) > _SHOWN:
        echo(f"... and {len(steps) - _SHOWN} more")
    echo(f"\nEvery command: {program()} --help")
