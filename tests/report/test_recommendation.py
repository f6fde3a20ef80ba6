"""The form to ship: what it must keep to, what it shall be best at, and where the choice is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.small_bundle import write_small_bundle
from vitdeploy import load
from vitdeploy.bench import BenchReport, BenchSettings, bench, render_html, save
from vitdeploy.bench.run import chosen_form
from vitdeploy.bundle import Bundle
from vitdeploy.core.errors import InputError
from vitdeploy.core.machine import identity
from vitdeploy.data import load_dataset
from vitdeploy.evaluation.accuracy import Accuracy, Answers
from vitdeploy.evaluation.multi_label import summarise_sets
from vitdeploy.evaluation.statistics import drop_bound
from vitdeploy.report.recommendation import choice, headline, outside, recommended
from vitdeploy.report.records import ArtifactRef, Latency, Memory, Ratio, Row, Samples


def row(form: str, backend: str, ms: float, drop: float, megabytes: int, memory: int, batch_ms: float) -> Row:
    def latency(batch: int, time: float) -> Latency:
        taken = Memory(memory * 10**6, None)
        times = Samples(time, time, 1.5 * time, None, time, time, 50, 1, (time,))
        return Latency(batch, (32, 32), times, times, 1000 * batch / time, Ratio(1.0, (1.0, 1.0)), memory=taken)

    accuracy = Accuracy(0.9 - drop / 100, 1.0, 1000, (0.8, 1.0), 0.01, (), -drop / 100, (-0.1, 0.1),
                        drop / 100 + 0.0005, 0.5, 0.99)  # fmt: skip
    return Row(
        f"{form}/{backend}", form, backend, "ok", size_bytes=megabytes * 10**6, accuracy=accuracy,
        artifact=ArtifactRef(f"model.{form}.onnx", "a" * 64), latencies=(latency(1, ms), latency(8, batch_ms)),
    )  # fmt: skip


ROWS = (
    row("fp32", "pytorch", 4.0, 0.0, 90, 500, 200),
    row("fp32", "openvino", 20.0, 0.0, 88, 300, 80),
    row("fp16", "openvino", 18.0, 0.1, 44, 400, 160),
    row("int8", "onnxruntime", 9.0, 0.6, 23, 120, 72),
    row("int8-tensorrt", "openvino", 6.0, 0.6, 22, 120, 60),
    row("int8", "openvino", 7.0, 2.0, 23, 200, 40),
)
SHIPPED = ROWS[1:4] + ROWS[5:]


def test_several_labels_are_judged_by_map() -> None:
    has = np.random.default_rng(0).random((400, 3)) < 0.4
    scores = np.where(has, 3.0, -3.0)
    worse = scores + np.random.default_rng(1).normal(0, 4, has.shape)
    seen = [Answers(logits.astype(np.float32), np.ones(400, np.bool_)) for logits in (scores, worse)]
    found = summarise_sets(seen[1], has.astype(np.int8), 0.5, seen[0])
    judged = replace(ROWS[3], accuracy=None, multi_label=found)
    assert any("points of mAP, more than 1" in limit for limit in outside(judged, BenchSettings()))
    assert outside(judged, BenchSettings(max_drop_points=99)) == ()


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        (BenchSettings(), "int8/onnxruntime"),
        (BenchSettings(max_drop_points=3), "int8/openvino"),
        (BenchSettings(max_drop_points=0.2), "fp16/openvino"),
        (BenchSettings(max_drop_points=0.05), "fp32/openvino"),
        (BenchSettings(max_latency_ms=12), None),  # p95 of the fastest within a point is 13.5
        (BenchSettings(max_drop_points=3, max_latency_ms=12), "int8/openvino"),
        (BenchSettings(max_drop_points=3, max_memory_bytes=150 * 10**6), "int8/onnxruntime"),
        (BenchSettings(max_drop_points=0.2, prefer="throughput"), "fp32/openvino"),  # a batch of 8 in 80 ms
        (BenchSettings(max_drop_points=3, prefer="size"), "int8/openvino"),  # as small as the other, and faster
    ],
)
def test_limits_and_preference_decide(settings: BenchSettings, best: str | None) -> None:
    found = choice([replace(row, outside=outside(row, settings)) for row in SHIPPED], settings)
    assert (None if found is None else found.key) == best


def test_a_broken_limit_is_said_in_words() -> None:
    words = outside(ROWS[-1], BenchSettings(max_drop_points=1.0, max_latency_ms=5.0, max_memory_bytes=10**8))
    assert [text.partition(",")[0] for text in words] == [
        *("loses 2.00 points of top-1", "takes 7.00 ms at p50 already"),
        "takes 200 MB of memory",
    ]
    assert outside(ROWS[-1], BenchSettings(max_drop_points=2.1, max_latency_ms=10.5, max_memory_bytes=2 * 10**8)) == ()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> BenchReport:
    bundle = write_small_bundle(tmp_path_factory.mktemp("small") / "small", engine=False)
    return bench(bundle, load_dataset(tiny_images, "all"), rounds=2, threads=1, memory=False, phases=False)


def wished(report: BenchReport, **settings: Any) -> BenchReport:
    settings = {"memory": True, "accuracy": True, **settings}
    baseline = {"key": "fp32/pytorch", "name": "PyTorch"}
    return recommended(replace(report, rows=ROWS, baseline=baseline, settings=replace(report.settings, **settings)))


def measured_on(row: Row, count: int, lost: int, won: int = 0) -> Row:
    """The row with other answers: `lost` and `won` of `count` images."""
    assert row.accuracy is not None
    changed = replace(row.accuracy, count=count, delta=(won - lost) / count, drop_bound=drop_bound(lost, won, count))
    return replace(row, accuracy=changed)


def test_a_form_that_was_not_compared_is_not_recommended(report: BenchReport) -> None:
    """As when PyTorch fails: nobody knows what the others lose, so none is said to lose nothing."""
    bare = [replace(row, accuracy=replace(row.accuracy, delta=None, drop_bound=None)) for row in ROWS if row.accuracy]
    failed = replace(bare[0], status="failed", accuracy=None, latencies=())
    asked = recommended(replace(wished(report), rows=(failed, *bare[1:])))
    assert asked.recommendation["key"] is None and "was not compared" in asked.rows[1].outside[0]
    timed = recommended(replace(asked, settings=replace(asked.settings, accuracy=False)))
    assert timed.recommendation["key"] is not None  # who did not ask for accuracy is told the fastest


def test_a_form_has_to_show_that_it_keeps_to_the_budget(report: BenchReport) -> None:
    base, int8 = ROWS[0], ROWS[5]
    slow = replace(base, latencies=(replace(ROWS[1].latencies[0]),))

    def said(count: int, lost: int, won: int = 0) -> tuple[str | None, str]:
        asked = recommended(replace(wished(report), rows=(slow, measured_on(int8, count, lost, won))))
        return asked.recommendation["key"], asked.recommendation["sentence"]

    key, sentence = said(4000, 10)
    assert key == int8.key and "stays within 1 point" in sentence and "too few" not in sentence
    assert said(4000, 38)[0] == slow.key  # 0.95 points, and the truth may be more than one
    key, sentence = said(60, 0)
    assert key == int8.key and "within 1 point" not in sentence
    assert "It lost nothing on 60 images; too few to show 1 point." in sentence


def test_a_form_that_loses_too_much_is_seldom_said_to_keep_to_the_budget() -> None:
    settings = BenchSettings(max_drop_points=1.0)
    draws = np.random.default_rng(0).multinomial(1000, [0.02, 0.0, 0.98], 2000)  # two points down
    kept = sum(not outside(measured_on(ROWS[5], 1000, int(lost), int(won)), settings) for lost, won, _ in draws)
    assert kept / 2000 < 0.05
    draws = np.random.default_rng(1).multinomial(1000, [0.0, 0.0, 1.0], 20)
    assert all(not outside(measured_on(ROWS[5], 1000, int(lost), int(won)), settings) for lost, won, _ in draws)


def test_what_is_chosen_is_what_a_bundle_can_hold(report: BenchReport) -> None:
    found = chosen_form(wished(report, max_drop_points=1.0))
    # PyTorch is faster, and so is the graph that engines are built from; `load` opens neither.
    assert found is not None and (found.precision, found.backend) == ("int8", "onnxruntime")
    assert "INT8 on ONNX Runtime is the fastest form that stays within 1 point" in found.why
    assert (found.machine, found.max_drop, found.sha256) == (identity(), 1.0, "a" * 64)
    assert found.report == "bench/report.json"
    assert chosen_form(wished(report, max_latency_ms=1.0)) is None
    assert chosen_form(replace(wished(report), partial=True)) is None


def test_the_sentence_names_limits_and_preference(report: BenchReport) -> None:
    text = headline(wished(report, max_memory_bytes=150 * 10**6, max_latency_ms=20.0, prefer="size"))
    assert "is the smallest form" in text and "within 20 ms (p95)" in text and "at most 150 MB" in text


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(2.0, (1.9, 2.1)), "2.00 times as fast as PyTorch."),
        (Ratio(0.5, (0.4, 0.6)), "0.50 times as fast as PyTorch."),
        (Ratio(1.02, (0.95, 1.1)), "as fast as PyTorch within noise (1.02 times, 95 % interval 0.95 to 1.10)."),
        (Ratio(1.02, (1.0, 1.1)), "as fast as PyTorch within noise (1.02 times, 95 % interval 1.00 to 1.10)."),
        (Ratio(0.98, (0.9, 1.0)), "as fast as PyTorch within noise (0.98 times, 95 % interval 0.90 to 1.00)."),
        (Ratio(1.02, None), "1.02 times as fast as PyTorch."),  # too few rounds for an interval
    ],
)
def test_a_speedup_whose_interval_holds_1_is_called_none(report: BenchReport, ratio: Ratio, words: str) -> None:
    slow = replace(ROWS[0], latencies=ROWS[1].latencies)
    form = replace(ROWS[3], latencies=(replace(ROWS[3].latencies[0], on_demand_speedup=ratio),))
    sentence = headline(replace(wished(report), rows=(slow, form)))
    assert sentence.startswith("INT8 on ONNX Runtime is the fastest") and words in sentence


def test_the_choice_is_kept_in_the_bundle_and_goes_where_nothing_fits(
    cli: Any, tiny_images: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(write_small_bundle(tmp_path / "bundle", engine=False))
    settings = BenchSettings(rounds=2, threads=1, memory=False, phases=False, precisions=("fp32", "int8"))
    images = load_dataset(tiny_images, "all")
    report = bench(bundle, images, settings)
    written = save(report, bundle, render_html(report))
    kept = bundle.reopen().choice
    assert kept is not None and kept == written and f"{kept.precision}/{kept.backend}" == report.recommendation["key"]
    assert kept.sha256 == report.row(report.recommendation["key"]).artifact.sha256  # type: ignore[union-attr]
    with load(bundle.path) as classifier:  # and there `load` finds it
        assert (classifier.precision, classifier.backend) == (kept.precision, kept.backend)
        assert classifier.describe()["why"].startswith("vitdeploy bench chose it on this machine")
    shown = cli("inspect", bundle.path)
    assert f"{kept.precision} on {kept.backend}; load() takes it there" in " ".join(shown.stdout.split())
    assert json.loads(cli("inspect", bundle.path, "--json").stdout)["choice"] == kept.to_json()
    # A choice is no reason to call it another bundle.
    again = bench(bundle.reopen(), images, settings, max_latency_ms=1e-6)
    assert again.bundle == report.bundle and again.recommendation["key"] is None
    save(again, bundle, render_html(again))
    assert bundle.reopen().choice is None
    assert json.loads((bundle.path / "bench" / "report.json").read_text())["recommendation"]["key"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "limit"),
        ({"batch_sizes": []}, "no batch size"),
        ({"batch_sizes": [1, 1]}, "batch_sizes"),
        ({"image_sizes": [(0, 3)]}, "image_sizes"),
        ({"callers": [0]}, "callers"),
        ({"rates": [-1.0]}, "rates"),
        ({"load_seconds": 0}, "load_seconds"),
        ({"max_latency_ms": 0}, "max_latency_ms"),
        ({"prefer": "beauty"}, "prefer is 'beauty'"),
        ({"baselines": ["int4"]}, "baseline 'int4'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"backends": ["tensorflow"]}, "backend 'tensorflow'"),
        ({"latency": False, "accuracy": False}, "neither"),
        ({"latency": False, "max_latency_ms": 10.0}, "needs latency"),
        ({"memory": False, "max_memory_bytes": 10**9}, "needs memory"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        BenchSettings(**options)
    assert caught.value.hint


def test_what_analyze_found_of_each_layer_is_in_the_report(tiny_bundle_copy: Path, tiny_images: Path) -> None:
    from vitdeploy.compiler.quantization.int8 import analyze
    from vitdeploy.compiler.quantization.recipe import Recipe

    images = load_dataset(tiny_images, "all")
    quick = BenchSettings(latency=False, threads=1, precisions=("fp32",), backends=("onnxruntime",))
    before = bench(tiny_bundle_copy, images, quick)
    assert before.analysis is None and "Layer by layer" not in render_html(before)
    found = analyze(tiny_bundle_copy, Recipe(dataset="digits"), count=8)
    after = bench(tiny_bundle_copy, images, quick)
    assert after.bundle == before.bundle and after.analysis is not None
    assert [item["layer"] for item in after.analysis["rows"]] == [item.layer for item in found.rows]
    page = render_html(BenchReport.from_json(json.loads(after.dumps()))).replace("<wbr>", "")
    assert "<h2>Layer by layer</h2>" in page and found.rows[0].layer in page and "On 8 images of digits" in page
    (tiny_bundle_copy / "analysis.json").write_text("[]")  # damaged: the report goes without it
    assert bench(tiny_bundle_copy, images, quick).analysis is None
