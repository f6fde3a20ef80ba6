"""What `vitdeploy inspect` says of an engine's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vitdeploy.engines import EngineFacts
    from vitdeploy.runtime.engine_layers import EngineLayers, Int8Share

__all__ = ["engine_rows", "show_layers"]

_SHOWN = 8


def engine_rows(engine: EngineFacts) -> list[tuple[str, str]]:
    """(name, value) lines; an empty name continues the line above."""
    rows = []
    if engine.asked is not None:
        asked = engine.asked
        rows.append(("Asked for", f"{len(asked['int8_products'])} of {asked['products']} products on INT8 factors"))
    if engine.layers is None:
        return [*rows, ("Layers", f"not read: {engine.reason}")]
    layers = engine.layers
    rows.append(("Layers", f"{len(layers.layers)}, by what they compute in: {_counts(layers)}"))
    if not layers.detailed:
        rows.append(("", "the engine tells its layers' names only: it was not built by vitdeploy"))
    rows.append(("Fusions", f"{len(layers.fused)} layers do the work of several nodes{_largest(layers)}"))
    if engine.int8 is not None:
        rows += _int8(engine.int8)
    if engine.memory is not None:
        sizes = ", ".join(f"{size / 1e6:.1f} MB" for size in engine.memory["scratch_bytes"])
        rows.append(("Memory", f"at most {sizes} of scratch memory, a value for each profile"))
    return rows


def show_layers(layers: EngineLayers) -> None:
    """Every layer in a line of its own, with the graph's nodes in it."""
    click.echo()
    for layer in layers.layers:
        inside = f"  <- {', '.join(layer.nodes)}" if len(layer.nodes) > 1 else ""
        click.echo(f"{layer.precision or 'not said':9} {layer.kind or '-':24} {layer.name}{inside}")


def _counts(layers: EngineLayers) -> str:
    return ", ".join(f"{count} {name}" for name, count in layers.by_precision.items())


def _largest(layers: EngineLayers) -> str:
    most = max((len(layer.nodes) for layer in layers.fused), default=0)
    return f", the largest of {most}" if most else ""


def _int8(share: Int8Share) -> list[tuple[str, str]]:
    rows = [("INT8", f"{share.running} of the {share.asked} products that the graph asks for run in INT8")]
    rows += [("", f"{node} runs in {precision}, in {layer}") for node, layer, precision in share.elsewhere[:_SHOWN]]
    if len(share.elsewhere) > _SHOWN:
        rows.append(("", f"and {len(share.elsewhere) - _SHOWN} more, see --json"))
    if share.unknown:
        rows.append(("", f"{len(share.unknown)} are named by no layer, the first is {share.unknown[0]}"))
    return rows
