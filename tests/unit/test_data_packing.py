"""Packing loses no record, overfills no row and fills rows well."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.packing import packed

steady = settings(deadline=None, derandomize=True, max_examples=60)
lengths = st.lists(st.integers(1, 64), max_size=300)


@steady
@given(lengths, st.integers(64, 200))
def test_every_record_is_in_one_pack_that_holds_it(values: list[int], capacity: int) -> None:
    sizes = np.array(values, dtype=np.int32)
    packs = packed(sizes, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(values)))
    assert all(sizes[pack].sum() <= capacity for pack in packs)


@steady
@given(lengths, st.integers(64, 200))
def test_rows_are_few(values: list[int], capacity: int) -> None:
    """No more rows than 11/9 of the least conceivable number, and one."""
    assert len(packed(np.array(values, dtype=np.int32), capacity)) <= math.ceil(sum(values) / capacity) * 11 / 9 + 1


def test_the_tightest_row_is_taken() -> None:
    """Best fit: 4 goes beside 6, not beside 5, and 5 is left for 5."""
    packs = [sorted(pack.tolist()) for pack in packed(np.array([6, 5, 4, 5], dtype=np.int32), 10)]
    assert sorted(packs) == [[0, 2], [1, 3]]


def test_a_record_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a record of 11 tokens does not fit into 10"):
        packed(np.array([11], dtype=np.int32), 10)
