"""Which records share a batch. Theory: an epoch is a pure function of lengths, size, seed and number."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from finetune_trainer.training.batching import WINDOW, EpochBatches, by_length, shuffled

LENGTHS = np.random.default_rng(0).integers(1, 500, 3000).astype(np.int32)


@given(
    lengths=some.lists(some.integers(1, 400), min_size=1, max_size=200),
    size=some.integers(1, 9),
    seed=some.integers(0, 9),
)
def test_every_record_is_in_exactly_one_batch(lengths: list[int], size: int, seed: int) -> None:
    """No record is lost or doubled, no batch is too large, and their number is known beforehand."""
    batches = shuffled(np.array(lengths, dtype=np.int32), size, seed, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    assert len(batches) == len(EpochBatches(np.array(lengths), size, seed))


def test_an_epoch_is_repeatable_and_differs_from_the_next() -> None:
    """The same seed and epoch give the same order, in another process too; another epoch gives another."""
    first, again, next_epoch = (
        np.concatenate(shuffled(LENGTHS, 8, seed=1, epoch=epoch)).tolist() for epoch in (0, 0, 1)
    )
    assert first == again
    assert first != next_epoch
    assert first[:4] == [1635, 184, 64, 1003]


def test_batches_hold_similar_lengths_and_come_in_no_order_of_length() -> None:
    """Less than a tenth is padding where chance would leave nearly half, and short and long batches alternate."""
    batches = shuffled(LENGTHS, 8, seed=1, epoch=0)
    longest = np.array([LENGTHS[batch].max() for batch in batches])
    assert LENGTHS.sum() / sum(top * len(batch) for top, batch in zip(longest, batches, strict=True)) > 0.9
    half = len(batches) // 2
    assert abs(longest[:half].mean() / longest[half:].mean() - 1) < 0.1
    assert len(LENGTHS) > WINDOW * 8  # the records fill several windows


def test_evaluation_takes_the_longest_first() -> None:
    """If memory does not suffice, the first batch tells."""
    assert by_length(np.array([3, 9, 1, 7]), 2) == [[1, 3], [0, 2]]
