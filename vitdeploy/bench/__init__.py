"""Judges a bundle: what each form costs on this machine, and what it keeps of the baseline's accuracy."""

from __future__ import annotations

from vitdeploy.bench.page import render_html
from vitdeploy.bench.report import BenchReport
from vitdeploy.bench.run import bench, save
from vitdeploy.bench.settings import BenchSettings
from vitdeploy.bench.sheet import csv_text
from vitdeploy.bench.table import markdown, terminal_table

__all__ = ["BenchReport", "BenchSettings", "bench", "csv_text", "markdown", "render_html", "save", "terminal_table"]
