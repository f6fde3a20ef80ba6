"""`vitdeploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitdeploy.cli.terminal import echo
from vitdeploy.core.text import quoted

if TYPE_CHECKING:
    from vitdeploy.report.records import BenchReport

__all__ = ["command"]


@click.command("report")
@click.argument("source", metavar="BUNDLE_OR_REPORT", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write. Default: a new one."
)
@click.option("--open/--no-open", "opens", default=True, show_default=True, help="Open the page in a browser.")
def command(source: Path, output: Path | None, opens: bool) -> None:
    """Show the last benchmark of a bundle, or a report of `vitdeploy bench --json`, as a page.

    The page is drawn from the numbers, not taken from the bundle: it holds no script and fetches nothing, whoever made
    the bundle.

    \b
    Example:
      vitdeploy report bundles/vit
      vitdeploy report report.json --output report.html --no-open
    """
    import tempfile
    import webbrowser

    from vitdeploy.core.storage import check_apart, write_atomically
    from vitdeploy.report.html import render_html

    page = render_html(_read(source))
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="vitdeploy-")) / "report.html"
    else:
        check_apart(output, [source])
    write_atomically(output, page)
    if opens and not webbrowser.open(output.resolve().as_uri()):
        echo("No browser was found: open the file yourself.", err=True)
    echo(output)


def _read(source: Path) -> BenchReport:
    from vitdeploy.bundle import Bundle
    from vitdeploy.bundle.measurements import REPORT, last_report
    from vitdeploy.core.errors import BundleError
    from vitdeploy.report.records import BenchReport

    if source.is_file():
        return BenchReport.read(source)
    bundle = Bundle.open(source)
    artifact = last_report(bundle)
    if artifact is None:
        raise BundleError(
            f"{source} has not been measured: it holds no {REPORT}",
            hint=f"vitdeploy bench {quoted(source)} --dataset DATASET",
        )
    return BenchReport.read(bundle.file(artifact))
