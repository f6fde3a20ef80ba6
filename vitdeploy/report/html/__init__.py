"""The report as one page that needs nothing else: no network, no script, its pictures inside."""

from __future__ import annotations

from vitdeploy.report.html.frame import render_html

__all__ = ["render_html"]
