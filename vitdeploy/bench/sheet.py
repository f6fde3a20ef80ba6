"""The report as CSV: a line per form and size, for spreadsheets; plain numbers, shares 0..1, times in milliseconds."""

from __future__ import annotations

import csv
import io
from typing import Any

from vitdeploy.bench.report import BenchReport, Latency, Row

__all__ = ["csv_text"]


def csv_text(report: BenchReport) -> str:
    """CSV with a head; what was not measured is empty."""
    lines = [_line(row, latency) for row in report.rows for latency in row.latencies or (None,)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(_line(_NOBODY, None)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


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
        **_cost(latency),
        **_phases(row),
        **_kept(row),
        "on_front": row.on_front,
        "outside": "; ".join(row.outside),
    }


def _cost(latency: Latency | None) -> dict[str, Any]:
    names = ("p50", "p90", "p95", "p99", "min", "mean")
    height, width = (latency.image_size if latency else None) or (None, None)
    ratio = (latency.speedup_ci95 if latency else None) or (None, None)
    memory = latency.memory if latency else None
    return {
        "batch_size": latency and latency.batch_size,
        "image_height": height,
        "image_width": width,
        **{f"{name}_ms": latency and getattr(latency, name) for name in names},
        "samples": latency and len(latency.samples),
        "device_p50_ms": latency and latency.device and latency.device.p50,
        "images_per_s": latency and latency.images_per_s,
        "speedup": latency and latency.speedup,
        "speedup_low": ratio[0],
        "speedup_high": ratio[1],
        "host_peak_bytes": memory and memory.host_peak_bytes,
        "device_peak_bytes": memory and memory.device_peak_bytes,
        "noise": latency and latency.noise,
    }


def _phases(row: Row) -> dict[str, Any]:
    names = ("decode_ms", "preprocess_ms", "model_ms", "post_ms", "preprocess_share")
    return {name: row.phases and getattr(row.phases, name) for name in names}


def _kept(row: Row) -> dict[str, Any]:
    names = ("top1", "top5", "count", "calibration_error", "delta", "mcnemar_p", "agreement")
    accuracy = row.accuracy
    interval = (accuracy.delta_ci95 if accuracy else None) or (None, None)
    values = {name: accuracy and getattr(accuracy, name) for name in names}
    return {**values, "delta_low": interval[0], "delta_high": interval[1]}


_NOBODY = Row("", "", "", "skipped")
