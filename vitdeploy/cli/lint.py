"""`vitdeploy lint`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitdeploy.cli.exits import DONE, INCONCLUSIVE, MET
from vitdeploy.cli.parameters import defaults_of
from vitdeploy.cli.terminal import echo_json, new_console
from vitdeploy.compiler.lint.findings import TARGETS
from vitdeploy.compiler.lint.request import ImageRequest
from vitdeploy.core.text import on_one_line

if TYPE_CHECKING:
    from vitdeploy.compiler.lint.measured import MeasuredGraph
    from vitdeploy.compiler.lint.report import GraphReport, LintReport
    from vitdeploy.compiler.lint.rule import Finding

__all__ = ["command"]

_SHOWN, _MEASURED = 3, 8
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_CODES = {"error": MET, "warning": INCONCLUSIVE, "info": DONE, None: DONE}


@click.command("lint")
@defaults_of(ImageRequest)
@click.argument("path", metavar="FILE_OR_BUNDLE", type=click.Path())
@click.option(
    "--target",
    "targets",
    type=click.Choice(tuple(TARGETS)),
    multiple=True,
    help="What the graph is for, once or more. Default: TensorRT 10.3, 11 and RTX; a bundle's graph for CPUs: cpu.",
)
@click.option(
    "--measure",
    "images",
    metavar="IMAGES",
    help="Run the graph on images: a dataset's name, Hub id or path, or a .npy file of what its input takes.",
)
@click.option("--split", help="Which part of the dataset to measure on.")
@click.option("--count", type=click.IntRange(min=1), help="How many images to measure.")
@click.option("--processor", metavar="CHECKPOINT", help="Whose image processor prepares images for a graph of floats.")
@click.option("--all", "show_all", is_flag=True, help="List every place of a finding, not the first three.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    path: str, targets: tuple[str, ...], images: str | None, show_all: bool, as_json: bool, **options: Any
) -> int:
    """Say what will go wrong with an ONNX graph on TensorRT, and where.

    The graph may come from any exporter and any quantiser: torch.onnx, Optimum, timm, onnxruntime.quantization,
    Model-Optimizer. Of a bundle every graph is looked at. No GPU is needed. Each finding has a page in docs/lint.

    With --measure the graph runs in ONNX Runtime beside itself in FP32: the range of each node, what is beyond FP16,
    and the signal-to-noise ratio (SQNR). A graph with Q/DQ is compared with itself without the Q/DQ of activations, one
    in half precision with itself in FP32, and one in FP32 is rounded to FP16 behind each operation. A graph that takes
    floats needs --processor, or pixel values in a .npy file.

    Exit codes: 3 where something is an error (it won't build, or computes wrongly), 4 where the worst is a warning
    (slower or less accurate than it could be), 0 otherwise; 1 and 2 as everywhere.

    The JSON has schema_version, type ("lint"), name, graphs (file, targets, precision, opset, producer, products,
    unknown_products, macs, share_quantized, findings: rule, severity, title, remedy, page, targets, places: node,
    layer, text, targets; measured: images, source, reference, nodes: node, layer, op_type, low, high, beyond_fp16,
    not_finite, sqnr_db; or null), counts (error, warning, info) and worst.

    \b
    Examples:
      vitdeploy lint model.onnx
      vitdeploy lint bundles/vit --target tensorrt-10.3 --json
      vitdeploy lint model.onnx --measure photos --processor runs/vit
    """
    from vitdeploy.compiler.lint.run import lint

    request = None if images is None else ImageRequest(images, **options)
    report = lint(path, targets=targets or None, images=request)
    if as_json:
        echo_json(report.to_json())
    else:
        _show(new_console(), report, show_all)
    return _CODES[report.worst]


def _show(console: Console, report: LintReport, show_all: bool) -> None:
    for number, graph in enumerate(report.graphs):
        if number:
            console.print()
        _show_graph(console, graph, show_all)
    counts = ", ".join(f"{count} {severity}" for severity, count in report.counts.items() if count)
    console.print(f"\n{counts or 'Nothing found'}", style="bold" if counts else "green")


def _show_graph(console: Console, graph: GraphReport, show_all: bool) -> None:
    console.print(Text(on_one_line(graph.file), style="bold"), soft_wrap=True)
    facts = [graph.precision]
    facts += [f"opset {graph.opset}"] if graph.opset is not None else []
    facts += [f"by {on_one_line(graph.producer)}"] if graph.producer else []
    if graph.macs is not None:
        known = graph.products - graph.unknown_products
        of = f" in the {known} of {graph.products} products whose sizes are known" if graph.unknown_products else ""
        facts.append(f"{graph.macs / 1e9:.3g} GMACs{of}")
    if graph.share:
        facts.append(f"{graph.share:.1%} of them quantised")
    console.print(_indented(f"{', '.join(facts)}; for {', '.join(graph.targets)}", 2))
    if graph.measured is not None:
        _show_measured(console, graph.measured, show_all)
    for finding in graph.findings:
        _show_finding(console, finding, show_all)


def _show_measured(console: Console, measured: MeasuredGraph, show_all: bool) -> None:
    """The noisiest nodes and their ranges, or all in the order of the graph."""
    console.print(_indented(f"{measured.images} images of {on_one_line(measured.source)}: {measured.reference}.", 2))
    nodes = list(measured.nodes)
    if not show_all:
        nodes = sorted(nodes, key=lambda node: (-node.not_finite, _or_infinity(node.sqnr_db)))[:_MEASURED]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("node", overflow="fold")
    for name in ("lowest", "highest", "SQNR dB"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in nodes:
        ratio = "not finite" if node.not_finite else "" if node.sqnr_db is None else f"{node.sqnr_db:.1f}"
        table.add_row(Text(on_one_line(node.node)), f"{node.low:.4g}", f"{node.high:.4g}", ratio)
    console.print(Padding(table, (0, 0, 0, 2)))
    if len(measured.nodes) > len(nodes):
        console.print(_indented(f"the noisiest {len(nodes)} of {len(measured.nodes)} (--all)", 2))


def _or_infinity(ratio: float | None) -> float:
    return math.inf if ratio is None else ratio


def _show_finding(console: Console, finding: Finding, show_all: bool) -> None:
    rule, places = finding.rule, finding.places
    head = Text(f"\n{rule.severity} ", style=_STYLES[rule.severity])
    head.append(f"{rule.title} ({rule.id})", style="bold")
    console.print(head)
    shown = places if show_all else places[:_SHOWN]
    for place in shown:
        layer = f" [{place.layer}]" if place.layer and place.layer not in place.text else ""
        console.print(_indented(on_one_line(place.text) + on_one_line(layer), 2))
    if len(places) > len(shown):
        console.print(_indented(f"and {len(places) - len(shown)} more (--all)", 2))
    console.print(_indented(f"Remedy: {rule.remedy}", 2))


def _indented(text: str, by: int) -> Padding:
    return Padding(Text(text), (0, 0, 0, by))
