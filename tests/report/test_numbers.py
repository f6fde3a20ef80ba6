"""Every number of a report stands where it belongs, in its unit, in each of its written forms.

The report is made by hand, and no two numbers in it are the same.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vitdeploy.bench import BenchReport, BenchSettings, csv_text, markdown, render_html
from vitdeploy.evaluation.accuracy import Accuracy
from vitdeploy.evaluation.changes import Changes, Confusion, Disagreement
from vitdeploy.evaluation.multi_label import MultiLabelAccuracy
from vitdeploy.evaluation.vectors import Kept, Neighbours, VectorQuality
from vitdeploy.report.records import (
    ArtifactRef,
    ClosedLoad,
    Latency,
    Load,
    Memory,
    OpenLoad,
    Phases,
    Ratio,
    Row,
    Samples,
    Times,
)


def times(ms: float, count: int) -> dict[str, float]:
    return {"p50": ms, "p90": ms + 1, "p95": ms + 2, "p99": ms + 3, "min": ms - 1, "mean": ms + 0.5, "count": count}


def samples(ms: float, count: int) -> Samples:
    return Samples(**times(ms, count), samples=(ms - 1, ms, ms + 4))  # type: ignore[arg-type]


def took(ms: float, count: int = 300) -> Times:
    return Times(**times(ms, count))  # type: ignore[arg-type]


ALIKE = Ratio(1.0, (1.0, 1.0))
BASE = Row(
    "fp32/pytorch",
    "fp32",
    "pytorch",
    "ok",
    artifact=ArtifactRef("vit", "a" * 64),
    size_bytes=86_200_000,
    cold_start_ms=5310.0,
    latencies=(
        Latency(
            1, (32, 48), samples(40.5, 201), samples(38.25, 603), 25.8, ALIKE, ALIKE, memory=Memory(512_300_000, None)
        ),
    ),
    accuracy=Accuracy(0.881, 0.9934, 2000, (0.8661, 0.8945), 0.0277, (0.93, 0.832)),
)
FORM = Row(
    "int8/tensorrt",
    "int8",
    "tensorrt",
    "ok",
    device="cuda",
    artifact=ArtifactRef("engines/int8.engine", "b" * 64),
    size_bytes=22_900_000,
    cold_start_ms=1430.0,
    latencies=(
        Latency(
            1,
            (32, 48),
            samples(10.25, 204),
            samples(9.5, 612),
            104.5,
            Ratio(3.95, (3.81, 4.12)),
            Ratio(4.03, (3.97, 4.24)),
            took(7.75),
            Ratio(4.41, (4.32, 4.56)),
            1755.0,
            Memory(123_400_000, 45_600_000),
        ),
        Latency(8, (64, 96), samples(61.0, 207), samples(58.5, 621), 135.5, Ratio(5.15, None), Ratio(5.35, None)),
    ),
    phases=Phases(0.75, 2.05, 8.2, 0.06, 0.2, (0.193, 0.221)),
    load=Load(
        (ClosedLoad(4, 211.5, took(18.4)),),
        (OpenLoad(20.0, 4, took(12.5), took(11.3), True), OpenLoad(90.0, 4, took(99.0), took(11.6), False)),
    ),
    accuracy=Accuracy(
        0.8765,
        0.9912,
        2000,
        (0.8614, 0.8902),
        0.0321,
        (0.91, 0.843),
        -0.0045,
        (-0.0092, 0.0003),
        0.0083,
        0.0931,
        0.9634,
        Confusion((0, 0, 1, 1), (0, 1, 0, 1), (910, 90, 157, 843)),
        Changes(21, 12, 7, (0,), (1,), (19,), 0.8123, 0.8311),
    ),
)
REPORT = BenchReport(
    created="2026-01-01T00:00:00+00:00",
    machine={"cpu": "A", "cores": 4, "gpu": [{"name": "G"}]},
    versions={},
    dataset={"name": "photos", "split": "test", "count": 2000},
    bundle={"name": "vit"},
    baseline={"key": "fp32/pytorch", "name": "PyTorch", "description": "PyTorch"},
    settings=BenchSettings(batch_sizes=(1, 8), image_sizes=((32, 48), (64, 96))),
    labels=("cat", "dog"),
    rows=(BASE, FORM),
)
SETS = MultiLabelAccuracy(
    0.7123, (0.6911, 0.7344), 0.6811, 0.6022, 0.4133, (0.3922, 0.4355), 0.37, 2000, 2, (0.8166, 0.6088), -0.0065,
    (-0.0113, 0.0014), 0.0107, -0.0021, (-0.0088, 0.0044), -0.0032, (-0.0111, 0.0055), 0.9477, (0.6644, 0.6977),
    (0.5799, 0.6233),
)  # fmt: skip
VECTORS = VectorQuality(
    7, 2000, Kept(0.9987, (0.9981, 0.9992)), Kept(0.9911, (0.9902, 0.9922)), Kept(0.9733, (0.9655, 0.9811)),
    Kept(0.9622, (0.9577, 0.9666)), Kept(0.9515, (0.9466, 0.9561)), Kept(0.9404, (0.9351, 0.9455)),
    Neighbours(0.8342, (0.8173, 0.8499), -0.0075, (-0.0133, -0.0016), 0.0124),
)  # fmt: skip


class Tables(HTMLParser):
    """The tables of a page: by the heading above each, and by the first cell of each line, its cells by their heads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, list[dict[str, str]]]] = {}
        self._heading, self._into, self._heads, self._line = "", "", list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "thead":
            self._heads = []
        elif tag == "tr":
            self._line = []
        elif tag == "h2":
            self._into, self._heading = tag, ""
        elif tag in ("td", "th"):
            self._into = tag
            (self._line if tag == "td" else self._heads).append("")
        elif tag in ("small", "br", "span") and self._into == "td":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._line:
            first, *cells = (" ".join(cell.split()) for cell in self._line)
            lines = self.found.setdefault(self._heading, {}).setdefault(first, [])
            lines.append(dict(zip([head.strip() for head in self._heads[1:]], cells, strict=True)))
        elif tag in ("td", "th", "h2"):
            self._into = ""

    def handle_data(self, data: str) -> None:
        if self._into == "h2":
            self._heading += data
        elif self._into:
            (self._line if self._into == "td" else self._heads)[-1] += data


def of_kind(found: str) -> BenchReport:
    """The same report of a model with several labels, or of an embedding; the form was not timed."""
    if found == "several labels":
        own = replace(SETS, delta=None, delta_ci95=None, agreement=None, per_label=(0.82, 0.61))
        rows = replace(BASE, accuracy=None, multi_label=own), replace(FORM, accuracy=None, multi_label=SETS)
    else:
        kept = VectorQuality(7, 2000, knn=Neighbours(0.8417, (0.8251, 0.8571)))
        rows = replace(BASE, accuracy=None, embedding=kept), replace(FORM, accuracy=None, embedding=VECTORS)
    return replace(REPORT, rows=(rows[0], replace(rows[1], latencies=(), phases=None, load=Load())))


def test_the_page_shows_each_time() -> None:
    tables = Tables(render_html(REPORT)).found
    base, (form, large) = tables["Every form"]["FP32 PyTorch"][0], tables["Every form"]["INT8 TensorRT"]
    assert {head: form[head] for head in form if head not in ("top-1", "change", "size")} == {
        "batch": "1",
        "image": "32×48",
        "p50 ms": "10.25 n 204",
        "p95": "12.25",
        "p99": "13.25",
        "speed-up": "3.95× 3.81 to 4.12",
        "steady p50": "9.50 n 612",
        "steady speed-up": "4.03× 3.97 to 4.24",
        "GPU p50": "7.75",
        "GPU speed-up": "4.41× 4.32 to 4.56",
        "images/s": "104",
        "memory": "123.4 MB GPU 45.6 MB",
        "start": "1.43 s",
    }
    assert (large["batch"], large["image"], large["p50 ms"]) == ("8", "64×96", "61.00 n 207")
    assert (large["speed-up"], large["steady speed-up"], large["memory"]) == ("5.15×", "5.35×", "–")
    assert (large["start"], large["size"], large["top-1"]) == ("", "", ""), "what is the form's own stands there once"
    assert (base["p50 ms"], base["speed-up"], base["steady speed-up"]) == ("40.50 n 201", "1× baseline", "1× baseline")
    assert (base["GPU p50"], base["GPU speed-up"], base["memory"], base["start"]) == ("–", "–", "512.3 MB", "5.31 s")


def test_the_page_shows_where_time_goes_and_what_load_does() -> None:
    page = render_html(REPORT)
    tables = Tables(page).found
    assert tables["Where the time goes"]["INT8 TensorRT"][0] == {
        "": "",
        "decode": "0.75",
        "preprocess": "2.05",
        "model": "8.20",
        "post": "0.060",
        "share": "20.0 % 19.3 to 22.1",
    }
    for part in ("decode 0.75", "preprocess 2.05", "model 8.20", "post 0.060"):
        assert f'title="{part} ms"' in page
    assert 'style="width:18.54%" title="preprocess' in page, "of the whole call, 2.05 of 11.06 ms"
    assert tables["Throughput"]["INT8 TensorRT"] == [{"4 callers": "212 p95 20.40 ms"}]
    (open_,) = tables["Latency under load"]["INT8 TensorRT"]
    assert open_ == {"20 a second": "12.50 · 14.50 11.30 · 13.30 not counted", "90 a second": "does not keep up"}


def test_the_page_shows_sizes_and_memory() -> None:
    memory = Tables(render_html(REPORT)).found["File size and memory"]
    heads = ("file", "memory of the process", "memory of the GPU")
    assert [memory["FP32 PyTorch"][0][head] for head in heads] == ["86.2 MB", "512.3 MB", "–"]
    assert [memory["INT8 TensorRT"][0][head] for head in heads] == ["22.9 MB", "123.4 MB", "45.6 MB"]
    on_cpu = Tables(render_html(replace(REPORT, rows=(BASE,)))).found["File size and memory"]
    assert on_cpu == {"FP32 PyTorch": [{"file": "86.2 MB", "memory of the process": "512.3 MB"}]}


def test_the_page_shows_what_answers_became() -> None:
    page = render_html(REPORT)
    tables = Tables(page).found
    form = tables["Every form"]["INT8 TensorRT"][0]
    assert (form["top-1"], form["change"], form["size"]) == (
        "87.65 % 86.1 to 89.0",
        "−0.45 −0.92 to +0.03",
        "22.9 MB",
    )
    assert tables["Every form"]["FP32 PyTorch"][0]["top-1"] == "88.10 % 86.6 to 89.5"
    assert tables["Changed answers"]["INT8 TensorRT"][0] == {
        "agreement": "96.34 %",
        "right → wrong": "21",
        "wrong → right": "12",
        "wrong → wrong": "7",
        "confidence": "81.2 % −1.88 points",
        "calibration error": "3.21 %",
        "top-5": "99.12 %",
    }
    assert '<span class="bad">21</span>' in page and '<span class="good">12</span>' in page
    assert "(the baseline's is 2.77 %)" in page
    assert "cat → dog" in page and "<em>19</em>" in page
    by_class = tables["Class by class"]
    assert by_class["cat"] == [{"baseline": "93.0 %", "INT8TensorRT": "−2.00"}]
    assert by_class["dog"] == [{"baseline": "83.2 %", "INT8TensorRT": "+1.10"}]
    assert "McNemar p" in page and "INT8 on TensorRT 0.093<" in page


def test_of_an_interrupted_run_the_page_counts_the_images_that_were_seen() -> None:
    """Of 2,000: the baseline saw 900, and the forms were compared on 600 and 640 of them."""
    assert BASE.accuracy is not None and FORM.accuracy is not None
    base = replace(BASE, accuracy=replace(BASE.accuracy, count=900))
    rows = [replace(FORM, key=f"{n}", accuracy=replace(FORM.accuracy, count=n)) for n in (640, 600)]
    disputed = Disagreement(3, "cat", {base.key: ("cat", 0.7), "640": ("dog", 0.6)}, "")
    for forms, images in ((rows, "600 to 640"), (rows[:1], "640")):
        found = replace(REPORT, rows=(base, *forms), disagreements=(disputed,), disagreement_count=5, partial=True)
        page = render_html(found)
        assert f"as PyTorch on the same {images} images, what became" in page
        assert f"On 5 of {images.partition(' ')[0]} images some form" in page and "of 2,000 images some" not in page


def test_the_page_begins_with_the_numbers_of_the_form_to_ship() -> None:
    def cards(key: str) -> list[str]:
        page = render_html(replace(REPORT, recommendation={"key": key, "sentence": ""}))
        return re.findall(r'<div class="number"><b>(.*?)</span></div>', page.replace("</b><span>", " "))

    assert cards(FORM.key) == [
        "3.95× as fast as PyTorch, 95 % interval 3.81 to 4.12",
        "10.25 ms median latency, 12.25 ms at p95, of 204 calls",
        "87.65 % top-1, −0.45 points against the baseline",
        "22.9 MB size of the file, the baseline&#x27;s is 86.2 MB",
        "169.0 MB peak memory of its process and of the GPU, the baseline&#x27;s 512.3 MB",
    ]
    assert cards(BASE.key) == [
        "40.50 ms median latency, 42.50 ms at p95, of 201 calls",
        "88.10 % top-1 of FP32 on PyTorch",
        "86.2 MB size of the file",
        "512.3 MB peak memory of its process",
    ]


def test_the_page_shows_who_is_confused() -> None:
    """In images; a shade is the share of the line, of what is wrong relative to the worst."""
    page = render_html(replace(REPORT, recommendation={"key": FORM.key, "sentence": ""}))
    assert Tables(page).found["Confused classes"] == {
        "cat": [{"cat": "910", "dog": "90"}],
        "dog": [{"cat": "157", "dog": "843"}],
    }
    for tint, shade, number in (
        ("gain", "0.29", 910),
        ("loss", "0.36", 90),
        ("loss", "0.55", 157),
        ("gain", "0.27", 843),
    ):
        assert f'rgba(var(--{tint}),{shade})">{number}<' in page


@pytest.mark.parametrize(
    ("kind", "wanted", "baseline"),
    [
        (
            "several labels",
            {
                "mAP": "71.23 % 69.1 to 73.4",
                "change": "−0.65 −1.13 to +0.14",
                "F1": "68.11 % 66.4 to 69.8",
                "macro F1": "60.22 % 58.0 to 62.3",
                "exact match": "41.33 % 39.2 to 43.5",
            },
            ("mAP", "71.23 % 69.1 to 73.4"),
        ),
        (
            "vectors",
            {
                "cosine": "0.9987 0.9981 to 0.9992",
                "cosine p1": "0.9911 0.9902 to 0.9922",
                "nearest": "0.9733 0.9655 to 0.9811",
                "recall@k": "0.9622 0.9577 to 0.9666",
                "queries on the baseline's index": "0.9515 0.9466 to 0.9561",
                "index for the baseline's queries": "0.9404 0.9351 to 0.9455",
                "7NN top-1": "83.42 % 81.7 to 85.0",
                "change": "−0.75 −1.33 to −0.16",
            },
            ("7NN top-1", "84.17 % 82.5 to 85.7"),
        ),
    ],
)
def test_every_form_shows_each_number(kind: str, wanted: dict[str, str], baseline: tuple[str, str]) -> None:
    """On the page an interval stands below its number, in Markdown behind it."""
    report = of_kind(kind)
    table = Tables(render_html(report)).found["Every form"]
    form, base = table["INT8 TensorRT"][0], table["FP32 PyTorch"][0]
    assert {head: form[head] for head in wanted} == wanted
    assert base[baseline[0]] == baseline[1] and base["change"] == "–"
    lines = markdown(report)
    for head, shown in wanted.items():
        number, _, interval = shown.replace(" %", "_%").partition(" ")
        number, interval = number.replace("_", " "), f" [{interval.replace(' to ', ', ')}]"
        if head in ("mAP", "7NN top-1"):
            interval = ""  # a column of the change has it
        assert f"| {number}{interval} |" in lines, head


def test_markdown_shows_each_number() -> None:
    lines = markdown(REPORT).splitlines()
    heads, _, base, form, large = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:7])
    first = dict(zip(heads, form, strict=True))
    assert (first["batch"], first["image"], first["size"], first["start"]) == ("1", "32x48", "22.9 MB", "1.43 s")
    assert first["memory"] == "123 MB + 45.6 MB GPU"
    assert [first[head] for head in ("n", "p50 ms", "p95 ms", "p99 ms")] == ["204", "10.25", "12.25", "13.25"]
    assert (first["speed-up"], first["steady speed-up"]) == ("3.95× [3.81, 4.12]", "4.03× [3.97, 4.24]")
    assert (first["steady ms"], first["images/s"]) == ("9.50", "104")
    assert [first[head] for head in ("top-1", "change", "agreement")] == ["87.65 %", "−0.45 [−0.92, +0.03]", "96.34 %"]
    second, own = dict(zip(heads, large, strict=True)), dict(zip(heads, base, strict=True))
    assert (second["batch"], second["image"], second["p50 ms"], second["speed-up"]) == ("8", "64x96", "61.00", "5.15×")
    assert (own["top-1"], own["change"], own["agreement"], own["speed-up"]) == ("88.10 %", "baseline", "–", "1×")


def test_csv_has_each_number_as_it_is() -> None:
    def numbers(report: BenchReport, place: int = 1) -> dict[str, float]:
        line = list(csv.DictReader(io.StringIO(csv_text(report))))[place]
        words = ("key", "form", "backend", "device", "status", "reason", "artifact", "sha256", "on_front", "outside")
        return {name: float(value) for name, value in line.items() if value and name not in words}

    assert numbers(REPORT) == {
        "size_bytes": 22_900_000, "cold_start_ms": 1430, "batch_size": 1, "image_height": 32, "image_width": 48,
        "p50_ms": 10.25, "p90_ms": 11.25, "p95_ms": 12.25, "p99_ms": 13.25, "min_ms": 9.25, "mean_ms": 10.75, "n": 204,
        "speedup": 3.95, "speedup_low": 3.81, "speedup_high": 4.12, "steady_p50_ms": 9.5, "steady_p90_ms": 10.5,
        "steady_p95_ms": 11.5, "steady_p99_ms": 12.5, "steady_min_ms": 8.5, "steady_mean_ms": 10, "steady_n": 612,
        "steady_speedup": 4.03, "steady_speedup_low": 3.97, "steady_speedup_high": 4.24, "device_p50_ms": 7.75,
        "device_speedup": 4.41, "device_speedup_low": 4.32, "device_speedup_high": 4.56, "gpu_mhz": 1755,
        "images_per_s": 104.5, "host_peak_bytes": 123_400_000, "device_peak_bytes": 45_600_000, "decode_ms": 0.75,
        "preprocess_ms": 2.05, "model_ms": 8.2, "post_ms": 0.06, "preprocess_share": 0.2, "top1": 0.8765,
        "top5": 0.9912, "count": 2000, "calibration_error": 0.0321, "delta": -0.0045, "delta_low": -0.0092,
        "delta_high": 0.0003, "mcnemar_p": 0.0931, "agreement": 0.9634,
    }  # fmt: skip
    large = numbers(REPORT, 2)
    assert (large["batch_size"], large["image_width"], large["speedup"]) == (8, 96, 5.15) and "speedup_low" not in large
    form = {"size_bytes": 22_900_000, "cold_start_ms": 1430, "count": 2000}
    assert numbers(of_kind("several labels")) == {
        **form, "mean_average_precision": 0.7123, "mean_average_precision_low": 0.6911,
        "mean_average_precision_high": 0.7344, "f1_micro": 0.6811, "f1_micro_low": 0.6644, "f1_micro_high": 0.6977,
        "f1_macro": 0.6022, "f1_macro_low": 0.5799, "f1_macro_high": 0.6233, "exact_match": 0.4133,
        "exact_match_low": 0.3922, "exact_match_high": 0.4355, "threshold": 0.37, "delta": -0.0065,
        "delta_low": -0.0113, "delta_high": 0.0014, "agreement": 0.9477,
    }  # fmt: skip
    assert numbers(of_kind("vectors")) == {
        **form, "cosine": 0.9987, "cosine_low": 0.9981, "cosine_high": 0.9992, "cosine_p1": 0.9911,
        "cosine_p1_low": 0.9902, "cosine_p1_high": 0.9922, "neighbour": 0.9733, "neighbour_low": 0.9655,
        "neighbour_high": 0.9811, "recall": 0.9622, "recall_low": 0.9577, "recall_high": 0.9666, "queries": 0.9515,
        "queries_low": 0.9466, "queries_high": 0.9561, "index": 0.9404, "index_low": 0.9351, "index_high": 0.9455,
        "neighbours": 7, "knn_top1": 0.8342, "delta": -0.0075, "delta_low": -0.0133, "delta_high": -0.0016,
        "agreement": 0.9733,
    }  # fmt: skip
    bare = replace(REPORT, rows=(Row("fp16/openvino", "fp16", "openvino", "skipped"),))
    assert numbers(bare, 0) == {}, "what was not measured is empty"


def test_a_notebook_shows_the_main_numbers() -> None:
    page = REPORT._repr_html_()
    for number in ("40.50", "1.00×", "88.10%", "10.25", "3.95×", "87.65%", "-0.45"):
        assert page.count(number) == 1, number
    for kind, numbers in (
        ("several labels", ("mAP", "71.23%", "-0.65")),
        ("vectors", ("7NN top-1", "84.17%", "83.42%", "-0.75")),
    ):
        assert all(number in of_kind(kind)._repr_html_() for number in numbers), kind
