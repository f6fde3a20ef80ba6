"""What came of mutants: the table of modules, the records in docs/results/mutation.json, the page drawn from them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "mutants.toml"
RESULTS = ROOT / "docs" / "results" / "mutation.json"
PAGE = ROOT / "docs" / "results" / "mutation.md"


@dataclass(frozen=True)
class Module:
    """A row of the table: `paths` are mutated, `tests` run."""

    paths: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Mutant:
    """One change of one place; `outcome` is "killed", "survived", or "killed since" by a test that was added."""

    file: str
    line: int
    operator: str
    before: str
    after: str
    outcome: str = ""
    why: str = ""
    occurrence: int = field(default=0, compare=False)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.before, self.after

    @property
    def is_equivalent(self) -> bool:
        return self.why.startswith("equivalent")


def modules() -> dict[str, Module]:
    found = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Module(tuple(row["paths"]), tuple(row["tests"])) for name, row in found.items()}


def results() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {}


def mutants(record: dict[str, Any]) -> list[Mutant]:
    return [Mutant(**row) for row in record.get("mutants", ())]


def score(found: list[Mutant]) -> float:
    """The share of the mutants that are not equivalent which tests notice, in per cent."""
    counted = [mutant for mutant in found if not mutant.is_equivalent]
    return 100 * sum(mutant.outcome.startswith("killed") for mutant in counted) / max(1, len(counted))


def page() -> str:
    """The page with its tables drawn anew."""
    scores = ["| module | mutants | equivalent | killed at first | killed now | score |"]
    scores.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    living = ["| place | as it is | mutant | why it lives |", "| --- | --- | --- | --- |"]
    recorded = results()
    for name in modules():
        if name not in recorded:
            scores.append(f"| {name} | not run yet | | | | |")
            continue
        found = mutants(recorded[name])
        counted = [mutant for mutant in found if not mutant.is_equivalent]
        first = sum(mutant.outcome == "killed" for mutant in counted)
        now = sum(mutant.outcome.startswith("killed") for mutant in counted)
        equivalent = len(found) - len(counted)
        scores.append(f"| {name} | {len(found)} | {equivalent} | {first} | {now} | {score(found):.0f} % |")
        for one in found:
            if one.outcome == "survived":
                place = f"`{one.file.removeprefix('vitdeploy/')}:{one.line}`"
                living.append(f"| {place} | {_code(one.before)} | {_code(one.after)} | {one.why or 'no test yet'} |")
    text = PAGE.read_text(encoding="utf-8")
    for mark, rows in (("scores", scores), ("living", living)):
        head, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, tail = rest.partition(f"<!-- end of {mark} -->")
        assert begin and end, f"{PAGE.name} has no place for {mark}"
        text = f"{head}{begin}\n" + "\n".join(rows) + f"\n\n{end}{tail}"
    return text


def _code(line: str) -> str:
    return "`" + line.replace("|", "\\|").replace("`", "'") + "`"
