"""What the numbers say: the front, the form to ship, and one sentence in plain words."""

from __future__ import annotations

from vitdeploy.bench.report import BenchReport, Row

__all__ = ["NAMES", "choice", "front", "headline", "named"]

NAMES = {
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


def named(row: Row) -> str:
    """A row in words: "INT8 on OpenVINO"."""
    return f"{form_name(row.form)} on {NAMES.get(row.backend, row.backend)}"


def form_name(form: str) -> str:
    """A form in words: "INT8", "INT8 (tensorrt)"."""
    precision, _, target = form.partition("-")
    return precision.upper() + (f" ({target})" if target else "")


def front(rows: tuple[Row, ...]) -> set[str]:
    """Keys of the rows that no other row beats in both median latency and top-1 (the Pareto front)."""
    points = [(row.key, row.latency.p50, row.accuracy.top1) for row in rows if row.latency and row.accuracy]
    return {
        key
        for key, ms, top1 in points
        if not any(o_ms <= ms and o_top1 >= top1 and (o_ms < ms or o_top1 > top1) for _, o_ms, o_top1 in points)
    }


def choice(rows: tuple[Row, ...], max_drop_points: float) -> Row | None:
    """The fastest form by median that loses at most `max_drop_points` of top-1; without accuracy, the fastest."""
    timed = [row for row in rows if row.status == "ok" and row.latency]
    if any(row.accuracy for row in timed):
        timed = [row for row in timed if row.accuracy and -100 * (row.accuracy.delta or 0.0) <= max_drop_points + 1e-9]
    return min(timed, key=lambda row: row.latency.p50 if row.latency else 0.0, default=None)


def headline(report: BenchReport) -> str:
    """What to ship from here, in a few sentences; noisy times are called that."""
    caution = " The times are noisy: measure again on a quiet machine." if report.noise else ""
    return _recommended(report) + caution


def _recommended(report: BenchReport) -> str:
    limit = report.settings.get("max_drop_points", 1.0)
    best = choice(report.rows, limit)
    unit = "point" if limit == 1 else "points"
    if best is None or best.latency is None:
        measured = [row for row in report.rows if row.accuracy]
        if measured and any(row.latency for row in report.rows):
            return f"No form that was timed stays within {limit:g} {unit} of the baseline."
        return "Accuracy only: no latency was measured." if measured else "Nothing was measured."
    base = report.baseline
    where = f"{NAMES.get(best.backend, best.backend)}"
    if best.key == base.get("key"):
        return f"The baseline itself is the fastest form within {limit:g} {unit}: {best.latency.p50:.2f} ms on {where}."
    sentence = f"{form_name(best.form)} on {where} is the fastest form"
    sentence += f" within {limit:g} {unit} of the baseline" if best.accuracy else " (accuracy was not measured)"
    sentence += f": {best.latency.p50:.2f} ms per {_unit(best.latency.batch_size)}"
    if best.latency.speedup is not None:
        sentence += f", {best.latency.speedup:.2f} times as fast as {base.get('name', 'the baseline')}"
    sentence += "."
    if best.accuracy and best.accuracy.delta is not None and best.accuracy.delta_ci95 is not None:
        low, high = best.accuracy.delta_ci95
        sentence += (
            f" Its top-1 is {best.accuracy.top1:.2%}, {points(best.accuracy.delta)} points against the baseline"
            f" (95 % interval {points(low)} to {points(high)})."
        ).replace("%,", " %,")
    return sentence


def points(share: float) -> str:
    """A change of a share in percentage points with its sign: "−0.14"."""
    value = round(100 * share, 2)
    return f"{'−' if value < 0 else '+' if value > 0 else '±'}{abs(value):.2f}"


def _unit(batch_size: int) -> str:
    return "image" if batch_size == 1 else f"batch of {batch_size}"
