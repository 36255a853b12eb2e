"""Which records share a forward pass, and in which order: a pure function of lengths, shape, seed and epoch.

Records of similar length share a micro-batch, so that little is computed on padding; micro-batches are shuffled, so
that the optimizer sees no order by length. An interrupted run finds its place again by counting. It never looks into
a record.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

WINDOW = 50
"""Micro-batches per window: records are sorted by length only within one, so that an epoch's order stays random."""


class EpochBatches:
    """A batch sampler for torch: the micro-batches of one epoch, as lists of record numbers."""

    def __init__(self, lengths: np.ndarray, size: int, seed: int) -> None:
        self.lengths, self.size, self.seed = lengths, size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers.Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in shuffled(self.lengths, self.size, self.seed, self.epoch):
            yield batch.tolist()


def shuffled(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The micro-batches of an epoch in training order; every record is in exactly one of them."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), size * WINDOW):
        window = order[start : start + size * WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches.extend(window[at : at + size] for at in range(0, len(window), size))
    return [batches[index] for index in generator.permutation(len(batches))]


def by_length(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Batches for evaluation, longest first: if memory does not suffice, the first batch tells."""
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    return [order[at : at + size].tolist() for at in range(0, len(order), size)]


class Rows(Dataset[Any]):
    """Records, or packs of records that share a row, by number."""

    def __init__(self, split: Any, packed: bool) -> None:
        self.split, self.packs = split, split.packs if packed else None
        lengths = np.asarray(split.lengths)
        self.lengths = lengths if self.packs is None else np.array([lengths[pack].sum() for pack in self.packs])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """The records of row `index`."""
        return [self.split[index]] if self.packs is None else [self.split[int(member)] for member in self.packs[index]]


class EpochLoader(DataLoader[Any]):
    """Hands the epoch on to the batch sampler, which the Trainer asks for by this name."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)
