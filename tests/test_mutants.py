"""The table of modules of which mutants are made, what came of them, and the page that shows it."""

from __future__ import annotations

import pytest

from tests.tools.mutants import lines_of_statement, places_of, sample
from tests.tools.mutation_records import PAGE, ROOT, Module, Mutant, modules, mutants, page, results, score

NAMES = sorted(modules())
SOURCE = """\
def found(count: int | None = None, *, most: int = 3) -> int | None:
    log(count)
    if count is None and most:
        return (most
                + 1)
    return count
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_module_of_the_table_and_its_tests_are_there(name: str) -> None:
    module = modules()[name]
    assert module.paths and module.tests
    assert all((ROOT / path).exists() for path in (*module.paths, *module.tests))


def test_the_page_shows_what_is_recorded() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.tools.mutants --page"
    assert set(results()) <= set(NAMES)
    for mutant in (mutant for record in results().values() for mutant in mutants(record)):
        assert mutant.outcome in ("killed", "killed since", "survived")


def test_equivalent_mutants_are_not_in_the_score() -> None:
    same, missed = (Mutant("a.py", 1, "AddNot", "", "", "survived", why) for why in ("equivalent: so it is", ""))
    killed, since = (Mutant("a.py", 1, "AddNot", "", "", outcome) for outcome in ("killed", "killed since"))
    assert score([killed, since, killed, missed, same]) == 75 and score([same]) == 0


def test_a_line_belongs_to_its_statement() -> None:
    assert [lines_of_statement(SOURCE, line) for line in (1, 3, 4, 5, 6)] == [
        range(1, 2), range(3, 4), range(4, 6), range(4, 6), range(6, 7)
    ]  # fmt: skip


def test_mutants_are_small_and_none_is_in_an_annotation() -> None:
    pytest.importorskip("cosmic_ray")
    found = {(start, mutant.operator) for (start, _), few in places_of("a.py", SOURCE).items() for mutant in few}
    assert found == {
        ((1, 51), "NumberReplacer"),
        ((2, 4), "DropCall"),
        ((3, 7), "AddNot"),
        ((3, 13), "ReplaceComparisonOperator_Is_IsNot"),
        ((3, 21), "ReplaceAndWithOr"),
        ((5, 16), "ReplaceBinaryOperator_Add_Sub"),
        ((5, 18), "NumberReplacer"),
    }


def test_a_seed_draws_the_same_mutants_each_of_a_place_of_its_own() -> None:
    pytest.importorskip("cosmic_ray")
    module = Module(("vitdeploy/core/text.py", "vitdeploy/core/version.py"), ("tests/core",))
    one, same, other = (list(sample(module, seed)) for seed in (0, 0, 1))
    assert one == same != other and {mutant.file for mutant in one} == set(module.paths)
    assert all(mutant.before != mutant.after for mutant in one)
