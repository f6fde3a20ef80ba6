"""`vitdeploy bench`: compare every form's latency and accuracy with PyTorch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vitdeploy.bench import BenchReport

_INTERRUPTED = 130
_UNITS = {"GIB": 2**30, "MIB": 2**20, "GB": 10**9, "MB": 10**6}


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between them: 1,8,32."""

    name = "n[,n...]"

    def __init__(self, kind: Callable[[str], float] = int) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 1,8", param, ctx)


class _Words(click.ParamType):  # type: ignore[type-arg]
    """Words out of a fixed set, with commas between them."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words
        self.name = "|".join(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(part.strip() for part in str(value).split(","))
        for word in words:
            if word not in self._words:
                self.fail(f"{word!r} is not one of {', '.join(self._words)}", param, ctx)
        return words


class _Sizes(click.ParamType):  # type: ignore[type-arg]
    """Image sizes with commas between them: 224,480x640 (height x width)."""

    name = "hxw[,hxw...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        sizes = []
        for part in str(value).lower().split(","):
            height, _, width = part.partition("x")
            try:
                sizes.append((int(height), int(width or height)))
            except ValueError:
                self.fail(f"{part!r} is no size such as 224 or 480x640", param, ctx)
        return tuple(sizes)


class _Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes with its unit: 500MB, 1.5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([\d.]+)\s*(GIB|MIB|GB|MB)", str(value).strip().upper())
        with contextlib.suppress(ValueError):
            if match is not None:
                return int(float(match[1]) * _UNITS[match[2]])
        return self.fail(f"{value!r} is no size such as 500MB or 1.5GB", param, ctx)


_BACKENDS = ("onnxruntime", "openvino", "native", "tensorrt", "tensorrt-rtx")
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-tensorrt")
_VARIANTS = ("bf16", "fp16", "compile", "bf16-compile")
_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, help="cifar10, digits, a Hub id, or a local folder or file.")
@click.option("--split", default="test", show_default=True, help="Which part of the dataset.")
@click.option("--image-column", help="Column that holds the images, where it can't be found.")
@click.option("--label-column", help="Column that holds the labels, where it can't be found.")
@click.option("--baseline", metavar="MODEL", help="Checkpoint (folder or Hub id) that PyTorch runs as the baseline.")
@click.option("--also", "baselines", type=_Words(_VARIANTS), default=(), help="More PyTorch rows: autocast, compiled.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where PyTorch runs.")
@click.option("--limit", type=click.IntRange(1), help="Compare on this many images; each class keeps its share.")
@click.option("--batch-size", "batch_sizes", type=_Numbers(), default="1", show_default=True, help="Batches to time.")
@click.option("--image-size", "image_sizes", type=_Sizes(), default=(), help="Raw images to time.  [default: as is]")
@click.option("--backend", "backends", type=_Words(_BACKENDS), help="Only these backends.")
@click.option("--precision", "precisions", type=_Words(_PRECISIONS), help="Only these forms.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of every backend.  [default: usable cores]")
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="Turns that each form has.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    help="Stop adding rounds after this time.",
)
@click.option("--callers", type=_Numbers(), default=(), help="Throughput with so many callers at once.")
@click.option(
    "--rate", "rates", type=_Numbers(float), default=(), help="Latency while so many requests a second arrive."
)
@click.option("--load-seconds", type=float, default=6.0, show_default=True, help="How long under each such load.")
@click.option(
    "--max-drop",
    "max_drop_points",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Points of top-1 the form to ship may lose.",
)
@click.option("--max-latency-ms", type=float, help="The most its p95 may be.")
@click.option("--max-memory", "max_memory_bytes", type=_Bytes(), help="The most memory it may take, as in 500MB.")
@click.option(
    "--prefer",
    type=click.Choice(["latency", "throughput", "size"]),
    default="latency",
    show_default=True,
    help="What it shall be best at.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Orders the rounds, draws the --limit images.")
@click.option("--latency/--no-latency", default=True, help="Measure times.")
@click.option("--accuracy/--no-accuracy", default=True, help="Compare answers.")
@click.option(
    "--accuracy-from",
    metavar="REPORT.json",
    type=click.Path(exists=True, path_type=Path),
    help="Take accuracy from this report where nothing that decides an answer differs.",
)
@click.option("--memory/--no-memory", default=True, help="Memory and cold start, each form in a fresh process.")
@click.option("--phases/--no-phases", default=True, help="Split latency: decode, preprocess, model, post.")
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - for standard output.")
@click.option("--report", "html_file", type=_OUTPUT, help="Write an HTML page.")
@click.option("--markdown", "markdown_file", type=_OUTPUT, help="Write Markdown.")
@click.option("--csv", "csv_file", type=_OUTPUT, help="Write CSV, a line per form and size.")
@click.option("--pictures/--no-pictures", default=True, help="Put small copies of disputed images into the report.")
@click.option("--save/--no-save", default=True, help="Keep report and choice in the bundle.")
@click.pass_context
def command(
    context: click.Context,
    /,
    bundle: Path,
    dataset: str,
    split: str,
    image_column: str | None,
    label_column: str | None,
    baseline: str | None,
    json_file: str | None,
    html_file: Path | None,
    markdown_file: Path | None,
    csv_file: Path | None,
    save: bool,
    pictures: bool,
    accuracy_from: Path | None,
    **options: Any,
) -> int:
    """Compare every form of BUNDLE that can run here: what it costs, what it keeps, which to ship.

    The forms take turns on the same images; each time runs from decoded pixels to class scores, PyTorch's with
    transformers' image processor. The form to ship is written into the bundle, where `load` finds it. Ctrl-C ends the
    measurement and keeps what was measured.

    \b
    vitdeploy bench bundles/vit --dataset cifar10 --baseline runs/vit
    vitdeploy bench bundles/vit --dataset photos/ --limit 500 --batch-size 1,8 --report bench.html
    vitdeploy bench bundles/vit --dataset photos/ --callers 1,4 --rate 20 --max-latency-ms 50 --prefer throughput
    vitdeploy bench bundles/vit --dataset digits --backend openvino --no-accuracy --json -
    """
    from vitdeploy.bench import BenchReport, BenchSettings, bench
    from vitdeploy.bench.reuse import with_accuracy
    from vitdeploy.bundle import Bundle
    from vitdeploy.datasets import load_dataset

    earlier = None if accuracy_from is None else BenchReport.read(accuracy_from)
    settings = BenchSettings(**{**options, "accuracy": options["accuracy"] and earlier is None})
    opened = Bundle.open(bundle)
    data = load_dataset(dataset, split, image_column=image_column, label_column=label_column)
    report = bench(opened, data, settings, baseline=baseline, command=_shown(context))
    if earlier is not None:
        report = with_accuracy(report, earlier)
    if not pictures:
        report = report.without_pictures()
    _write(report, json_file, {"html": html_file, "markdown": markdown_file, "csv": csv_file})
    if save:
        _keep(report, opened)
    if json_file != "-":
        show_report(report)
    return _INTERRUPTED if report.partial else 0


def _write(report: BenchReport, json_file: str | None, files: dict[str, Path | None]) -> None:
    from vitdeploy.bench import csv_text, markdown, render_html
    from vitdeploy.cli.terminal import errors_console
    from vitdeploy.storage import write_atomically

    if json_file == "-":
        click.echo(report.dumps())
    elif json_file is not None:
        report.write_json(Path(json_file))
        errors_console.print(f"Written: {json_file}", markup=False)
    makers = {"html": render_html, "markdown": markdown, "csv": csv_text}
    for kind, path in files.items():
        if path is not None:
            write_atomically(path, makers[kind](report))
            errors_console.print(f"Written: {path}", markup=False)


def _keep(report: BenchReport, bundle: Any) -> None:
    from vitdeploy import progress
    from vitdeploy.bench import render_html, save
    from vitdeploy.errors import VitdeployError

    if report.partial and bundle.manifest.choice is not None:
        progress.note("Note: the bundle keeps its earlier report and choice, since this report is partial")
        return
    try:
        choice = save(report, bundle, render_html(report))
    except (VitdeployError, OSError) as error:
        progress.note(f"Note: the report was not kept in the bundle: {error}")
    else:
        progress.note(f"Kept in the bundle: {bundle.path / 'bench' / 'report.html'}")
        if choice is not None:
            progress.note(f"Chosen for this machine: {choice.precision} on {choice.backend}")


def show_report(report: BenchReport) -> None:
    """Print the table and the sentence below it."""
    from rich.console import Console

    from vitdeploy.bench import terminal_table

    console = Console(highlight=False)
    # What is piped has no width of its own and keeps everything; no window makes the table cut its numbers off.
    width = max(console.width, 86) if console.is_terminal else 240
    console.width = width
    console.print(terminal_table(report, width))


def _shown(context: click.Context) -> str:
    """The command line as a reader may see it: paths that lead out of here are cut to their last part."""
    import shlex

    from vitdeploy.bench.machine import public_text

    def plain(value: Any, kind: Any) -> str:
        if isinstance(kind, _Bytes):
            return f"{value / 1e6:.10g}MB"
        parts = value if isinstance(value, tuple) else (value,)
        text = ",".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in parts)
        leads_out = text.startswith(("/", "~", ".."))
        return (Path(text).name or text) if leads_out else str(public_text(text))

    words = ["vitdeploy", "bench"]
    for option in context.command.params:
        name = option.name or ""
        value = context.params[name]
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(option, click.Option) and option.is_flag:
            words.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            shown = plain(value, option.type)
            words += [option.opts[0], shown] if isinstance(option, click.Option) else [shown]
    return shlex.join(words)
