"""Judges a bundle: what each form costs on this machine, and what it keeps of the baseline's accuracy."""

from __future__ import annotations

from vitdeploy.bench.html import render_html
from vitdeploy.bench.report import BenchReport
from vitdeploy.bench.run import bench, save
from vitdeploy.bench.table import markdown, terminal_table

__all__ = ["BenchReport", "bench", "markdown", "render_html", "save", "terminal_table"]
