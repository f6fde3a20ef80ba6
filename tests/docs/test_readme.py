"""The README is short, opens with what it is and the two commands, and its pictures are of the recorded report."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.tools.documents import ROOT
from tests.tools.pictures import FOLDER, PICTURES, REPORT
from vitdeploy.report.records import BenchReport

README = (ROOT / "README.md").read_text(encoding="utf-8")


def words(svg: str) -> list[str]:
    """What a picture says, without how it is drawn: that differs between versions of Rich."""
    root = ElementTree.fromstring(svg)
    texts = ("".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text"))
    return [text.replace("\xa0", " ").strip() for text in texts if text.strip()]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_says_what_the_report_says(name: str) -> None:
    recorded = (FOLDER / name).read_text(encoding="utf-8")
    assert words(recorded) == words(PICTURES[name](BenchReport.read(REPORT))), "draw it anew: make pictures"
    assert len(words(recorded)) > 20
    assert "url(" not in re.sub(r"url\(#", "", recorded) and "<script" not in recorded, "it fetches nothing"
    assert f"docs/pictures/{name}" in README


def test_it_is_short_and_opens_with_the_two_commands() -> None:
    lines = README.splitlines()
    assert len(lines) < 150
    blocks = re.findall(r"^    .*(?:\n    .*)*", README, flags=re.M)
    assert [line.split("#")[0].strip() for line in blocks[0].splitlines()] == ["make demo", "make test"]
