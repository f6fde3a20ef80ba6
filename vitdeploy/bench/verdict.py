"""What the numbers say: the front, what breaks the wish, the form to ship, and that in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vitdeploy.bench.report import BenchReport, Row
from vitdeploy.bench.settings import Wish

__all__ = ["NAMES", "backend_name", "choice", "form_name", "front", "headline", "named", "outside", "points", "wish_of"]

NAMES = {
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "native": "vitdeploy's kernels",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}
_BEST = {"latency": "fastest", "throughput": "form with the most images per second", "size": "smallest"}


def named(row: Row) -> str:
    """A row in words: "INT8 on OpenVINO"."""
    return f"{form_name(row.form)} on {backend_name(row)}"


def backend_name(row: Row) -> str:
    """A row's backend in words: "OpenVINO", "PyTorch (GPU)"."""
    name = NAMES.get(row.backend, row.backend)
    return f"{name} (GPU)" if row.device != "cpu" and not row.backend.startswith("tensorrt") else name


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


def outside(row: Row, wish: Wish) -> tuple[str, ...]:
    """The limits of the wish that a row breaks, in words. What was not measured breaks nothing."""
    found = []
    drop = -100 * (row.accuracy.delta or 0.0) if row.accuracy else 0.0
    if drop > wish.max_drop_points + 1e-9:
        found.append(f"loses {drop:.2f} points of top-1, more than {wish.max_drop_points:g}")
    if wish.max_latency_ms is not None and row.latency and row.latency.p95 > wish.max_latency_ms:
        found.append(f"takes {row.latency.p95:.2f} ms at p95, more than {wish.max_latency_ms:g}")
    memory = row.memory.total_bytes if row.memory else None
    if wish.max_memory_bytes is not None and memory is not None and memory > wish.max_memory_bytes:
        found.append(f"takes {memory / 1e6:.0f} MB of memory, more than {wish.max_memory_bytes / 1e6:.0f}")
    return tuple(found)


def choice(rows: Iterable[Row], wish: Wish) -> Row | None:
    """The row that is best at what is preferred among those that keep to every limit; None if there is none.

    Where accuracy was compared, a row without accuracy is no candidate; the same for latency.
    """
    candidates = [row for row in rows if row.status == "ok"]
    for measured in ("accuracy", "latency"):
        if any(getattr(row, measured) for row in candidates):
            candidates = [row for row in candidates if getattr(row, measured)]
    candidates = [row for row in candidates if (row.latency or wish.prefer == "size") and not outside(row, wish)]
    return min(candidates, key=lambda row: _cost(row, wish.prefer), default=None)


def _cost(row: Row, prefer: str) -> tuple[float, float]:
    """What is least in the best row; equals are told apart by latency."""
    ms = row.latency.p50 if row.latency else 0.0
    if prefer == "size":
        return float(row.size_bytes or 1 << 62), ms
    if prefer == "throughput":
        return -(row.images_per_s or 0.0), ms
    return ms, float(row.size_bytes or 0)


def wish_of(settings: dict[str, Any]) -> Wish:
    """The wish that a report was made with."""
    return Wish(
        float(settings.get("max_drop_points", 1.0)),
        settings.get("max_latency_ms"),
        settings.get("max_memory_bytes"),
        settings.get("prefer", "latency"),
    )


def headline(report: BenchReport) -> str:
    """What to ship from here, in a few sentences; noisy times are called that."""
    caution = " The times are noisy: measure again on a quiet machine." if report.noise else ""
    return _recommended(report) + caution


def _recommended(report: BenchReport) -> str:
    wish = wish_of(report.settings)
    best = choice(report.rows, wish)
    if best is None:
        measured = [row for row in report.rows if row.accuracy or row.latency]
        if measured and any(row.latency for row in report.rows):
            return f"No form that was timed {_limits(wish)}."
        return "Accuracy only: no latency was measured." if measured else "Nothing was measured."
    base = report.baseline
    is_base = best.key == base.get("key")
    what = "The baseline itself" if is_base else named(best)
    sentence = f"{what} is the {_superlative(wish)}"
    sentence += f" that {_limits(wish)}" if best.accuracy else " (accuracy was not measured)"
    if best.latency is not None:
        sentence += f": {best.latency.p50:.2f} ms per {_unit(best.latency.batch_size)}"
        sentence += f" on {backend_name(best)}" if is_base else ""
        if best.latency.speedup is not None and not is_base:
            sentence += f", {best.latency.speedup:.2f} times as fast as {base.get('name', 'the baseline')}"
    sentence += "."
    if best.accuracy and best.accuracy.delta is not None and best.accuracy.delta_ci95 is not None:
        low, high = best.accuracy.delta_ci95
        sentence += (
            f" Its top-1 is {best.accuracy.top1:.2%}, {points(best.accuracy.delta)} points against the baseline"
            f" (95 % interval {points(low)} to {points(high)})."
        ).replace("%,", " %,")
    return sentence


def _superlative(wish: Wish) -> str:
    return _BEST[wish.prefer] + ("" if wish.prefer == "throughput" else " form")


def _limits(wish: Wish) -> str:
    unit = "point" if wish.max_drop_points == 1 else "points"
    limits = [f"stays within {wish.max_drop_points:g} {unit} of the baseline"]
    if wish.max_latency_ms is not None:
        limits.append(f"answers within {wish.max_latency_ms:g} ms (p95)")
    if wish.max_memory_bytes is not None:
        limits.append(f"takes at most {wish.max_memory_bytes / 1e6:.0f} MB of memory")
    return " and ".join([", ".join(limits[:-1]), limits[-1]] if len(limits) > 1 else limits)


def points(share: float) -> str:
    """A change of a share in percentage points with its sign: "−0.14"."""
    value = round(100 * share, 2)
    return f"{'−' if value < 0 else '+' if value > 0 else '±'}{abs(value):.2f}"


def _unit(batch_size: int) -> str:
    return "image" if batch_size == 1 else f"batch of {batch_size}"
