"""The pictures of the README, drawn from a recorded report.

python -m tests.tools.pictures    draws docs/pictures anew
"""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from textwrap import wrap

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from vitdeploy.core.storage import write_atomically
from vitdeploy.report.html.scatter import tradeoff
from vitdeploy.report.html.style import CSS
from vitdeploy.report.records import BenchReport
from vitdeploy.report.text import terminal_table

__all__ = ["FOLDER", "PICTURES", "REPORT"]

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
REPORT = FOLDER.parent / "results" / "cifar10-vit-small.json"
_COLUMNS = 110
_COMMAND = "$ vitdeploy bench bundles/vit-cifar10 --dataset cifar10 --baseline runs/vit-cifar10"
_SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def terminal(report: BenchReport) -> str:
    """What `bench` prints, as a window of a terminal."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(_COMMAND, style="bold"))
    console.print(terminal_table(report, _COLUMNS))
    drawn = console.export_svg(title="vitdeploy", theme=MONOKAI, unique_id="terminal")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S)  # a picture fetches nothing
    return drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas")


def page(report: BenchReport) -> str:
    """The head of the report's page: its sentence, and the change of accuracy against latency."""
    plot = tradeoff(report, 1000, "wide")
    assert plot is not None
    sentence = wrap(str(report.recommendation.get("sentence", "")), 105)
    top = 66 + 22 * len(sentence)
    lines = "".join(
        f'<text x="40" y="{66 + 22 * n}" class="lead">{escape(line)}</text>' for n, line in enumerate(sentence)
    )
    inner = plot.replace("<svg ", f'<svg x="40" y="{top}" width="1000" height="420" ', 1)
    height = top + 420 + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1080 {height}" width="1080" height="{height}">'
        f"<style>{_style()}</style>"
        f'<rect x="1" y="1" width="1078" height="{height - 2}" rx="12" fill="#ffffff" stroke="#e4e2dd"/>'
        f'<text x="40" y="38" class="over">vitdeploy benchmark</text>{lines}{inner}</svg>\n'
    )


def _style() -> str:
    """The rules of the page that its plot uses, and the colours of a light page."""
    used = r"\.(?:grid|tick|axis|label|lost|front|zero|whisker|series|hint|c-[\w-]+)\b"
    light = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", CSS)
    rules = [rule for rule in re.findall(r"[^{}]+\{[^{}]*\}", light) if re.search(used, rule) or ":root" in rule]
    own = (
        f"text {{ font-family: {_SANS}; }}",
        ".lead { font-size: 16px; fill: #1d2129; }",
        ".over { font-size: 13px; font-weight: 600; fill: #0f766e; letter-spacing: .08em; text-transform: uppercase; }",
    )
    return re.sub(r"\s+", " ", " ".join((*rules, *own))).replace("color-scheme: light dark;", "")


PICTURES = {"terminal.svg": terminal, "report.svg": page}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    report = BenchReport.read(REPORT)
    for name, draw in PICTURES.items():
        write_atomically(FOLDER / name, draw(report))


if __name__ == "__main__":
    main()
