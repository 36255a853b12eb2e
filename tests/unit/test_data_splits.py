"""A split is a function of the records' content and the seed alone, and no record is on both sides of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data import splits
from finetune_trainer.data.splits import TEST, TRAIN, VALIDATION, TooFewError, assigned, repeated, shared

steady = settings(deadline=None, derandomize=True, max_examples=60)
many = st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=200)
shares = st.floats(0.01, 0.45)


def keys(values: list[int]) -> splits.Keys:
    return np.array(values, dtype=np.uint64)


@steady
@given(many, st.integers(0, 2**31), shares, shares)
def test_equal_records_stay_together(values: list[int], seed: int, validation: float, test: float) -> None:
    """However often a record is repeated, all its copies are in one split, unless that would leave a split empty."""
    identities = keys(values * 2)
    if len(set(values)) < 8:
        return
    parts = assigned(identities, None, seed, validation, test)
    half = len(values)
    assert (parts[:half] == parts[half:]).all()


@steady
@given(st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=300), st.integers(0, 2**31), shares, shares)
def test_sizes_are_exact_for_distinct_records(values: set[int], seed: int, validation: float, test: float) -> None:
    """Each split gets round(share × records), or one."""
    parts = assigned(keys(sorted(values)), None, seed, validation, test)
    total = len(values)
    assert (parts == TEST).sum() == max(1, round(test * total))
    left = total - max(1, round(test * total)) - 1
    assert (parts == VALIDATION).sum() == min(max(1, round(validation * total)), left)
    assert (parts == TRAIN).sum() >= 1


@steady
@given(st.sets(st.integers(0, 2**64 - 1), min_size=5, max_size=100), st.integers(0, 2**31), st.randoms())
def test_order_does_not_matter(values: set[int], seed: int, random: object) -> None:
    """A shuffled file makes the same splits."""
    some = sorted(values)
    other = list(some)
    random.shuffle(other)  # type: ignore[attr-defined]
    of_some = dict(zip(some, assigned(keys(some), None, seed, 0.2, 0.2), strict=True))
    of_other = dict(zip(other, assigned(keys(other), None, seed, 0.2, 0.2), strict=True))
    assert of_some == of_other


def test_the_seed_matters() -> None:
    identities = keys(list(range(200)))
    assert (assigned(identities, None, 1, 0.1, 0.1) != assigned(identities, None, 2, 0.1, 0.1)).any()


@steady
@given(st.lists(st.integers(0, 5), min_size=10, max_size=300), st.integers(0, 2**31))
def test_classes_keep_their_shares(classes: list[int], seed: int) -> None:
    """With labels each class gives its share, to within one record, and keeps a record to learn from."""
    labels = np.array(classes, dtype=np.int32)
    if len(np.unique(labels)) == len(labels):
        return
    parts = assigned(keys(list(range(len(classes)))), labels, seed, 0.1, 0.2)
    for one in np.unique(labels):
        size = (labels == one).sum()
        assert (parts[labels == one] == TRAIN).sum() >= 1
        assert (parts[labels == one] == TEST).sum() <= 0.2 * size + 1
    assert (parts == TEST).sum() == max(1, round(0.2 * len(labels)))


def test_a_class_of_one_record_is_trained_on() -> None:
    """It cannot be held out and learnt at once."""
    labels = np.array([0] * 50 + [1], dtype=np.int32)
    assert assigned(keys(list(range(51))), labels, 1, 0.3, 0.3)[-1] == TRAIN


def test_too_few_records_are_refused() -> None:
    """Two records cannot make three splits."""
    with pytest.raises(TooFewError):
        assigned(keys([1, 2]), None, 1, 0.05, 0.05)
    with pytest.raises(TooFewError):
        assigned(keys([1]), None, 1, 0, 0.05)


def test_nothing_is_split_off_when_both_shares_are_zero() -> None:
    assert not assigned(keys([1]), None, 1, 0, 0).any()


@pytest.mark.parametrize("labelled", [False, True])
def test_many_records_are_split_by_chance(monkeypatch: pytest.MonkeyPatch, labelled: bool) -> None:
    """Above the exact limit shares are approximate, copies still stay together and each class is still learnt."""
    monkeypatch.setattr(splits, "EXACT", 1000)
    identities = np.random.default_rng(1).integers(0, 2**63, 20_000, dtype=np.uint64)
    identities[10_000:] = identities[:10_000]
    labels = np.zeros(20_000, dtype=np.int32) if labelled else None
    if labels is not None:
        labels[::7] = 1
        labels[5] = 2
    parts = assigned(identities, labels, 7, 0.1, 0.2)
    assert abs((parts == TEST).mean() - 0.2) < 0.02
    assert abs((parts == VALIDATION).mean() - 0.1) < 0.02
    if labels is None:
        assert (parts[:10_000] == parts[10_000:]).all()
    else:
        assert parts[5] == TRAIN


@steady
@given(st.lists(st.integers(0, 50), max_size=200), st.lists(st.integers(0, 50), max_size=50))
def test_repeated_counts_every_copy_over_all_tables(first: list[int], second: list[int]) -> None:
    assert repeated([keys(first), keys(second)]) == len(first + second) - len(set(first + second))
    assert shared(keys(second), keys(first)) == sum(value in first for value in second)
