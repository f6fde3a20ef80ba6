"""Each rule of lint has its page, which says what the table and the program say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.lint_graphs import DOCS, example_of, heading, overview
from vitdeploy.compiler.lint.rules import RULES

NAV = DOCS.parents[1] / "mkdocs.yml"


def test_there_is_a_page_for_each_rule_and_no_other() -> None:
    assert {page.stem for page in DOCS.glob("*.md")} == {*RULES, "index"}
    assert overview() in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", RULES)
def test_a_page_says_what_the_table_says(rule: str, tmp_path: Path) -> None:
    """If a change is meant: python -m tests.tools.lint_graphs writes the examples anew."""
    row = RULES[rule]
    page = (DOCS.parents[1] / row.page).read_text(encoding="utf-8")
    assert page.startswith(f"# {row.title}\n\n{heading(rule)}\n")
    for title in ("What it is", "Why it hurts", "Example", "Remedy"):
        assert f"\n## {title}\n" in page
    assert f"\n## Remedy\n**{row.remedy}**\n" in page
    assert f"```text\n{example_of(rule, tmp_path)}\n```" in page


@pytest.mark.parametrize("rule", RULES)
def test_a_page_is_in_the_navigation(rule: str) -> None:
    assert f"lint/{rule}.md" in NAV.read_text(encoding="utf-8")
