"""A part of a parquet file that unpacks to far more than images do is refused before it is unpacked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vitdeploy.core.errors import DatasetError
from vitdeploy.data.outside import are_outside_paths_allowed, check_unpacked, outside_paths

LARGE = 256 * 2**20  # bytes


def metadata(*groups: list[tuple[int, int]]) -> Any:
    """What pyarrow says of a file: for each row group the bytes of each column, unpacked and packed."""
    columns = [
        [SimpleNamespace(total_uncompressed_size=size, total_compressed_size=packed, path_in_schema=f"c{place}")
         for place, (size, packed) in enumerate(group)]
        for group in groups
    ]  # fmt: skip
    row_groups = [SimpleNamespace(column=group.__getitem__) for group in columns]
    return SimpleNamespace(num_row_groups=len(groups), num_columns=len(groups[0]), row_group=row_groups.__getitem__)


@pytest.mark.parametrize("size", [LARGE, 20 * LARGE])
def test_what_is_small_or_was_packed_as_images_are_is_read(size: int) -> None:
    check_unpacked(metadata([(size, -(-size // 20)), (10, 1)], [(LARGE, 1), (0, 0)]), "a.parquet")


def test_a_byte_more_than_may_be_unpacked_is_too_much() -> None:
    with pytest.raises(DatasetError, match="unpacks to 256 MiB from 0 KiB"):
        check_unpacked(metadata([(LARGE + 1, 1)]), "a.parquet")


@pytest.mark.parametrize(("group", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_is_large_and_was_packed_better_is_refused(group: int, column: int) -> None:
    groups = [[(10, 5), (10, 5)], [(10, 5), (10, 5)]]
    groups[group][column] = (20 * LARGE + 1, LARGE)
    with pytest.raises(DatasetError, match=rf"5120 MiB from 262144 KiB \(the column 'c{column}', row group {group}\)"):
        check_unpacked(metadata(*groups), "a.parquet")


def test_paths_outside_are_allowed_inside_the_block_only() -> None:
    with outside_paths(True):
        with outside_paths(False):
            assert not are_outside_paths_allowed()
        assert are_outside_paths_allowed()
    assert not are_outside_paths_allowed()
