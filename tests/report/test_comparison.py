"""Two reports: what changed is found, what is noise is called that, and conditions mean what they say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.forms import CLASSES, Clock, KnownRunner, Pictures, form, noisy, report_of, report_on
from vitdeploy.bench import BenchReport, bench, render_html
from vitdeploy.core.errors import InputError
from vitdeploy.data import load_dataset
from vitdeploy.evaluation.multi_label import MultiLabelAccuracy
from vitdeploy.evaluation.vectors import Kept, Neighbours, VectorQuality
from vitdeploy.report.comparison import _TIMES, Comparison, _log, compare
from vitdeploy.report.conditions import evaluate, parse
from vitdeploy.report.merge_accuracy import with_accuracy
from vitdeploy.report.records import Memory, Samples


def change(comparison: Comparison, metric: str, key: str = "int8/openvino") -> Any:
    return next(row for row in comparison.rows if row.key == key).find(metric)


def replace_change(comparison: Comparison, metric: str, **facts: Any) -> Comparison:
    rows = [
        replace(row, changes=tuple(replace(c, **facts) if c.metric == metric else c for c in row.changes))
        for row in comparison.rows
    ]
    return replace(comparison, rows=tuple(rows))


def test_two_runs_of_the_same_are_no_more_than_noise() -> None:
    comparison = compare(report_of(seed=1), report_of(seed=5))
    for metric in ("p50", "throughput", "speedup", "top1", "size"):
        assert change(comparison, metric).beyond_noise is False, metric
    found = change(comparison, "p50")
    assert found.ci95[0] < found.amount < found.ci95[1] and abs(found.amount - 1) < 0.02


def test_a_form_that_became_slower_is_found() -> None:
    comparison = compare(report_of(seed=1), report_of(int8_ms=11.5, seed=5))
    found = change(comparison, "p50")
    assert found.amount == pytest.approx(1.15, abs=0.02) and found.beyond_noise
    assert found.ci95[0] < 1.15 < found.ci95[1] or found.ci95[0] > 1.1
    assert change(comparison, "speedup").amount == pytest.approx(1 / 1.15, abs=0.02)
    assert not change(comparison, "p50", "fp32/pytorch").beyond_noise


def test_what_moved_the_unchanged_baseline_is_noise() -> None:
    comparison = compare(report_of(seed=1), report_of(int8_ms=11.5, base_ms=24.0, seed=5))  # all became a fifth slower
    assert comparison.drift == pytest.approx(1.2, abs=0.03)
    assert not change(comparison, "p50").beyond_noise
    assert change(comparison, "p50").amount == pytest.approx(11.5 / 10 / 1.2, abs=0.03)
    assert any("about which nothing changed, became" in note for note in comparison.notes)
    # A form that is slower than the machine has become is found.
    slower = compare(report_of(seed=1), report_of(int8_ms=18.0, base_ms=24.0, seed=5))
    assert change(slower, "p50").amount == pytest.approx(1.5, abs=0.03) and change(slower, "p50").beyond_noise
    # With another PyTorch the baseline is no measure of the machine, and a change has to be large.
    other = report_of(int8_ms=12.0, base_ms=24.0, seed=5, versions={"openvino": "1", "torch": "3"})
    comparison = compare(report_of(seed=1), other)
    assert comparison.drift is None and not change(comparison, "p50").beyond_noise
    assert any("torch none → 3" in note for note in comparison.notes)
    assert any("can't be told from a change of a form" in note for note in comparison.notes)


def test_a_size_at_which_the_baseline_failed_is_compared_without_it() -> None:
    """As where PyTorch has no memory for the batch: only the forms have times there."""
    before, after = report_of(seed=1), report_of(int8_ms=20.0, seed=5)

    def with_batch_8(report: BenchReport) -> BenchReport:
        rows = [
            row if row.key == "fp32/pytorch" else replace(row, latencies=(one, replace(one, batch_size=8)))
            for row in report.rows
            for one in row.latencies[:1]
        ]
        return replace(report, rows=tuple(rows))

    comparison = compare(with_batch_8(before), with_batch_8(after))
    form = next(row for row in comparison.rows if row.key == "int8/openvino")
    beside, alone = form.find("p50", 1), form.find("p50", 8)
    assert beside is not None and alone is not None and comparison.drift is not None
    assert alone.amount == pytest.approx(2.0, abs=0.1) and alone.beyond_noise
    assert beside.ci95 is not None and alone.ci95 is not None
    # Nothing cancels the machine's state there, so the interval is that of a time alone.
    assert alone.ci95[1] / alone.ci95[0] > beside.ci95[1] / beside.ci95[0]
    assert form.find("speedup", 1) is not None and form.find("speedup", 8) is None


def test_beyond_a_drift_and_beside_busy_programs_nothing_is_said_of_times() -> None:
    moved = compare(report_of(seed=1), report_of(int8_ms=15.0, base_ms=30.0, seed=5))
    found = change(moved, "p50")
    assert found.beyond_noise is None and "became 1.49" in found.inconclusive
    outcome = evaluate(parse("int8.p50 > 1.1x"), moved)
    assert outcome.state == "inconclusive" and "became 1.49" in outcome.why[0]
    assert evaluate(parse("int8.top1 < -0.5pt"), moved).state == "not met"  # answers do not depend on it
    busy = report_of(seed=5)
    rows = [replace(row, latencies=(replace(row.latencies[0], busy="other programs"),)) for row in busy.rows]
    assert change(compare(report_of(seed=1), replace(busy, rows=tuple(rows))), "p50").inconclusive


def test_several_reports_a_side_narrow_the_interval_and_have_to_be_of_one_bundle() -> None:
    before, after = [report_of(seed=seed) for seed in (1, 3)], [report_of(int8_ms=10.6, seed=seed) for seed in (5, 7)]
    one, two = change(compare(before[0], after[0]), "p50"), change(compare(before, after), "p50")
    assert not one.beyond_noise and two.beyond_noise is (two.ci95[0] > 1)
    assert two.ci95[1] / two.ci95[0] < one.ci95[1] / one.ci95[0] and two.amount == pytest.approx(1.06, abs=0.02)
    with pytest.raises(InputError, match="not of the same files"):
        compare([before[0], replace(before[1], dataset={"fingerprint": "g"})], after)
    with pytest.raises(InputError, match="no report before"):
        compare([], after)
    with pytest.raises(InputError, match="after is there twice"):  # copies would narrow the interval for nothing
        compare(before, [*after, replace(after[0], created="another")])


def test_accuracy_is_compared_in_pairs_on_the_same_images() -> None:
    paired = compare(report_of(flip=1), report_of(flip=2))
    found = change(paired, "top1")
    assert found.amount == pytest.approx(-0.01) and found.beyond_noise  # ten of a thousand lost, none won
    other = compare(report_of(flip=1), report_of(flip=2, dataset={"fingerprint": "g"}))
    apart = change(other, "top1")
    assert apart.amount == pytest.approx(-0.01)
    assert apart.ci95[1] - apart.ci95[0] > found.ci95[1] - found.ci95[0]
    assert any("independent samples" in note for note in other.notes)


def answering(**kept: Any) -> BenchReport:
    """The report of a model of another task: its row of INT8 keeps this in the place of accuracy."""
    report = report_of()
    rows = [replace(row, accuracy=None, **(kept if row.form == "int8" else {})) for row in report.rows]
    return replace(report, rows=tuple(rows))


def vectors(recall: float, **changes: Any) -> BenchReport:
    kept = Kept(recall, (recall - 0.01, recall + 0.01))
    drop = Neighbours(0.9, (0.88, 0.92), delta=recall - 1, delta_ci95=(recall - 1.001, recall - 0.999))
    quality = VectorQuality(
        10, 1000, cosine=Kept(0.9999, (0.9998, 1.0)), recall=kept, queries=kept, index=kept, knn=drop
    )
    return answering(embedding=replace(quality, **changes))


def several_labels(precision: float) -> BenchReport:
    found = MultiLabelAccuracy(
        precision, (precision - 0.01, precision + 0.01), 0.7, 0.6, 0.3, (0.27, 0.33), 0.5, 1000, 3, (0.9, 0.8, None),
        delta=precision - 0.8, delta_ci95=(precision - 0.801, precision - 0.799), agreement=0.99,
    )  # fmt: skip
    return answering(multi_label=found)


def test_what_an_embedding_keeps_is_compared() -> None:
    comparison = compare(vectors(0.99), vectors(0.90))
    found = change(comparison, "recall")
    assert found.amount == pytest.approx(-0.09) and found.beyond_noise and found.count == 1000
    assert found.ci95 == pytest.approx((-0.09 - 0.01 * 2**0.5, -0.09 + 0.01 * 2**0.5))  # of independent samples
    assert change(comparison, "drop").after == pytest.approx(10)
    kept = compare(vectors(1.0), vectors(1.0))
    assert str(change(kept, "drop").after) == "0.0"  # not "-0.0"
    same = change(compare(vectors(0.99), vectors(0.99)), "cosine")
    assert same.amount == 0 and same.beyond_noise is False
    other = compare(vectors(0.99), vectors(0.90, k=5))  # 5 neighbours are found more easily than 10
    assert not any(change(other, metric) for metric in ("recall", "queries", "index", "knn", "drop"))
    assert change(other, "cosine") and any("numbers of neighbours" in note for note in other.notes)


@pytest.mark.parametrize(
    ("condition", "state"),
    [
        ("int8.recall < 0.95", "met"),
        ("int8.recall < -0.5pt", "met"),
        ("int8.queries < 0.85", "not met"),
        ("int8.cosine < 0.999", "not met"),
        ("int8.drop > 1", "met"),
    ],
)
def test_conditions_hold_an_embedding_to_what_it_keeps(condition: str, state: str) -> None:
    assert evaluate(parse(condition), compare(vectors(0.99), vectors(0.90))).state == state


@pytest.mark.parametrize(
    ("condition", "state"),
    [
        ("int8.map < 0.75", "met"),
        ("int8.map < -1pt", "met"),
        ("int8.exact_match < 0.2", "not met"),
        ("int8.exact_match < -0.5pt", "inconclusive"),  # 1,000 images show four points of it
        ("int8.f1 < 0.7", "not met"),
        ("int8.agreement < 0.98", "not met"),
        ("int8.drop > 1", "met"),
    ],
)
def test_conditions_hold_several_labels_to_what_they_find(condition: str, state: str) -> None:
    assert evaluate(parse(condition), compare(several_labels(0.8), several_labels(0.7))).state == state


def test_a_number_of_another_task_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(InputError, match="no such number") as caught:
        evaluate(parse("int8.top1 < 0.5"), compare(several_labels(0.8), several_labels(0.8)))
    assert caught.value.hint == "of its answers it has: map, f1, exact_match, agreement, drop"
    apart = compare(several_labels(0.8), vectors(0.9))
    assert not change(apart, "drop") and any("answer otherwise" in note for note in apart.notes)


def test_other_machines_and_other_rows_are_noted() -> None:
    second = report_of(machine={"cpu": "B"})
    comparison = compare(report_of(), replace(second, rows=second.rows[:1]))
    assert any("processor differs" in note for note in comparison.notes)
    row = comparison.rows[1]
    assert row.after is None and row.changes == ()


def test_sizes_memory_and_cold_starts_are_compared_as_they_are() -> None:
    def report(size: int, memory: int, start: float) -> BenchReport:
        found = report_of()
        latency = replace(found.rows[1].latencies[0], memory=Memory(memory, memory // 2))
        form = replace(found.rows[1], size_bytes=size, cold_start_ms=start, latencies=(latency,))
        return replace(found, rows=(found.rows[0], form))

    comparison = compare(report(1000, 200, 50.0), report(1001, 205, 75.0))
    found = {name: change(comparison, name) for name in ("size", "memory", "cold_start")}
    amounts = {name: (each.before, each.after, each.amount, each.beyond_noise) for name, each in found.items()}
    assert amounts["size"] == (1000, 1001, 1.001, True)
    assert amounts["memory"] == (300, 307, 307 / 300, False)
    assert amounts["cold_start"] == (50, 75, 1.5, None)
    more = compare(report(1000, 200, 50.0), report(1000, 208, 50.0))
    assert change(more, "memory").beyond_noise is True and change(more, "size").beyond_noise is False


def test_partial_and_noisy_runs_are_noted_once_a_side() -> None:
    sides = [
        [replace(report_of(seed=seed), partial=True, noise=("heat",)) for seed in seeds] for seeds in ((1, 2), (3, 4))
    ]
    notes = compare(*sides).notes
    said = {words: notes.count(words) for words in notes if "run is" in words}
    assert said == {f"a {side} run is {what}": 1 for side in ("first", "second") for what in ("partial", "noisy")}


def test_times_of_two_machines_are_not_compared() -> None:
    """Another processor is not as much faster with INT8 as with FP32: relative to the baseline it is no change."""
    before, after = report_of(machine={"cpu": "A"}), report_of(int8_ms=13.0, seed=5, machine={"cpu": "B"})
    comparison = compare(before, after)
    assert comparison.drift is None and "processor differs" in str(comparison.machines)
    for metric in ("p50", "throughput"):
        assert change(comparison, metric).beyond_noise is None and change(comparison, metric).inconclusive
    for condition in ("int8.p50 > 1.1x", "int8.throughput < -10%", "int8.speedup < 0.9x"):
        outcome = evaluate(parse(condition), comparison)
        assert outcome.state == "inconclusive" and "two machines" in outcome.why[0]
    assert evaluate(parse("int8.p50 > 12"), comparison).state == "met", "the second's own value is what it is"
    assert evaluate(parse("int8.top1 < -0.5pt"), comparison).state == "not met"
    unknown = compare(report_of(machine={}), after)
    assert unknown.machines is None and evaluate(parse("int8.p50 > 1.1x"), unknown).state == "met"


def test_a_gpu_is_the_same_at_another_clock() -> None:
    """What a GPU reads now, its clock and its heat, is in the report beside its name."""

    def on(name: str, celsius: float, device: str = "cpu") -> BenchReport:
        report = report_of(machine={"cpu": "A", "gpu": [{"name": name, "celsius": celsius, "clock_mhz": 10 * celsius}]})
        return replace(report, rows=tuple(replace(row, device=device) for row in report.rows))

    same = compare(on("H200", 30, "cuda"), on("H200", 60, "cuda"))
    assert same.notes == () and same.machines is None and same.drift is not None
    other = compare(on("H200", 30, "cuda"), on("L4", 30, "cuda"))
    assert "GPU differs" in other.notes[0] and "GPU differs" in str(other.machines) and other.drift is None
    idle = compare(on("H200", 30), on("L4", 30))  # no form ran on it
    assert "GPU differs" in idle.notes[0] and idle.machines is None and idle.drift is not None


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("int8.p50 > 1.1x", True),
        ("int8.p50 > 1.4x", False),
        ("int8/openvino.p50 > 10%", True),
        ("int8@1.p50 >= 11", True),
        ("int8.p50 > 12", False),
        ("*.p50 > 1.1x", True),
        ("fp32.p50 > 2x", False),  # a time alone: machines differ by more than half from run to run
        ("int8.throughput < 0.9x", True),
        ("int8.speedup < 0.9x", True),
        ("int8.top1 < -0.5pt", True),
        ("int8.top1 < -2pt", False),
        ("int8.top1 < 0.5", False),
        ("int8.drop > 2.5", True),
        ("int8.drop > 0.5pt", True),
        ("int8.agreement < 0.98", True),
        ("int8.size > 1x", False),
    ],
)
def test_conditions_mean_what_they_say(condition: str, met: bool) -> None:
    comparison = compare(report_of(flip=2, seed=1), report_of(int8_ms=11.5, flip=3, seed=5))
    outcome = evaluate(parse(condition), comparison)
    assert outcome.state == ("met" if met else "not met")
    assert bool(outcome.why) is met


def test_the_baseline_can_meet_a_condition() -> None:
    before, after = report_of(seed=1, flip=1), report_of(seed=5, flip=1)
    larger = replace(after, rows=(replace(after.rows[0], size_bytes=10**9), *after.rows[1:]))
    before = replace(before, rows=(replace(before.rows[0], size_bytes=10**8), *before.rows[1:]))
    key = before.rows[0].key
    for condition in (f"{key}.size > 1.1x", "*.size > 1.1x"):
        assert evaluate(parse(condition), compare(before, larger)).state == "met"


def test_a_change_within_noise_does_not_count_unless_strict() -> None:
    comparison = compare(report_of(seed=1), report_of(int8_ms=10.1, seed=5))
    outcome = evaluate(parse("int8.p50 > 1x"), comparison)
    assert outcome.state == "noise" and "p50" in outcome.why[0]
    assert evaluate(parse("int8.p50 > 1x"), comparison, strict=True).state == "met"


def test_a_gate_that_cannot_see_as_far_as_its_limit_says_so() -> None:
    few = [report_of(seed=seed, flip=flip, images=60) for seed, flip in ((1, 0), (5, 4))]
    comparison = compare(*few)
    outcome = evaluate(parse("int8.top1 < -0.5pt"), comparison)
    assert outcome.state == "inconclusive" and "can't be told with 60 images" in outcome.why[0]
    assert evaluate(parse("int8.drop > 1"), comparison).state == "inconclusive"
    assert evaluate(parse("int8.top1 < -40pt"), comparison).state == "not met"  # so far they can see
    assert evaluate(parse("int8.p50 > 1.02x"), comparison).state == "inconclusive"
    assert evaluate(parse("int8.p99 > 1.5x"), comparison).state == "inconclusive"  # of 40 calls there is none
    assert evaluate(parse("int8.p50 > 1.5x"), comparison).state == "not met"
    # Six of sixty lost: below the limit, but not so clearly that equal forms never were; that is no pass.
    fell = compare(few[0], report_of(seed=5, flip=6, images=60))
    found = evaluate(parse("int8.top1 < -0.5pt"), replace_change(fell, "top1", amount=-0.1, ci95=(-0.183, -0.0107)))
    assert found.state == "inconclusive"
    lost = compare(report_of(seed=1), report_of(seed=5, flip=5))  # on 1,000 images five points are seen
    assert evaluate(parse("int8.top1 < -0.5pt"), lost).state == "met"
    assert evaluate(parse("int8.drop > 1"), lost).state == "met"


def test_a_row_that_no_longer_runs_meets_every_condition() -> None:
    second = report_of()
    failed = replace(second.rows[1], status="failed", reason="gone", latencies=(), accuracy=None)
    for rows in (second.rows[:1], (second.rows[0], failed)):
        assert evaluate(parse("int8.p50 > 5x"), compare(report_of(), replace(second, rows=rows))).state == "met"


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("int8.p50", "can't be read"),
        ("int8.p50 > fast", "can't be read"),
        ("int8.speed > 1", "no metric 'speed'"),
        ("int8.top1 < 1%", "does not fit"),
        ("int8.p50 > 1pt", "does not fit"),
        ("int8.p50 > 0x", "no ratio"),
        ("int8.p50 > nanx", "can't be read"),
        ("int4.p50 > 1x", "no row"),
        ("int8@64.p50 > 1x", "no such number"),
        ("int8.memory > 1x", "no such number"),
    ],
)
def test_a_condition_that_cannot_be_evaluated_is_an_error_and_no_pass(condition: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        evaluate(parse(condition), compare(report_of(), report_of()))
    assert caught.value.hint


def test_the_interval_covers_the_true_ratio() -> None:
    inside = 0
    for seed in range(20):
        found = change(compare(quick(10, 2 * seed), quick(11, 2 * seed + 1)), "p50")
        inside += found.ci95[0] <= 1.1 <= found.ci95[1]
    # Beside the noise of the runs the interval holds what differs between runs, of which there is none here.
    assert inside == 20


def quick(milliseconds: float, seed: int) -> BenchReport:
    clock = Clock()
    runner = KnownRunner(clock, CLASSES, takes_ms=noisy(milliseconds, seed))
    return report_on([form("int8", "openvino", runner)], clock, Pictures(4, CLASSES), accuracy=False)


def test_accuracy_is_taken_from_a_report_on_the_same_files_and_images(
    tiny_bundle: Path, tiny_checkpoint: Path, tiny_images: Path
) -> None:
    images = load_dataset(tiny_images, "all")
    options: dict[str, Any] = {"rounds": 2, "threads": 1, "memory": False, "phases": False, "precisions": ["int8"]}
    kept = bench(tiny_bundle, images, baseline=tiny_checkpoint, latency=False, **options)
    timed = bench(tiny_bundle, images, baseline=tiny_checkpoint, accuracy=False, **options)
    joined = with_accuracy(timed, BenchReport.from_json(kept.to_json()))
    assert [row.accuracy for row in joined.rows] == [row.accuracy for row in kept.rows]
    assert [row.latencies for row in joined.rows] == [row.latencies for row in timed.rows]
    assert joined.recommendation["key"] and joined.disagreement_count == kept.disagreement_count
    assert any("taken from that report" in note for note in joined.notes)
    assert any(row.on_front for row in joined.rows) and not any(row.on_front for row in timed.rows)
    other = replace(kept, versions={**kept.versions, "openvino": "0"})
    fewer = with_accuracy(timed, other)
    assert fewer.row("int8/openvino").accuracy is None
    onnx = fewer.row("int8/onnxruntime").accuracy
    assert onnx is not None and onnx.agreement is not None and kept.disagreements  # random weights disagree somewhere
    assert fewer.disagreement_count == round((1 - onnx.agreement) * onnx.count) <= kept.disagreement_count
    assert kept.disagreements[0].answers.keys() == {row.key for row in kept.rows if row.accuracy}
    assert fewer.disagreements and all("int8/openvino" not in item.answers for item in fewer.disagreements)
    assert any("not all forms were taken" in note for note in fewer.notes)
    without = replace(timed, rows=tuple(row for row in timed.rows if row.backend != "openvino"))
    assert "INT8" in render_html(with_accuracy(without, kept))  # the earlier report knows a form that this one has not
    with pytest.raises(InputError, match="other images"):
        with_accuracy(timed, replace(kept, dataset={**kept.dataset, "fingerprint": "0"}))
    with pytest.raises(InputError, match="no row"):
        with_accuracy(timed, replace(kept, machine={**kept.machine, "cpu": "another"}))


def edited(folder: Path, name: str, change: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_nothing_is_compared_with_a_baseline_that_is_another(
    tiny_bundle: Path, tiny_checkpoint: Path, tiny_images: Path, tmp_path: Path
) -> None:
    """The audit tries more ways to pass one thing for another."""
    images, names = load_dataset(tiny_images, "all"), "fp32/onnxruntime"
    quick: dict[str, Any] = {"threads": 1, "precisions": ["fp32"], "backends": ["onnxruntime"]}
    timing: dict[str, Any] = {**quick, "accuracy": False, "rounds": 2, "memory": False, "phases": False}
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    kept = bench(tiny_bundle, images, baseline=model, latency=False, **quick)
    edited(model, "preprocessor_config.json", {"image_mean": [0.1, 0.1, 0.1]})
    other = with_accuracy(bench(tiny_bundle, images, baseline=model, **timing), kept)
    assert other.row("fp32/pytorch").accuracy is None and other.row(names).accuracy is not None
    alone = other.row(names).accuracy
    assert alone is not None and alone.delta is None and alone.changes is None
    assert other.recommendation["key"] != names


def test_resampling_keeps_rounds_together() -> None:
    samples = tuple(1.0 + number // 5 for number in range(50))  # calls of one round are equal
    times = Samples(1, 1, 1, 1, 1, 1, 50, 5, samples)
    _, drawn = _log(times, None, lambda drawn: drawn.reshape(*drawn.shape[:-1], -1, 5).std(axis=-1).max(axis=-1) + 1, 0)
    assert drawn.shape == (400,) and np.all(drawn == 0)
    value, drawn = _log(times, times, _TIMES["p50"], 0)  # beside itself nothing changes, whichever rounds are drawn
    assert value == 0 and np.all(drawn == 0)
    for place in (0, 9):  # each round may be among those that are drawn: a slow one shows in two of three
        slow = replace(times, samples=tuple(9.0 if number // 5 == place else 1.0 for number in range(50)))
        _, drawn = _log(slow, None, lambda drawn: drawn.max(axis=-1), 0)
        assert 0.55 < (drawn > 0).mean() < 0.75


@pytest.mark.parametrize(
    ("text", "amount", "interval", "shown"),
    [
        ("int8/openvino.top1 < -0.5pt", -0.011, (-0.02, -0.003), "top1 -1.1pt (95 % interval -2 to -0.3)"),
        ("int8/openvino.p50 > 5%", 1.11, (1.08, 1.15), "p50 11% (95 % interval 8 to 15)"),
        ("int8/openvino.p50 > 1.05x", 1.11, (1.08, 1.15), "p50 1.11x (95 % interval 1.08 to 1.15)"),
    ],
)
def test_a_condition_that_is_met_shows_the_change_in_its_own_unit(
    text: str, amount: float, interval: tuple[float, float], shown: str
) -> None:
    condition = parse(text)
    comparison = compare(report_of(seed=1), report_of(seed=5))
    facts = {"amount": amount, "ci95": interval, "beyond_noise": True, "inconclusive": None}
    outcome = evaluate(condition, replace_change(comparison, condition.metric, **facts), strict=True)
    assert outcome.state == "met" and any(shown in why for why in outcome.why), outcome
