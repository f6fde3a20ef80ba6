"""The section on what the model does with one image: the pictures that `vitdeploy explain` put into the bundle."""

from __future__ import annotations

from html import escape

from vitdeploy.report.html.markup import section
from vitdeploy.report.records import BenchReport

__all__ = ["explained_section"]

_WORDS = {
    "attention-rollout": "Attention rollout: from which patches the class can have drawn its information",
    "position-similarity": "Position embeddings: each tile is one position's cosine similarity to all others",
    "patches": "The image as the model cuts it",
}


def explained_section(report: BenchReport) -> str:
    """The pictures side by side, as large as the page allows."""
    figures = "".join(_figure(picture["name"], picture["png"]) for picture in report.explanation)
    lead = "One image inside the model, by <code>vitdeploy explain --add-to-bundle</code>."
    return section("Inside the model", lead, f'<div class="explained">{figures}</div>') if figures else ""


def _figure(name: str, png: str) -> str:
    words = escape(_WORDS.get(name, name), quote=True)
    picture = f'<img src="data:image/png;base64,{escape(png, quote=True)}" alt="{words}">'
    return f'<figure class="card">{picture}<figcaption>{words}</figcaption></figure>'
