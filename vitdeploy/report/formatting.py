"""How numbers, rows and forms are written, in every renderer."""

from __future__ import annotations

from typing import Any

from vitdeploy.backends.registry import backend_title, on_chosen_gpu
from vitdeploy.core.precisions import title
from vitdeploy.report.circumstances import Data
from vitdeploy.report.records import Row

__all__ = [
    "NONE",
    "backend_name",
    "count",
    "data_words",
    "form_name",
    "ms",
    "named",
    "percent",
    "points",
    "rate",
    "size_words",
]

NONE = "–"  # what was not measured


def named(row: Row) -> str:
    """A row in words: "INT8 on OpenVINO"."""
    return f"{form_name(row.form)} on {backend_name(row)}"


def data_words(data: Data) -> str:
    """What was measured on: "photos/test, 12 of 60 images (no splits of its own)"."""
    there = data.get("carved_from")
    drawn = f"{data.get('count')} of {there} images (it has no splits)" if there else count(data.get("count"), "image")
    return f"{data.get('name', 'dataset')}/{data.get('split', '?')}, {drawn}"


def backend_name(row: Row) -> str:
    """A row's backend in words: "OpenVINO", "PyTorch (GPU)"."""
    name = backend_title(row.backend)
    return f"{name} (GPU)" if on_chosen_gpu(row.backend, row.device) else name


def form_name(form: str) -> str:
    """A form in words: "INT8", "INT8 (tensorrt)"."""
    precision, _, target = form.partition("-")
    return title(precision) + (f" ({target})" if target else "")


def points(share: float) -> str:
    """A change of a share in percentage points with its sign: "−0.14"."""
    value = round(100 * share, 2)
    return f"{'−' if value < 0 else '+' if value > 0 else '±'}{abs(value):.2f}"


def size_words(size_bytes: int | None) -> str:
    """Bytes in GB, MB or kB (powers of ten)."""
    if size_bytes is None:
        return NONE
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


def count(number: Any, unit: str) -> str:
    """A number with its unit: "1 core", "8,000 images"."""
    return "" if number is None else f"{number:,} {unit}{'' if number == 1 else 's'}"


def ms(value: float | None) -> str:
    """Milliseconds with as many digits as mean something."""
    if value is None:
        return NONE
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def rate(value: float) -> str:
    """Images per second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f} %"
