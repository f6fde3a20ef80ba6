"""The tables that documents quote from the records under docs/results: written anew, or compared with what is there.

    python benchmarks/tables.py [--check]

A table stands between two comments, `<!-- table: NAME -->` and `<!-- end -->`. After a measurement has written its
record, this writes the table; the sentences around it are a person's to read again.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdeploy.bench import BenchReport, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
CALLS = ("onnxruntime, known size", "onnxruntime, any size", "openvino, known size", "openvino, any size")
STEADY = ("steady ms", "steady speed-up", "images/s")
TITLES = ("ONNX Runtime, known size", "any size", "OpenVINO, known size", "any size")


def record(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(titles: tuple[str, ...], rows: list[list[str]]) -> str:
    """Markdown; the first column is words, the others are numbers."""
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def bench() -> str:
    """Without the columns of calls that follow each other."""
    lines = markdown(BenchReport.read(RESULTS / "cifar10-vit-small.json")).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    kept = [place for place, title in enumerate(rows[0]) if title not in STEADY]
    return "\n".join(f"| {' | '.join(row[place] for place in kept)} |" for row in rows)


def milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def preprocessing(resample: str) -> str:
    """Milliseconds of each call, with the ratios to Pillow's resize and to all that the graph does."""
    rows = {(row["image"], row["call"]): row for row in record(f"preprocessing-{resample}")["results"]}
    lines = []
    for image in dict.fromkeys(image for image, _ in rows):
        cells = [milliseconds(rows[image, call]["minimum_ms"]) for call in ("pillow", "pillow to float32")]
        for row in (rows[image, call] for call in CALLS):
            ratios = f"({row['of_pillow']:.2f}, {row['of_pillow_to_float32']:.2f})"
            cells.append(f"{milliseconds(row['minimum_ms'])} {ratios}")
        lines.append([image, *cells])
    return table((resample, "Pillow", "to float32", *TITLES), lines)


def preprocessing_ranges() -> str:
    """The ratios to Pillow's resize in ONNX Runtime: medians and ranges of the processes."""
    names = ("bilinear", "bicubic")
    found = {
        (name, row["image"], row["call"]): row for name in names for row in record(f"preprocessing-{name}")["results"]
    }
    lines = []
    for image in ("480x640", "1080x1920"):
        rows = [found[name, image, call] for name in names for call in CALLS[:2]]
        each = [(row["of_pillow"], row["each_of_pillow"]) for row in rows]
        lines.append([image, *(f"{middle:.2f} [{ends[0]:.2f}, {ends[-1]:.2f}]" for middle, ends in each)])
    return table(("photograph", "bilinear, known size", "any size", "bicubic, known size", "any size"), lines)


def honesty() -> str:
    found = record("bench-honesty")
    count, late = found["repeats"], found["late_by_ms"]
    rows = [
        ["the copy's speed-up: the interval held 1", f"{found['copies_hold_1']} of {count}"],
        [
            "the flipped one's change of top-1: the interval held what was put in",
            f"{found['drop_in_interval']} of {count}",
        ],
        ["the late one: found later by", f"{late['median']:.2f} ms [{late['min']:.2f}, {late['max']:.2f}]"],
        ["within half a millisecond of 5 ms", f"{found['within_half_a_ms']} of {count}"],
        ["equal files, relative to each other, from run to run: standard deviation", f"{found['between_runs']:.1%}"],
        ["one file alone, from run to run: standard deviation", f"{found['between_states']:.1%}"],
    ]
    return table(("of equal benchmarks one after the other", "found"), rows)


def families() -> str:
    """What export makes of each architecture: how many, what works (a line a kind of model), what is refused."""
    found = record("families")
    rows = found["rows"]
    stages = {name: [row for row in rows if succeeded(row.get(name))] for name in ("export", "fp16", "int8", "rtx")}
    counts = {name: f"{len(those)} ({len(those) / len(rows):.0%})" for name, those in stages.items()}
    works: dict[str, list[Any]] = {}
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row in stages["export"]:
            works.setdefault(row["kind"], []).append(row)
        else:
            why = re.sub(
                r"^it (is an? \S+ model, which )?", "", row["export"].get("refused") or row["export"]["crashed"]
            )
            refused.setdefault(why, []).append(row["architecture"])
    title = ("works", "classifier", "embedding", "FP16", "INT8", "of the MACs", "engine", "remark")
    why_not = table(("refused", "why"), [[", ".join(names), why] for why, names in refused.items()])
    counted = (
        f"Of {len(rows)} architectures in transformers {found['versions']['transformers']}, {counts['export']} are"
        f" exported and equal. FP16 is built of {counts['fp16']}, INT8 of {counts['int8']}, an engine of TensorRT-RTX,"
        f" of INT8 where there is one, else of FP16, of {counts['rtx']}."
    )
    works_table = table(title, [family(those) for those in works.values()])
    return "\n\n".join([counted, works_table.replace("---: |\n", "--- |\n", 1), why_not.replace("---:", "---")])


def succeeded(found: dict[str, Any] | None) -> bool:
    return found is not None and not {"refused", "crashed"} & set(found)


def family(rows: list[dict[str, Any]]) -> list[str]:
    """The line of a kind of model: of several classes and tasks the worst."""

    def worst(name: str, number: str, task: str = "") -> str:
        taken = [row[name][number] for row in rows if succeeded(row.get(name)) and row["task"].endswith(task)]
        return f"{max(taken):.1g}" if taken else ""

    shares = [row["int8"]["share"] for row in rows if succeeded(row.get("int8"))]
    own = [row["export"]["processor"] for row in rows if row["export"].get("processor_refused")]
    remarks = [f"{processor} is refused: with ViT's" for processor in own]
    for name, form in (("fp16", "FP16"), ("int8", "INT8"), ("rtx", "engine")):
        remarks += [f"{form}: {row[name]['refused']}" for row in rows if "refused" in row.get(name, {})]
    for pattern, words in SHORTER.items():
        remarks = [re.sub(pattern, words, remark) for remark in remarks]
    return [
        rows[0]["kind"],
        worst("export", "difference", "classification"),
        worst("export", "cosine_lost", "embedding"),
        worst("fp16", "difference"),
        worst("int8", "difference"),
        f"{min(shares):.0%}" if shares else "",
        ", ".join(dict.fromkeys(row["rtx"]["precision"].upper() for row in rows if succeeded(row.get("rtx")))),
        "; ".join(dict.fromkeys(remarks)),
    ]


SHORTER = {  # of remarks
    r"INT8: .*nothing to quantise": "no INT8: convolutions alone",
    r"INT8: .*only ([\d.]+%) of the multiply-accumulates.*": r"no INT8: Linear layers are \1 of the work",
    r"INT8: .*the product behind its softmax is not.*": "no INT8: it would be in one half of an attention",
    r"engine: .*?\(op (\w+)\).*no such operator.*": r"no engine: TensorRT has no \1",
    r"INT8: .*on (\d+) images.*FP32's best class for (\d+%).*": r"no INT8 once: it kept \2 of the answers on \1 images",
}
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"cifar10-vit-small": bench},
    "docs/bench.md": {"bench-honesty": honesty},
    "docs/export.md": {"families": families},
    "docs/preprocessing.md": {
        "preprocessing-bicubic": lambda: preprocessing("bicubic"),
        "preprocessing-bilinear": lambda: preprocessing("bilinear"),
        "preprocessing-ranges": preprocessing_ranges,
    },
}


def written(page: str) -> str:
    """The text of a page with its tables from the records."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in TABLES[page].items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"{page} has {found} places for the table {name}")
    return text


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is another")
    arguments = parser.parse_args(given)
    stale = [page for page in TABLES if written(page) != (ROOT / page).read_text(encoding="utf-8")]
    if not arguments.check:
        for page in stale:
            (ROOT / page).write_text(written(page), encoding="utf-8")
    print(f"{'stale' if arguments.check else 'written'}: {', '.join(stale) or 'none'}")
    if arguments.check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
