"""What `vitdeploy inspect` says of an engine's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.cli.terminal import echo
from vitdeploy.core.precisions import title

if TYPE_CHECKING:
    from vitdeploy.backends.tensorrt.layers import EngineLayers, Int8Share
    from vitdeploy.inspection.engine import EngineFacts
    from vitdeploy.inspection.plan import PlanFacts

__all__ = ["engine_rows", "show_layers"]

_SHOWN = 8


def engine_rows(engine: EngineFacts) -> list[tuple[str, str]]:
    """(name, value) lines; an empty name continues the line above."""
    rows = []
    if engine.asked is not None:
        asked = engine.asked
        count, kind = len(asked["int8_products"]), title(asked["precision"])
        rows.append(("Asked for", f"{count} of {asked['products']} products on {kind} factors"))
    if engine.plan is not None:
        rows += _plan(engine.plan)
    if engine.layers is None:
        return [*rows, ("Layers", f"not read: {engine.reason}")]
    layers = engine.layers
    rows.append(("Layers", f"{len(layers.layers)}, by what they compute in: {_counts(layers)}"))
    if not layers.detailed:
        rows.append(("", "the engine tells its layers' names only: it was not built by vitdeploy"))
    rows.append(("Fusions", f"{len(layers.fused)} layers do the work of several nodes{_largest(layers)}"))
    if engine.int8 is not None and engine.asked is not None:
        rows += _share(engine.int8, title(engine.asked["precision"]))
    if engine.memory is not None:
        sizes = ", ".join(f"{size / 1e6:.1f} MB" for size in engine.memory["scratch_bytes"])
        rows.append(("Memory", f"at most {sizes} of scratch memory, a value for each profile"))
    return rows


def show_layers(layers: EngineLayers) -> None:
    """Every layer in a line of its own, with the graph's nodes in it."""
    echo()
    for layer in layers.layers:
        inside = f"  <- {', '.join(layer.nodes)}" if len(layer.nodes) > 1 else ""
        echo(f"{layer.precision or 'not said':9} {layer.kind or '-':24} {layer.name}{inside}")


def _plan(plan: PlanFacts) -> list[tuple[str, str]]:
    products = ", ".join(f"{count} {name}" for name, count in sorted(plan.by_precision.items()))
    rows = [
        ("Plan", f"{len(plan.kernels)} kernels, {plan.text_bytes / 1e6:.1f} MB of their source"),
        ("", f"products by what they compute in: {products}; {len(plan.attention)} fused attentions"),
    ]
    waits = [*plan.host_copies, *plan.jumps]
    if waits or not plan.capturable:
        steps = f": {len(plan.host_copies)} copies to the host, {len(plan.jumps)} conditional jumps" if waits else ""
        rows.append(("", f"can't be captured in a CUDA graph{steps}; export and build it again to be rid of that"))
    else:
        rows.append(("", "no copies to the host, no conditional jumps; can be captured in a CUDA graph"))
    return rows


def _counts(layers: EngineLayers) -> str:
    return ", ".join(f"{count} {name}" for name, count in layers.by_precision.items())


def _largest(layers: EngineLayers) -> str:
    most = max((len(layer.nodes) for layer in layers.fused), default=0)
    return f", the largest of {most}" if most else ""


def _share(share: Int8Share, kind: str) -> list[tuple[str, str]]:
    rows = [(kind, f"{share.running} of the {share.asked} products that the graph asks for run in {kind}")]
    rows += [("", f"{node} runs in {precision}, in {layer}") for node, layer, precision in share.elsewhere[:_SHOWN]]
    if len(share.elsewhere) > _SHOWN:
        rows.append(("", f"and {len(share.elsewhere) - _SHOWN} more, see --json"))
    if share.unknown:
        rows.append(("", f"{len(share.unknown)} are named by no layer, the first is {share.unknown[0]}"))
    return rows
