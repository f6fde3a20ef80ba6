"""May vectors of one form search an index that another made? That decides whether an index has to be made anew."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.evaluation.vectors import Kept
from vitdeploy.report.formatting import named, percent
from vitdeploy.report.records import BenchReport, Row

__all__ = ["Mixed", "mixed", "mixed_sentences"]


@dataclass(frozen=True)
class Mixed:
    """What a form finds of the baseline's `k` nearest: `alone` with queries and index of its own, with its `queries` on
    the baseline's index, and its `index` asked by the baseline's queries. `least` is the limit; None: there is none."""

    row: Row
    k: int
    alone: Kept
    queries: Kept
    index: Kept
    least: float | None

    def may(self, found: Kept) -> bool | None:
        """Whether a mixture keeps to the limit, by the lower end of its interval; None: there is no limit."""
        return None if self.least is None else found.ci95[0] >= self.least


def mixed(report: BenchReport) -> list[Mixed]:
    """Of every form that rounds."""
    found = []
    for row in report.rows:
        kept = row.embedding
        if row.status != "ok" or kept is None or row.form.startswith("fp32") or row is report.base:
            continue
        if kept.recall is not None and kept.queries is not None and kept.index is not None:
            found.append(Mixed(row, kept.k, kept.recall, kept.queries, kept.index, report.settings.min_recall))
    return found


def mixed_sentences(report: BenchReport) -> list[str]:
    """A sentence a form."""
    base = str(report.baseline.get("name") or "the baseline")
    sentences = []
    for each in mixed(report):
        text = (
            f"{named(each.row)}: of the {each.k} nearest, its queries find {percent(each.queries.value, 1)} on an index"
            f" of {base}, and queries of {base} find {percent(each.index.value, 1)} on its index; alone it finds"
            f" {percent(each.alone.value, 1)}."
        )
        if each.least is not None:
            words = {True: "yes", False: "no", None: ""}
            text += (
                f" Within recall {each.least:g}: its queries there {words[each.may(each.queries)]},"
                f" its index for them {words[each.may(each.index)]}."
            )
        sentences.append(text)
    return sentences
