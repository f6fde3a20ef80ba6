"""`vitdeploy doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitdeploy.cli.terminal import echo_json, new_console
from vitdeploy.core.version import full_version

if TYPE_CHECKING:
    from vitdeploy.doctor import Capability, Diagnosis

__all__ = ["command"]

_GIB = 1 << 30


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(as_json: bool) -> None:
    """Show what this machine can build and run, and what to install for the rest.

    The JSON has schema_version, python, system, machine (cpu, cores, cpu_flags, memory_bytes, gpu, jetson, system),
    versions, capabilities (key, name, available, packages, reason, next_step, note) and problems (message,
    next_step).

    \b
    Example:
      vitdeploy doctor
      vitdeploy doctor --json
    """
    from vitdeploy.doctor import examine

    diagnosis = examine()
    if as_json:
        echo_json(diagnosis.to_json())
        return
    _show(diagnosis)


def _show(diagnosis: Diagnosis) -> None:
    console = new_console()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(diagnosis):
        facts.add_row(name, Text(value))
    console.print(facts)
    console.print()
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for capability in diagnosis.capabilities:
        table.add_row(
            Text("yes" if capability.available else "no", style="green" if capability.available else "yellow"),
            Text(capability.name),
            Text(_details(capability)),
        )
    console.print(table)
    missing: dict[str, list[str]] = {}
    for capability in diagnosis.capabilities:
        if capability.next_step:
            missing.setdefault(capability.next_step, []).append(capability.name)
    if missing:
        console.print("\nFor the rest:", style="bold")
        for step, names in missing.items():
            console.print(Padding(Text(f"{'; '.join(names)}:"), (0, 0, 0, 2)))
            _step(console, step)
    for problem in diagnosis.problems:
        console.print()
        console.print(Text(f"Problem: {problem.message}.", style="red"))
        _step(console, problem.next_step)


def _step(console: Console, step: str) -> None:
    """A next step; a command stays on one line so that it can be copied."""
    if step.startswith(("pip ", "sudo ")):
        console.print(Text(f"    {step}", style="cyan"), soft_wrap=True)
    else:
        console.print(Padding(Text(step), (0, 0, 0, 4)))


def _facts(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    machine = diagnosis.machine
    rows = [
        ("vitdeploy", f"{full_version()} on Python {diagnosis.python}"),
        ("System", diagnosis.system),
        ("Processor", f"{machine['cpu']}, {machine['cores']} usable core{'s' * (machine['cores'] != 1)}"),
    ]
    if machine["cpu_flags"]:
        rows.append(("", " ".join(machine["cpu_flags"])))
    if machine["memory_bytes"] is not None:
        rows.append(("Memory", f"{machine['memory_bytes'] / _GIB:.1f} GiB"))
    if machine["jetson"]:
        rows.append(("Jetson Linux", machine["jetson"]))
    rows += [("GPU", _gpu(gpu)) for gpu in machine["gpu"]] or [("GPU", "none of NVIDIA's that CUDA can use")]
    return rows


def _gpu(gpu: dict[str, Any]) -> str:
    memory = f"{gpu['memory_bytes'] / _GIB:.1f} GiB{' shared with the processor' if gpu['integrated'] else ''}"
    driver = f"driver {gpu['driver']}, " if gpu["driver"] else ""
    return f"{gpu['name']}, compute capability {gpu['compute_capability']}, {memory}, {driver}CUDA {gpu['cuda']}"


def _details(capability: Capability) -> str:
    if not capability.available:
        return capability.reason or ""
    packages = ", ".join(f"{p.name} {p.version or '(version unknown)'}" for p in capability.packages)
    return f"{packages} ({capability.note})" if capability.note else packages
