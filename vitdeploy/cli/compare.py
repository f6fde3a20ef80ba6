"""`vitdeploy compare`: what changed between two benchmarks, and whether that is more than noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitdeploy.bundle.measurements import REPORT
from vitdeploy.cli.exits import DONE, INCONCLUSIVE, MET
from vitdeploy.cli.terminal import echo_json, errors_console, new_console

if TYPE_CHECKING:
    from vitdeploy.report.comparison import Comparison
    from vitdeploy.report.conditions import Outcome

_BREAK = "\0"  # stands for the -- between the two sides


class _TwoSides(click.Command):
    """Keeps the place of --, which Click would take away."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_BREAK if argument == "--" else argument for argument in args])


@click.command("compare", cls=_TwoSides)
@click.argument("reports", nargs=-1, required=True, metavar="BEFORE... [--] AFTER...")
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help='Exit with 3 if it is met, such as "int8.p50 > 1.1x". May be repeated.',
)
@click.option("--strict", is_flag=True, help="Let a change meet a condition even if it is within noise.")
@click.option(
    "--blind",
    "inconclusive",
    type=click.Choice(["fail", "pass"]),
    default="fail",
    show_default=True,
    help="What to do where a condition is inconclusive: exit with 4, or pass.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison as JSON; - for standard output.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), help="Write it as Markdown."
)
def command(
    reports: tuple[str, ...],
    conditions: tuple[str, ...],
    strict: bool,
    inconclusive: str,
    json_file: str | None,
    markdown_file: Path | None,
) -> int:
    """Compare two reports of `vitdeploy bench --json`, or two bundles that hold one.

    Several reports of a side, with -- between the sides, tell how much runs differ. A condition is
    FORM[/BACKEND][@BATCH].METRIC, a sign, and a number: 1.1x (ratio), 10% (change), -0.5pt (change in points) or plain
    (the second report's own value). Times count relative to the baseline's. A change has to be more than noise to
    meet a condition.

    Exit codes: 0, 1 for an error, 2 for wrong usage, 3 where a condition is met, 4 where one is inconclusive.

    \b
    vitdeploy compare before.json after.json
    vitdeploy compare before1.json before2.json -- after1.json after2.json \\
        --fail-if "int8.p50 > 1.1x"
    vitdeploy compare before.json bundles/vit --fail-if "int8.drop > 1" \\
        --markdown summary.md
    """
    from vitdeploy.core.storage import check_apart
    from vitdeploy.report.comparison import compare
    from vitdeploy.report.conditions import evaluate, parse
    from vitdeploy.report.records import BenchReport

    wanted = [parse(text) for text in conditions]
    sides = [[_file(Path(path)) for path in side] for side in _sides(reports)]
    for file in (json_file, markdown_file):
        if file not in (None, "-"):
            check_apart(file, [path for side in sides for path in side])
    comparison = compare(*([BenchReport.read(path) for path in side] for side in sides))
    outcomes = [evaluate(condition, comparison, strict=strict) for condition in wanted]
    _write(comparison, outcomes, json_file, markdown_file)
    if json_file != "-":
        _show(comparison, outcomes)
    states = {outcome.state for outcome in outcomes}
    return MET if "met" in states else INCONCLUSIVE if "inconclusive" in states and inconclusive == "fail" else DONE


def _write(comparison: Comparison, outcomes: list[Outcome], json_file: str | None, markdown_file: Path | None) -> None:
    from vitdeploy.core.storage import write_atomically
    from vitdeploy.report.comparison_text import comparison_json, comparison_markdown

    text = json.dumps(comparison_json(comparison, outcomes), indent=1, ensure_ascii=False)
    if json_file == "-":
        echo_json(text)
    elif json_file is not None:
        write_atomically(Path(json_file), text + "\n")
    if markdown_file is not None:
        write_atomically(markdown_file, comparison_markdown(comparison, outcomes))
    for path in (json_file if json_file != "-" else None, markdown_file):
        if path is not None:
            errors_console.print(f"Written: {path}", markup=False, soft_wrap=True)


def _show(comparison: Comparison, outcomes: list[Outcome]) -> None:
    from vitdeploy.report.comparison_text import SIGNS, comparison_table, outcome_words

    console = new_console()
    console.width = console.width if console.is_terminal else 160
    console.print(comparison_table(comparison, console.width))
    for outcome in outcomes:
        console.print(
            f"{SIGNS[outcome.state]} {outcome.condition.text}: {outcome_words(outcome)}",
            soft_wrap=not console.is_terminal,
        )


def _sides(reports: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The reports before and after."""
    if reports.count(_BREAK) == 1:
        place = reports.index(_BREAK)
        before, after = reports[:place], reports[place + 1 :]
    else:
        before, after = reports[:1], reports[1:]
    if _BREAK in (*before, *after) or not before or not after or (_BREAK not in reports and len(reports) != 2):
        raise click.UsageError("name BEFORE and AFTER, or several of each with -- between them")
    return before, after


def _file(path: Path) -> Path:
    """A report's file; for a bundle the report that it holds."""
    return path / REPORT if path.is_dir() else path
