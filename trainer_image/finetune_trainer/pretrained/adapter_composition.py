"""Several LoRA updates of one layer become one: arithmetic on A and B, or on ΔW = scaling · B·A.

It decides what each name of `startFrom.combination` means; the names, and what they do, are those of PEFT's
`add_weighted_adapter`. It knows no file and no model, and needs no torch: `prepare` composes before a GPU is held.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Factors = tuple[Array, Array]
"""A [rank, in] and B [out, rank]."""
DENSITY = 0.5
"""Share of the entries that ties and dare keep unless told otherwise."""
EQUAL_RANKS = ("linear", "ties", "dareLinear", "dareTies")
"""Combinations that add A to A and B to B."""


@dataclass(frozen=True)
class Part:
    """What one adapter says of a layer."""

    a: Array
    """[rank, in]"""
    b: Array
    """[out, rank]"""
    scaling: float
    weight: float

    @property
    def share(self) -> float:
        return self.weight * self.scaling

    @property
    def update(self) -> Array:
        """ΔW, [out, in], without its weight."""
        return self.scaling * (self.b @ self.a)


@dataclass(frozen=True)
class Composer:
    """One combination with its options; what is random is drawn from `random`, in the order of the calls."""

    combination: str
    density: float
    rank: int
    """Of combinations that end in svd."""
    random: np.random.Generator

    def compose(self, parts: list[Part]) -> Factors:
        """A and B, with scaling 1, of the adapter that the parts become. float32."""
        if self.combination == "cat":
            factors = concatenated(parts)
        elif self.combination == "svd":
            factors = self._nearest_to_the_sum(parts)
        elif self.combination in EQUAL_RANKS:
            factors = self._over_factors(parts)
        else:
            updates = self._merged([part.update for part in parts], [part.weight for part in parts])
            factors = truncated(updates, self.rank)
        return factors[0].astype(np.float32), factors[1].astype(np.float32)

    def _over_factors(self, parts: list[Part]) -> Factors:
        """A and B apart, each with the square root of its share; a negative share's sign goes with A."""
        roots = [np.sqrt(abs(part.share)) for part in parts]
        signed = [root * np.sign(part.share) for root, part in zip(roots, parts, strict=True)]
        a = self._merged([part.a for part in parts], signed)
        return a, self._merged([part.b for part in parts], roots)

    def _merged(self, tensors: list[Array], weights: list[float]) -> Array:
        if self.combination.startswith("dare"):
            tensors = [dropped(tensor, self.density, self.random) for tensor in tensors]
        if self.combination.startswith("ties"):
            tensors = [trimmed(tensor, self.density) for tensor in tensors]
        return agreed(tensors, weights) if "ties" in self.combination.lower() else summed(tensors, weights)

    def _nearest_to_the_sum(self, parts: list[Part]) -> Factors:
        """As `truncated` of Σ weight · ΔW, whose rank is so small that the sum itself need not be made."""
        a, b = concatenated(parts)
        left, inner = np.linalg.qr(b.astype(np.float64))
        right, outer = np.linalg.qr(a.T.astype(np.float64))
        below, above = truncated(inner @ outer.T, self.rank)
        return below @ right.T, left @ above


def concatenated(parts: list[Part]) -> Factors:
    """Factors whose product is Σ weight · ΔW: ranks add up."""
    return np.concatenate([part.a * part.share for part in parts], 0), np.concatenate([part.b for part in parts], 1)


def truncated(update: Array, rank: int) -> Factors:
    """Factors of at most `rank` whose product is the closest to `update` (Eckart and Young 1936)."""
    left, values, right = np.linalg.svd(update, full_matrices=False)
    return right[:rank], left[:, :rank] * values[:rank]


def summed(tensors: list[Array], weights: list[float]) -> Array:
    """Σ weight · tensor."""
    return sum((weight * tensor for weight, tensor in zip(weights, tensors, strict=True)), np.zeros(()))


def trimmed(tensor: Array, density: float) -> Array:
    """The largest entries, `density` of all, and zeros (TIES, Yadav et al. 2023, arXiv:2306.01708)."""
    kept = np.zeros(tensor.size, dtype=bool)
    count = int(density * tensor.size)
    if count:
        kept[np.argpartition(np.abs(tensor).ravel(), -count)[-count:]] = True
    return tensor * kept.reshape(tensor.shape)


def agreed(tensors: list[Array], weights: list[float]) -> Array:
    """Each entry the mean of weight · value over the tensors whose value has the sign of the sum of all (TIES)."""
    signs = np.where(sum(tensors) >= 0, 1, -1)
    agree = [np.sign(tensor) == signs for tensor in tensors]
    total = summed([tensor * agrees for tensor, agrees in zip(tensors, agree, strict=True)], weights)
    mean: Array = total / np.maximum(sum(agrees.astype(int) for agrees in agree), 1)
    return mean


def dropped(tensor: Array, density: float, random: np.random.Generator) -> Array:
    """Each entry is kept by chance, `density` of all, and scaled up for those that are not (DARE, Yu et al. 2023,
    arXiv:2311.03099)."""
    return tensor * (random.random(tensor.shape) < density) / density
