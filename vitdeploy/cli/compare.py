"""`vitdeploy compare`: what changed between two benchmarks, and whether that is more than noise."""

from __future__ import annotations

import json
from pathlib import Path

import click

_MET = 3


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help='Exit with 3 where it is met, as in "int8.p50 > 1.1x". May be repeated.',
)
@click.option("--strict", is_flag=True, help="Let a change meet a condition though it is no more than noise.")
@click.option("--json", "json_file", metavar="FILE", help="Write the comparison as JSON; - for standard output.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), help="Write it as Markdown."
)
def command(
    before: Path,
    after: Path,
    conditions: tuple[str, ...],
    strict: bool,
    json_file: str | None,
    markdown_file: Path | None,
) -> int:
    """Compare two reports of `vitdeploy bench --json`, or two bundles that hold one.

    A condition is FORM[/BACKEND][@BATCH].METRIC, a sign, and a number: 1.1x (ratio), 10% (change), -0.5pt (change in
    points) or plain (the second report's own value). A change has to be more than noise to meet it.

    \b
    vitdeploy compare before.json after.json
    vitdeploy compare before.json bundles/vit --fail-if "int8.p50 > 1.1x" --fail-if "int8.top1 < -0.5pt"
    vitdeploy compare before.json after.json --fail-if "int8.drop > 1" --markdown summary.md
    """
    from vitdeploy.bench.compare import compare
    from vitdeploy.bench.conditions import judge, parse
    from vitdeploy.bench.difference import comparison_json, comparison_markdown, comparison_table, verdict_words
    from vitdeploy.bench.report import BenchReport
    from vitdeploy.cli.terminal import errors_console
    from vitdeploy.storage import write_atomically

    wanted = [parse(text) for text in conditions]
    comparison = compare(*(BenchReport.read(_file(path)) for path in (before, after)))
    verdicts = [judge(condition, comparison, strict=strict) for condition in wanted]
    text = json.dumps(comparison_json(comparison, verdicts), indent=1, ensure_ascii=False)
    if json_file == "-":
        click.echo(text)
    elif json_file is not None:
        write_atomically(Path(json_file), text + "\n")
    if markdown_file is not None:
        write_atomically(markdown_file, comparison_markdown(comparison, verdicts))
    for path in (json_file if json_file != "-" else None, markdown_file):
        if path is not None:
            errors_console.print(f"Written: {path}", markup=False)
    if json_file != "-":
        from rich.console import Console

        console = Console(highlight=False)
        console.width = max(console.width, 100) if console.is_terminal else 160
        console.print(comparison_table(comparison))
        for verdict in verdicts:
            sign = "✗" if verdict.met else "✓"
            console.print(f"{sign} {verdict.condition.text}: {verdict_words(verdict)}", markup=False)
    return _MET if any(verdict.met for verdict in verdicts) else 0


def _file(path: Path) -> Path:
    """A report's file; for a bundle the report that it holds."""
    return path / "bench" / "report.json" if path.is_dir() else path
