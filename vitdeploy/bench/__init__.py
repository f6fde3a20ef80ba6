"""Measures a bundle: latency, memory and accuracy of each form on this machine, against the baseline."""

from __future__ import annotations

from vitdeploy.bench.run import bench, save
from vitdeploy.core.callable_module import make_callable
from vitdeploy.report.csv import csv_text
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import markdown
from vitdeploy.report.records import BenchReport
from vitdeploy.report.settings import BenchSettings
from vitdeploy.report.text import terminal_table

__all__ = ["BenchReport", "BenchSettings", "bench", "csv_text", "markdown", "render_html", "save", "terminal_table"]

make_callable(__name__, "bench")
