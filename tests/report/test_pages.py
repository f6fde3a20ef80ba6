"""The page, the table and the Markdown: well formed, escaped, without anything from outside, readable by a browser."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.tools.forms import Clock, KnownRunner, Pictures, form
from vitdeploy.bench import BenchReport, markdown, render_html, terminal_table
from vitdeploy.bench.measurement import Benchmark
from vitdeploy.bench.run import assemble
from vitdeploy.core.svg import linear, logarithmic
from vitdeploy.evaluation.accuracy import Answers
from vitdeploy.evaluation.multi_label import summarise_sets
from vitdeploy.report.html.markup import colour
from vitdeploy.report.html.scatter import _Box, _placed, distributions, tradeoff
from vitdeploy.report.html.style import CSS
from vitdeploy.report.recommendation import choice, headline, pareto_front, recommended
from vitdeploy.report.settings import BenchSettings
from vitdeploy.report.text import _table

EVIL = '<script>alert("&1")</script>'
VOID = {"meta", "img", "br", "wbr"}


@pytest.fixture(scope="module")
def report() -> BenchReport:
    """A report in which every text that can come from outside tries to break out."""
    clock, images = Clock(), Pictures(200, 10)
    images.labels = (EVIL, *images.labels[1:])
    draw = np.random.default_rng(0)

    def takes(milliseconds: float):
        return lambda: milliseconds * float(draw.lognormal(0, 0.04))

    forms = [
        form("fp32", "pytorch", KnownRunner(clock, 10, takes_ms=takes(30))),
        form("fp16", "openvino", KnownRunner(clock, 10, takes_ms=takes(20))),
        form("int8", "onnxruntime", KnownRunner(clock, 10, takes_ms=takes(8), flip=lambda n: n % 150 == 0)),
        form("fp16", "tensorrt-rtx", None, reason=f"no GPU {EVIL}"),
        form("int8", "openvino", KnownRunner(clock, 10, breaks_after=0, raises=RuntimeError(EVIL))),
    ]
    settings = BenchSettings(batch_sizes=(1, 4), rounds=12, callers=(1,), rates=(20.0, 60.0), load_seconds=3, threads=2)
    benchmark = Benchmark(forms, images, 10, settings, clock=clock)
    benchmark.run()
    facts = {
        "created": "2026-01-01T00:00:00+00:00",
        "machine": {
            "cpu": f"Fast {EVIL}",
            "cores": 4,
            "gpu": [{"name": EVIL, "driver": "1"}],
            "memory_bytes": 8 * 10**9,
        },
        "versions": {"python": "3.11"},
        "dataset": {"name": EVIL, "split": "test", "count": 200, "fingerprint": "0" * 64},
        "bundle": {"name": EVIL, "manifest_sha256": "1" * 64},
        "labels": images.labels,
        "notes": (EVIL,),
        "partial": True,
        "readings": (
            {
                "seconds": 0.0,
                "cpu_mhz": 2400.0,
                "cpu_celsius": None,
                "gpu": [{"clock_mhz": 1980.0, "celsius": 44.0, "watt": None}],
            },
        ),
        "analysis": {
            "data": {},
            "rows": [
                {"layer": EVIL, "kind": "linear", "macs_share": 0.1, "sqnr_db": 20.0, "drop": 0.4, "agreement": 0.99},
                {"layer": "encoder.layer.11.output.dense" * 3, "kind": EVIL, "drop": -0.1},
            ],
        },
        "command": f"vitdeploy bench '{EVIL}'",
        "settings": replace(settings, image_sizes=((4, 4),)),
    }
    return replace(assemble(benchmark, images, images.label_ids, facts), noise=(EVIL,))


class Tags(HTMLParser):
    """Keeps what is open, and fails where a tag closes another than the last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert len({name for name, _ in attrs}) == len(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else(report: BenchReport) -> None:
    page = render_html(report)
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert {"svg", "table", "img", "style"} <= set(tags.seen) and not {"script", "link", "iframe"} & set(tags.seen)
    assert tags.links and all(link.startswith("data:image/png;base64,") for link in tags.links)
    assert not re.search(r"https?://|@import|url\(", page)


def test_every_text_from_outside_is_escaped(report: BenchReport) -> None:
    page = render_html(report)
    assert EVIL not in page
    assert page.count("&lt;script&gt;") >= 10  # bundle, CPU, GPU, dataset, note, noise, reasons, label, command, layers


def test_the_page_says_what_matters(report: BenchReport) -> None:
    page = render_html(report)
    for words in ("INT8 on ONNX Runtime is the fastest form", "Partial.", "Noisy.", "recommended", "no GPU", "failed"):
        assert words in page
    for title in ("Latency against batch", "Throughput", "Latency under load", "What INT8 changed", "Layer by layer",
                  "Confused classes", "File size and memory"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert "does not keep up" in page  # PyTorch, at 60 a second
    assert "GPU 0 1980 MHz; GPU 0 44 °C, read now and then, never set" in page
    assert page.count("<svg") >= 4 and page.count('class="card image"') == len(report.disagreements) == 2


def test_the_page_is_the_same_from_json(report: BenchReport) -> None:
    assert render_html(BenchReport.from_json(report.to_json())) == render_html(report)


def test_ways_to_run_pytorch_have_colours_of_their_own(report: BenchReport) -> None:
    forms = ("fp32", "bf16-autocast", "fp16-autocast", "fp32-compile", "bf16-compile")
    colours = [colour(replace(report.rows[0], form=form)) for form in forms]
    assert colours[0] == "c-baseline" and len(set(colours)) == len(forms)
    assert all(f".{name} {{ --own" in CSS for name in colours)


@pytest.mark.parametrize(
    "names",
    [
        {"INT8 ONNX Runtime": 233, "FP32 OpenVINO": 493, "FP32 ONNX Runtime": 519, "FP32 PyTorch": 667},
        {
            "INT8 OpenVINO": 152,
            "INT8 ONNX Runtime": 216,
            "FP32 OpenVINO": 622,
            "FP16 OpenVINO": 624,
            "FP32 ONNX Runtime": 652,
            "FP16 ONNX Runtime": 761,
            "FP32 PyTorch": 981,
        },
    ],
    ids=["few", "many"],
)
def test_names_stay_clear_of_each_other_and_of_their_points(names: dict[str, float]) -> None:
    points = [_Box(x - 9, 91, x + 9, 109) for x in names.values()]
    taken, spans = list(points), []
    for name, x in names.items():
        found = re.search(
            r'x="([\d.]+)" y="([\d.]+)".*anchor="(\w+)"', _placed(name, x, 100, taken, _Box(50, 0, 990, 300))
        )
        assert found is not None
        width = 9.3 * len(name)  # as wide as a browser without the fonts of the page draws them
        left = float(found[1]) - {"start": 0.0, "middle": width / 2, "end": width}[found[3]]
        spans.append(_Box(left, float(found[2]) - 11, left + width, float(found[2]) + 3))
    wide = [_Box(box.left - 4, box.top, box.right + 4, box.bottom) for box in spans]  # every letter has an outline
    assert not any(a.overlap(b) for a, b in combinations(wide, 2))
    assert not any(name.overlap(point) for name in spans for point in points)


@pytest.mark.parametrize(("x", "y"), [(55, 20), (985, 20), (985, 285), (55, 285), (500, 12), (500, 290)])
def test_a_name_at_the_edge_stays_in_the_picture(x: float, y: float) -> None:
    border = _Box(50, 0, 990, 300)
    found = re.search(r'x="([\d.]+)" y="([\d.]+)".*anchor="(\w+)"', _placed("INT8 OpenVINO", x, y, [], border))
    assert found is not None
    width = 6.0 * len("INT8 OpenVINO")  # no letter is narrower on average
    left = float(found[1]) - {"start": 0.0, "middle": width / 2, "end": width}[found[3]]
    assert border.left <= left and left + width <= border.right
    assert border.top <= float(found[2]) - 8 and float(found[2]) <= border.bottom


def test_what_loses_too_much_lies_in_the_marked_part_of_the_picture(report: BenchReport) -> None:
    few = replace(report, settings=replace(report.settings, max_drop_points=0.2))
    picture = tradeoff(few, 800, "wide")
    assert picture is not None and "loses more than 0.2 points" in picture
    found = re.search(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" class="lost"', picture)
    assert found is not None
    left, top, width, height = map(float, found.groups())
    grid = [
        float(end)
        for end in re.findall(r'<line x1="[\d.]+" x2="[\d.]+" y1="[\d.]+" y2="([\d.]+)" class="grid"', picture)
    ]
    assert (left, left + width, top + height) == (54, 800 - 14, max(grid))


def test_the_dots_of_a_form_are_spread_around_its_line(report: BenchReport) -> None:
    picture = distributions(report, 800, "wide")
    assert picture is not None
    heights = [float(height) for height in re.findall(r'<circle [^>]*cy="([\d.]+)" r="2"', picture)]
    forms = [row for row in report.rows if row.latency]
    by_form = [[height for height in heights if abs(height - 58 * place - 36) <= 7] for place in range(len(forms))]
    assert sum(map(len, by_form)) == len(heights)
    assert all(max(of_one) - min(of_one) > 7 for of_one in by_form)


@pytest.mark.parametrize("draw", [distributions, tradeoff])
@pytest.mark.parametrize("width", [360, 1000])
def test_a_picture_is_as_large_as_what_is_in_it(report: BenchReport, draw: Any, width: int) -> None:
    picture = draw(report, width, "wide")
    drawn_width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)[0])
    down = [float(y) for y in re.findall(r' c?y[12]?="(-?[\d.]+)"', picture)]
    assert drawn_width == width and min(down) >= 0 and height - 20 < max(down) <= height


def test_f1_is_shown_where_there_is_one(report: BenchReport) -> None:
    draw = np.random.default_rng(0)
    has = (draw.random((60, 10)) < 0.3).astype(np.int8)
    answers = Answers((4.0 * has - 2).astype(np.float32), np.ones(60, np.bool_))
    found = summarise_sets(answers, has, 0.5)
    assert found is not None and found.f1_micro == 1
    for several, cell in (
        (replace(found, f1_micro=0.8765, f1_micro_ci95=(0.8, 0.912)), "<td>87.65 %<small>80.0 to 91.2</small></td>"),
        (replace(found, f1_micro=0.8765, f1_micro_ci95=None), "<td>87.65 %</td>"),  # as of an older report
        (replace(found, f1_micro=None), "<td>–</td>"),
    ):
        rows = tuple(replace(row, accuracy=None, multi_label=several) for row in report.rows[:1])
        page = render_html(replace(report, rows=rows, disagreements=()))
        (line,) = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*FP32(?:(?!</tr>).)*</tr>", page.partition("Every form")[2])[:1]
        assert cell in line and ("87.65 %" in line) == (several.f1_micro is not None)


def test_sizes_of_images_are_named_as_sizes(report: BenchReport) -> None:
    rows = []
    for row in report.rows:
        again = tuple(replace(item, image_size=(240, 320)) for item in row.latencies[:1])
        rows.append(replace(row, latencies=row.latencies + again))
    page = render_html(replace(report, rows=tuple(rows)))
    assert "Latency against image size" in page and ">240×320</text>" in page and ">4×4</text>" in page


def test_a_page_without_latency_or_accuracy_leaves_their_parts_out(report: BenchReport) -> None:
    slow = replace(report, rows=tuple(replace(row, latencies=()) for row in report.rows))
    unknown = replace(report, rows=tuple(replace(row, accuracy=None) for row in report.rows), disagreements=())
    for changed, missing in ((slow, "Distribution of latencies"), (unknown, "Class by class")):
        assert missing in render_html(report) and missing not in render_html(changed)
        assert "Accuracy against latency" not in render_html(changed)
    nothing = replace(report, rows=(), disagreements=(), recommendation={"key": None, "sentence": headline(slow)})
    Tags().feed(render_html(nothing))


@pytest.mark.parametrize(("width", "window"), [("wide", "1200,3000"), ("narrow", "500,3000")])
def test_a_real_browser_shows_it_without_errors(report: BenchReport, tmp_path: Path, width: str, window: str) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on the PATH")
    (tmp_path / "report.html").write_text(render_html(report), encoding="utf-8")
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={window}"),
    )
    # A page may not say that it is well only because nothing was loaded: the picture must hold more than a blank.
    picture = tmp_path / "page.png"
    page = (tmp_path / "report.html").as_uri()
    done = subprocess.run(
        [browser, *flags, f"--screenshot={picture}", page], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "CONSOLE" not in done.stderr
    from PIL import Image

    assert len(set(Image.open(picture).convert("L").resize((200, 500)).getdata())) > 30


def test_nothing_sticks_out_on_a_phone(report: BenchReport, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on the PATH")
    # A window is never as narrow as a phone; a frame in it can be. It tells its widths through the console.
    probe = "<script>console.log('width', document.documentElement.scrollWidth, innerWidth)</script>"
    (tmp_path / "report.html").write_text(render_html(report).replace("</body>", f"{probe}</body>"), encoding="utf-8")
    (tmp_path / "phone.html").write_text('<iframe src="report.html" width="360" height="800"></iframe>')
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--no-first-run")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *flags, profile, "--dump-dom", (tmp_path / "phone.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"width (\d+) (\d+)", done.stderr)
    assert found is not None, done.stderr[-500:]
    assert int(found[2]) <= 360 and int(found[1]) <= int(found[2])


def test_markdown_is_one_table_with_reasons_below(report: BenchReport) -> None:
    text = markdown(report)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 * 2 and {line.count("|") for line in lines} == {16}
    assert "- FP16 on TensorRT-RTX: skipped: no GPU" in text and "- INT8 on OpenVINO: failed" in text
    assert "Partial" in text and "Noisy" in text and "Command" in text


def test_what_was_not_measured_is_no_column(report: BenchReport) -> None:
    compared = replace(report, rows=tuple(replace(row, latencies=()) for row in report.rows))
    timed = replace(report, rows=tuple(replace(row, accuracy=None) for row in report.rows), disagreements=())
    for changed, there, missing in ((compared, "top-1", "speed-up"), (timed, "speed-up", "top-1")):
        (head,) = (line for line in markdown(changed).splitlines() if line.startswith("| form"))
        assert there in head and missing not in head
        assert there in shown(changed, 240) and f" {missing} " not in shown(changed, 240).splitlines()[0]
        table = render_html(changed).partition("<h2>Every form</h2>")[2].partition("</thead>")[0]
        assert f">{there}</th>" in table and f">{missing}</th>" not in table


def shown(report: BenchReport, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(terminal_table(report, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_shows_every_form_and_drops_intervals_where_it_is_narrow(report: BenchReport) -> None:
    wide, narrow = shown(report, 240), shown(report, 86)
    for width in range(100, 180):  # wherever it changes from one to the other, no number is cut off
        assert "…" not in shown(report, width).split("skipped")[0]
    assert max(len(line) for line in narrow.splitlines()) <= 86
    for text in (wide, narrow):
        assert "INT8" in text and "no GPU" in text and "Noisy" in text and "fastest form" in text
        assert "…" not in text
    assert "[" in wide.split("skipped")[0] and "[" not in narrow.split("skipped")[0]


@pytest.mark.parametrize("width", [60, 240])
def test_in_the_terminal_names_are_to_the_left_and_numbers_to_the_right(report: BenchReport, width: int) -> None:
    sides = [column.justify for column in _table(report, width).columns]
    assert sides == ["left"] * 2 + ["right"] * (len(sides) - 2) and len(sides) > 4


def test_the_front_and_the_choice(report: BenchReport) -> None:
    rows = report.rows
    assert pareto_front(rows) == {"fp16/openvino", "int8/onnxruntime"}
    best = choice(rows, report.settings)
    assert best is not None and best.key == "int8/onnxruntime"
    settings = replace(report.settings, max_drop_points=0.5)  # it loses one point: two of 200 images
    strict = choice(recommended(replace(report, settings=settings)).rows, settings)
    assert strict is not None and strict.key == "fp16/openvino"
    assert choice((), BenchSettings()) is None


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.001, 4000.0], [3.1, 3.2], [-4.0, 0.0, 2.5], [12.0, 29.0]])
def test_scales_have_a_few_round_ticks_inside(values: list[float]) -> None:
    scales = [linear(values, 0, 100)]
    if min(values) > 0:
        scales.append(logarithmic(values, 0, 100))
    for scale in scales:
        assert len(scale.ticks) <= 8 and all(0 <= scale(value) <= 100 for value in (*values, *scale.ticks))
        assert list(scale.ticks) == sorted(set(scale.ticks))
    assert len(scales[0].ticks) >= 2
