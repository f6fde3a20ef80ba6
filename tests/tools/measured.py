"""A report in a bundle, with no more than `load` reads of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Bundle
from vitdeploy.bundle.measurements import REPORT, SCHEMA_VERSION
from vitdeploy.core.machine import machine


def keep_report(bundle: Path, rows: list[dict[str, Any]], where: dict[str, Any] | None = None) -> None:
    """Keep a report with these rows in the bundle, of this machine unless said otherwise."""
    report = {
        "schema_version": SCHEMA_VERSION,
        "created": "2026-01-01",
        "recommendation": {},
        "dataset": {},
        "settings": {"max_drop_points": 1.0, "threads": 2},
        "machine": machine() if where is None else where,
        "rows": rows,
    }
    with Bundle.open(bundle).edit() as editor:
        editor.path_for(REPORT).write_text(json.dumps(report))
        editor.add(REPORT, kind="bench")
