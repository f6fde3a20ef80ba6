"""`vitdeploy bench`: compare every form's latency and accuracy with PyTorch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.backends.pytorch.variants import VARIANTS
from vitdeploy.backends.registry import PERFORMANCES, names
from vitdeploy.cli.exits import DONE, INTERRUPTED
from vitdeploy.cli.parameters import BackendOption, defaults_of
from vitdeploy.cli.terminal import echo_json, errors_console, new_console
from vitdeploy.cli.types import match_labels, outside_paths_option, trust_remote_code
from vitdeploy.core.precisions import form_names
from vitdeploy.report.settings import DEVICES, PREFERENCES, BenchSettings

if TYPE_CHECKING:
    from vitdeploy.bench import BenchReport

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
            self.fail(f"{value!r} is not a list of numbers such as 1,8", param, ctx)


class _Words(click.ParamType):  # type: ignore[type-arg]
    """Words out of a fixed set, with commas between them."""

    def __init__(self, words: Callable[[], tuple[str, ...]]) -> None:
        self._words = words

    @property
    def name(self) -> str:  # type: ignore[override]
        return "|".join(self._words())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(part.strip() for part in str(value).split(","))
        for word in words:
            if word not in self._words():
                self.fail(f"{word!r} is not one of {', '.join(self._words())}", param, ctx)
        return words


def _joined(
    context: click.Context, option: click.Parameter, given: tuple[tuple[str, ...], ...]
) -> tuple[str, ...] | None:
    """The words of an option that may be repeated, each once; None where it was not given."""
    return tuple(dict.fromkeys(word for words in given for word in words)) or None


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
                self.fail(f"{part!r} is not a size such as 224 or 480x640", param, ctx)
        return tuple(sizes)


class _Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes with its unit: 500MB, 1.5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([\d.]+)\s*(GIB|MIB|GB|MB)", str(value).strip().upper())
        with contextlib.suppress(ValueError):
            if match is not None:
                return int(float(match[1]) * _UNITS[match[2]])
        return self.fail(f"{value!r} is not a size such as 500MB or 1.5GB", param, ctx)


_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command("bench")
@defaults_of(BenchSettings)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, help="cifar10, digits, a Hub id, or a local folder or file.")
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Which part of the dataset; all: everything, where it has no splits.",
)
@click.option("--image-column", help="Column that holds the images, where it can't be found.")
@click.option("--label-column", help="Column that holds the labels, where it can't be found.")
@match_labels
@click.option("--baseline", metavar="MODEL", help="Checkpoint (folder or Hub id) that PyTorch runs as the baseline.")
@trust_remote_code
@click.option(
    "--also",
    "baselines",
    type=_Words(lambda: tuple(filter(None, VARIANTS))),
    metavar="NAME,...",
    default=(),
    help=f"More PyTorch rows: {', '.join(filter(None, VARIANTS))}.",
)
@click.option("--device", type=click.Choice(DEVICES), help="Where PyTorch runs.")
@click.option("--limit", type=click.IntRange(1), help="Compare on this many images; each class keeps its share.")
@click.option("--batch-size", "batch_sizes", type=_Numbers(), help="Batches to time.")
@click.option("--image-size", "image_sizes", type=_Sizes(), help="Raw images to time.  [default: as is]")
@click.option(
    "--backend",
    "backends",
    cls=BackendOption,
    type=_Words(partial(names, bundles=True)),
    metavar="NAME[,NAME...]",
    multiple=True,
    callback=_joined,
    help="Only these backends: {names}. May be repeated.",
)
@click.option(
    "--performance",
    type=click.Choice(PERFORMANCES),
    help="What OpenVINO is opened for: one call at a time, or several side by side.",
)
@click.option(
    "--precision",
    "precisions",
    type=_Words(form_names),
    multiple=True,
    callback=_joined,
    help="Only these forms. May be repeated.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of every backend.  [default: usable cores]")
@click.option("--rounds", type=click.IntRange(1), help="Rounds in which each form takes its turn.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(0),
    help="Stop adding rounds after this time; busy ones are made again until then.",
)
@click.option(
    "--keep-gpu-busy",
    is_flag=True,
    help="Let the GPU compute in the place of the rest before a call, so that its clock stays up.",
)
@click.option("--callers", type=_Numbers(), help="Throughput with so many callers at once.")
@click.option("--rate", "rates", type=_Numbers(float), help="Latency while so many requests a second arrive.")
@click.option("--load-seconds", type=float, help="How long under each such load.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Score from which a label counts, of several labels an image.  [default: the bundle's, or 0.5]",
)
@click.option(
    "--max-drop",
    "max_drop_points",
    type=click.FloatRange(0),
    help="Points of top-1 (several labels: mAP; embedding: kNN) the form to ship may lose.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(1),
    help="Of an embedding: the k of recall@k and of a classifier by nearest neighbours.",
)
@click.option("--min-cosine", type=click.FloatRange(0, 1), help="Least mean cosine to FP32 of an embedding to ship.")
@click.option("--min-recall", type=click.FloatRange(0, 1), help="Least recall@k of FP32's neighbours it may have.")
@click.option("--max-latency-ms", type=float, help="Highest p95 it may have.")
@click.option("--max-memory", "max_memory_bytes", type=_Bytes(), help="Most memory it may take, such as 500MB.")
@click.option(
    "--prefer",
    type=click.Choice(PREFERENCES),
    help="What it should be best at.",
)
@click.option("--seed", type=int, help="Orders the rounds, draws the --limit images.")
@click.option("--latency/--no-latency", help="Measure times.")
@click.option("--accuracy/--no-accuracy", help="Compare answers.")
@click.option(
    "--accuracy-from",
    metavar="REPORT.json",
    type=click.Path(exists=True, path_type=Path),
    help="Take accuracy from this report where nothing that decides an answer differs.",
)
@click.option("--memory/--no-memory", help="Memory and cold start, each form in a fresh process.")
@click.option("--phases/--no-phases", help="Split latency: decode, preprocess, model, post.")
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - for standard output.")
@click.option("--report", "html_file", type=_OUTPUT, help="Write an HTML page.")
@click.option("--markdown", "markdown_file", type=_OUTPUT, help="Write Markdown.")
@click.option("--csv", "csv_file", type=_OUTPUT, help="Write CSV, a line per form and size.")
@click.option("--pictures/--no-pictures", default=True, help="Put small copies of disputed images into the report.")
@click.option("--save/--no-save", default=True, help="Keep report and choice in the bundle.")
@click.pass_context
@outside_paths_option
def command(
    context: click.Context,
    /,
    bundle: Path,
    dataset: str,
    split: str,
    image_column: str | None,
    label_column: str | None,
    baseline: str | None,
    trust_remote_code: bool,
    json_file: str | None,
    html_file: Path | None,
    markdown_file: Path | None,
    csv_file: Path | None,
    save: bool,
    pictures: bool,
    accuracy_from: Path | None,
    **options: Any,
) -> int:
    """Compare latency and accuracy of every form of BUNDLE that can run here, and recommend one.

    The forms take turns on the same images; each time runs from decoded pixels to class scores, PyTorch's with
    transformers' image processor. The form to ship is written into the bundle, where `load` finds it. Ctrl-C ends the
    measurement and keeps what was measured.

    \b
    vitdeploy bench bundles/vit --dataset cifar10 --baseline runs/vit
    vitdeploy bench bundles/vit --dataset photos/ --limit 500 --batch-size 1,8 \\
        --report bench.html
    vitdeploy bench bundles/vit --dataset photos/ --callers 1,4 --rate 20 \\
        --max-latency-ms 50 --prefer throughput
    vitdeploy bench bundles/vit --dataset digits --backend openvino \\
        --no-accuracy --json -
    """
    from vitdeploy.bench import BenchReport, bench
    from vitdeploy.bundle import Bundle
    from vitdeploy.core.storage import check_apart, check_writable
    from vitdeploy.data import load_dataset
    from vitdeploy.report.merge_accuracy import with_accuracy

    earlier = None if accuracy_from is None else BenchReport.read(accuracy_from)
    settings = BenchSettings(**{**options, "accuracy": options["accuracy"] and earlier is None})
    opened = Bundle.open(bundle)
    for file in (json_file, html_file, markdown_file, csv_file):
        if file not in (None, "-"):
            check_apart(file, (dataset, baseline, accuracy_from, *opened.files()))
            check_writable(file)
    save = save and _can_keep(opened)
    labelled = options["accuracy"] and opened.manifest.embedding is None
    data = load_dataset(dataset, split, image_column=image_column, label_column=label_column, labelled=labelled)
    report = bench(
        opened, data, settings, baseline=baseline, trust_remote_code=trust_remote_code, command=_shown(context)
    )
    report = report if earlier is None else with_accuracy(report, earlier)
    report = report if pictures else report.without_pictures()
    _write(report, json_file, {"html": html_file, "markdown": markdown_file, "csv": csv_file})
    if save:
        _keep(report, opened)
    if json_file != "-":
        show_report(report)
    return INTERRUPTED if report.partial else DONE


def _write(report: BenchReport, json_file: str | None, files: dict[str, Path | None]) -> None:
    from vitdeploy.bench import csv_text, markdown, render_html
    from vitdeploy.core.storage import write_atomically

    if json_file == "-":
        echo_json(report.dumps())
    elif json_file is not None:
        report.write_json(Path(json_file))
        errors_console.print(f"Written: {json_file}", markup=False, soft_wrap=True)
    makers = {"html": render_html, "markdown": markdown, "csv": csv_text}
    for kind, path in files.items():
        if path is not None:
            write_atomically(path, makers[kind](report))
            errors_console.print(f"Written: {path}", markup=False, soft_wrap=True)


def _can_keep(bundle: Any) -> bool:
    """Whether the bundle may be written to; a note says why not, before minutes go into the measurement."""
    from vitdeploy.core import progress
    from vitdeploy.core.errors import BundleError

    try:
        bundle.check_changeable()
    except BundleError as error:
        progress.note(f"Note: the report will not be kept in the bundle: {error}")
        return False
    return True


def _keep(report: BenchReport, bundle: Any) -> None:
    from vitdeploy.bench import render_html, save
    from vitdeploy.core import progress
    from vitdeploy.core.errors import VitdeployError

    busy = any(latency.busy for row in report.rows for latency in row.latencies)
    if (report.partial or busy) and bundle.manifest.choice is not None:
        why = "this report is partial" if report.partial else "the machine was busy"
        progress.note(f"Note: {why}, so the bundle keeps its earlier report and recommendation")
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

    from vitdeploy.bench import terminal_table

    console = new_console()
    width = console.width if console.is_terminal else 240  # what is piped has no width, and keeps everything
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
        value = context.params.get(name, True)  # a flag that is not a parameter of the function
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(option, click.Option) and option.is_flag:
            words.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            shown = plain(value, option.type)
            words += [option.opts[0], shown] if isinstance(option, click.Option) else [shown]
    return shlex.join(words)
