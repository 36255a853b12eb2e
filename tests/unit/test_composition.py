"""What each combination of adapters is, held against plain arithmetic on the updates ΔW = scaling · B·A."""

from typing import Any

import numpy as np
import pytest
import torch

from finetune_trainer.pretrained.adapter_composition import Composer, Part, agreed, dropped, trimmed
from tolerance import WEIGHT, assert_close, bound

OUT, IN = 7, 5


def part(seed: int, rank: int = 2, scaling: float = 2.0, weight: float = 1.0) -> Part:
    random = np.random.default_rng(seed)
    return Part(random.normal(size=(rank, IN)), random.normal(size=(OUT, rank)), scaling, weight)


def composed(combination: str, parts: list[Part], density: float = 0.5, rank: int = 2, seed: int = 0) -> Any:
    """ΔW of the composition, [out, in], in float32."""
    a, b = Composer(combination, density, rank, np.random.default_rng(seed)).compose(parts)
    assert (a.dtype, b.dtype) == (np.float32, np.float32)
    return b @ a


def weighted_sum(parts: list[Part]) -> Any:
    return sum(one.weight * one.scaling * one.b @ one.a for one in parts)


UNEQUAL = [part(1, rank=3, scaling=0.5, weight=0.7), part(2, rank=1, scaling=4, weight=-1.5), part(3, weight=0.2)]


def test_cat_is_the_weighted_sum_of_the_updates() -> None:
    """Of any ranks, scalings and signs; its rank is the sum of the ranks."""
    assert_close(composed("cat", UNEQUAL), weighted_sum(UNEQUAL), WEIGHT)
    a, b = Composer("cat", 0.5, 1, np.random.default_rng(0)).compose(UNEQUAL)
    assert (a.shape, b.shape) == ((6, IN), (OUT, 6))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_svd_is_as_close_to_the_sum_as_its_rank_allows(rank: int) -> None:
    """Eckart and Young: what is left is the norm of the singular values that were left out."""
    whole = weighted_sum(UNEQUAL)
    left_out = np.linalg.svd(whole, compute_uv=False)[rank:]
    found = composed("svd", UNEQUAL, rank=rank)
    assert np.linalg.matrix_rank(found, tol=bound(np.linalg.norm(whole), WEIGHT, torch.float32)) == rank
    size = {"computed_in": torch.float32, "terms": np.linalg.norm(whole)}
    assert_close(np.linalg.norm(whole - found), np.linalg.norm(left_out), WEIGHT, **size)


def test_svd_of_a_rank_that_holds_all_is_the_sum() -> None:
    """The shortcut over the factors loses nothing."""
    assert_close(composed("svd", UNEQUAL, rank=IN), weighted_sum(UNEQUAL), WEIGHT)


def test_linear_is_the_sum_and_its_cross_terms() -> None:
    """Σᵢⱼ √(wᵢwⱼ) Bᵢ·Aⱼ, w being weight times scaling: not the sum of the updates, as the docs say."""
    parts = [part(1, weight=0.6, scaling=1), part(2, weight=0.4, scaling=3)]
    expected = sum(
        np.sqrt(x.share * y.share) * x.b @ y.a for x in parts for y in parts
    )  # the terms with x = y are the sum
    assert_close(composed("linear", parts), expected, WEIGHT)
    assert np.abs(composed("linear", parts) - weighted_sum(parts)).max() > 0.1


def test_a_negative_weight_takes_an_update_away() -> None:
    """One adapter with weight 1 and itself with weight -1 are nothing; alone, -1 is the update turned round."""
    one, less = part(1), part(1, weight=-1)
    assert_close(composed("cat", [one, less]), np.zeros((OUT, IN)), WEIGHT, terms=one.update)
    assert_close(composed("linear", [less]), -one.update, WEIGHT)


def test_trimming_keeps_the_largest() -> None:
    """Half of six entries, by size and not by sign."""
    kept = trimmed(np.array([[3.0, -1.0, 0.5], [-4.0, 2.0, 0.0]]), 0.5)
    assert kept.tolist() == [[3.0, 0.0, 0.0], [-4.0, 2.0, 0.0]]


def test_signs_are_agreed_on_by_the_sum_and_the_others_left_out() -> None:
    """TIES by hand: 2 and 4 outvote -1 and become their mean; 1 loses against -3; what only one says stays."""
    first, second, third = np.array([2.0, 1.0, 0.0]), np.array([4.0, -3.0, 0.0]), np.array([-1.0, 0.0, 5.0])
    assert agreed([first, second, third], [1, 1, 1]).tolist() == [3.0, -3.0, 5.0]
    assert agreed([first, second, third], [1, 0.5, 1]).tolist() == [2.0, -1.5, 5.0]


def test_ties_over_updates_is_that_of_the_paper() -> None:
    """Trim each ΔW, elect signs, average those that agree: a rank that holds all shows it without loss."""
    parts = [part(1), part(2), part(3, weight=0.5)]
    trimmed_updates = [trimmed(one.update, 0.3) for one in parts]
    expected = np.zeros((OUT, IN))
    for place in np.ndindex(OUT, IN):
        values = [update[place] for update in trimmed_updates]
        sign = 1 if sum(values) >= 0 else -1
        chosen = [
            one.weight * value for one, value in zip(parts, values, strict=True) if value != 0 and value * sign > 0
        ]
        expected[place] = sum(chosen) / len(chosen) if chosen else 0
    assert_close(composed("tiesSvd", parts, density=0.3, rank=IN), expected, WEIGHT)


def test_what_is_dropped_at_random_is_made_up_for() -> None:
    """DARE keeps about its share of the entries, each divided by the share, so that the mean stays."""
    ones = np.ones((300, 300))
    kept = dropped(ones, 0.25, np.random.default_rng(0))
    assert set(np.unique(kept)) == {0.0, 4.0}
    assert kept.mean() == pytest.approx(1, abs=0.02)


def test_chance_is_the_seeds() -> None:
    """The same seed composes the same adapter, another one another; nothing is dropped at density 1."""
    parts = [part(1), part(2)]
    first, again, other = (composed("dareLinear", parts, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert_close(composed("dareLinearSvd", parts, density=1, rank=IN), weighted_sum(parts), WEIGHT)
