"""A sequence in parts: in order, each as large as it may be, and none empty."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.core.parts import in_parts


def test_what_is_larger_than_a_part_has_one_of_its_own() -> None:
    assert list(in_parts([3, 3, 4, 11, 1, 9, 1], float, 10)) == [[3, 3, 4], [11], [1, 9], [1]]
    assert list(in_parts([], float, 10)) == []


@given(st.lists(st.integers(0, 30)), st.integers(0, 40))
def test_parts_are_whole_in_order_and_as_large_as_they_may_be(sizes: list[int], most: int) -> None:
    parts = list(in_parts(sizes, float, most))
    assert [size for part in parts for size in part] == sizes
    assert all(part and (sum(part) <= most or len(part) == 1) for part in parts)
    assert all(sum(part) + after[0] > most for part, after in pairwise(parts))
