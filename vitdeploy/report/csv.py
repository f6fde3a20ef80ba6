"""The report as CSV: a line per form and size, for spreadsheets; plain numbers, shares 0..1, times in milliseconds."""

from __future__ import annotations

import csv
import io
from typing import Any

from vitdeploy.core.text import visible
from vitdeploy.evaluation.multi_label import MultiLabelAccuracy
from vitdeploy.evaluation.vectors import VectorQuality
from vitdeploy.report.records import BenchReport, Latency, Ratio, Row
from vitdeploy.report.table import VECTORS

__all__ = ["csv_text"]


def csv_text(report: BenchReport) -> str:
    """CSV with a head; what was not measured is empty."""
    lines = [_line(row, latency) for row in report.rows for latency in row.latencies or (None,)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(_line(_NOBODY, None)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return visible(buffer.getvalue())


def _line(row: Row, latency: Latency | None) -> dict[str, Any]:
    return {
        "key": row.key,
        "form": row.form,
        "backend": row.backend,
        "device": row.device,
        "status": row.status,
        "reason": row.reason,
        "artifact": row.artifact and row.artifact.path,
        "sha256": row.artifact and row.artifact.sha256,
        "size_bytes": row.size_bytes,
        "cold_start_ms": row.cold_start_ms,
        **_performance(latency),
        **_phases(row),
        **_accuracy(row),
        "on_front": row.on_front,
        "outside": "; ".join(row.outside),
    }


def _performance(latency: Latency | None) -> dict[str, Any]:
    names = ("p50", "p90", "p95", "p99", "min", "mean")
    height, width = (latency.image_size if latency else None) or (None, None)
    memory = latency.memory if latency else None
    return {
        "batch_size": latency and latency.batch_size,
        "image_height": height,
        "image_width": width,
        **{f"{name}_ms": latency and getattr(latency.ms, name) for name in names},
        "n": latency and latency.ms.count,
        **_ratio("speedup", latency.speedup if latency else None),
        **{f"steady_{name}_ms": latency and getattr(latency.steady_ms, name) for name in names},
        "steady_n": latency and latency.steady_ms.count,
        **_ratio("steady_speedup", latency.steady_speedup if latency else None),
        "device_p50_ms": latency and latency.device_ms and latency.device_ms.p50,
        **_ratio("device_speedup", latency.device_speedup if latency else None),
        "gpu_mhz": latency and latency.gpu_mhz,
        "images_per_s": latency and latency.images_per_s,
        "host_peak_bytes": memory and memory.host_peak_bytes,
        "device_peak_bytes": memory and memory.device_peak_bytes,
        "noise": latency and latency.noise,
        "busy": latency and latency.busy,
    }


def _ratio(name: str, ratio: Ratio | None) -> dict[str, Any]:
    low, high = (ratio.ci95 if ratio else None) or (None, None)
    return {name: ratio and ratio.ratio, f"{name}_low": low, f"{name}_high": high}


def _phases(row: Row) -> dict[str, Any]:
    names = ("decode_ms", "preprocess_ms", "model_ms", "post_ms", "preprocess_share")
    return {name: row.phases and getattr(row.phases, name) for name in names}


def _accuracy(row: Row) -> dict[str, Any]:
    single = ("top1", "top5", "count", "calibration_error", "delta", "mcnemar_p", "agreement")
    accuracy = row.accuracy
    interval = (accuracy.delta_ci95 if accuracy else None) or (None, None)
    values = {name: accuracy and getattr(accuracy, name) for name in single}
    several = row.multi_label
    if several is not None:
        for name in ("count", "delta", "agreement"):
            values[name] = getattr(several, name)
        interval = several.delta_ci95 or (None, None)
    if row.embedding is not None and row.quality is not None:
        values |= {"count": row.quality.count, "delta": row.quality.delta, "agreement": row.quality.agreement}
        interval = row.quality.delta_ci95 or (None, None)
    names = ("mean_average_precision", "f1_micro", "f1_macro", "exact_match")
    return {
        **values,
        "delta_low": interval[0],
        "delta_high": interval[1],
        **{name: several and getattr(several, name) for name in names},
        **_intervals(several),
        **_vectors(row.embedding),
    }


def _intervals(found: MultiLabelAccuracy | None) -> dict[str, Any]:
    """Of several labels, and from which score one counts."""
    intervals = {
        "mean_average_precision": found and found.ci95,
        **{name: found and getattr(found, f"{name}_ci95") for name in ("f1_micro", "f1_macro", "exact_match")},
    }
    values: dict[str, Any] = {"threshold": found and found.threshold}
    for name, interval in intervals.items():
        values[f"{name}_low"], values[f"{name}_high"] = interval or (None, None)
    return values


def _vectors(found: VectorQuality | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in VECTORS:
        number = None if found is None else getattr(found, name)
        low, high = (None, None) if number is None else number.ci95
        values |= {name: number and number.value, f"{name}_low": low, f"{name}_high": high}
    knn = found and found.knn
    return {**values, "neighbours": found and found.k, "knn_top1": knn and knn.top1}


_NOBODY = Row("", "", "", "skipped")
