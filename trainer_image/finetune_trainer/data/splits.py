"""Which records are trained on, watched and held out to the end.

It decides by a hash of a record's content and the seed: the order of the data does not matter, and equal records always
stay together, so that none is held out and trained on at once. It knows neither files nor tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Parts = NDArray[np.uint8]


class Values(Protocol):
    """An array, or something on disk that gives pieces of one."""

    def __len__(self) -> int: ...
    def __getitem__(self, piece: slice, /) -> NDArray[Any]: ...


TRAIN, VALIDATION, TEST = 0, 1, 2

EXACT = 250_000
"""Records up to which parts have the exact size; of more, each falls into one by chance, so that memory stays flat."""
CHUNK = 100_000
"""Records that are looked at together."""


class TooFewError(Exception):
    """Nothing is left to train on."""


def keys_of(identities: Keys, seed: int) -> Keys:
    """A pseudo-random order of the records: one key each, equal for equal records (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = identities + np.uint64((2 * seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def assigned(identities: Values, labels: Values | None, seed: int, validation: float, test: float) -> Parts:
    """The part of each record, uint8[n]: TRAIN, VALIDATION or TEST, by share of all records, or of each class.

    A share above 0 gets a record at least, and every class keeps one for training. Raises TooFewError.
    """
    parts = np.zeros(len(identities), dtype=np.uint8)
    if validation == 0 and test == 0:
        return parts
    if len(identities) > EXACT:
        for piece in pieces(len(identities)):
            parts[piece] = _by_chance(keys_of(identities[piece], seed), validation, test)
        return _with_every_class(parts, labels)
    keys = keys_of(identities[:], seed)
    classes = [np.arange(len(keys))] if labels is None else _classes(labels[:])
    sizes = np.array([len(members) for members in classes])
    testing = _quotas(sizes, test, sizes - 1)
    watching = _quotas(sizes, validation, sizes - 1 - testing)
    for members, tested, watched in zip(classes, testing, watching, strict=True):
        parts[members] = _by_rank(keys[members], int(tested), int(watched))
    return parts


def repeated(tables: Sequence[Values]) -> int:
    """How many records equal an earlier one, over all tables of identities."""
    rounds = sum(map(len, tables)) // EXACT + 1
    counts = 0
    for turn in range(rounds):
        here = np.concatenate([_taken(table, rounds, turn) for table in tables])
        here.sort()  # np.unique would build a hash table of many times the size
        counts += int((here[1:] == here[:-1]).sum())
    return counts


def shared(some: Values, others: Values) -> int:
    """How many of `some` records occur in `others` too, by their identities."""
    rounds = (len(some) + len(others)) // EXACT + 1
    return sum(_found(_taken(some, rounds, turn), _taken(others, rounds, turn)) for turn in range(rounds))


def _found(some: Keys, others: Keys) -> int:
    others.sort()
    places = np.searchsorted(others, some)
    inside = places < len(others)
    return int((others[places[inside]] == some[inside]).sum())


def _by_chance(keys: Keys, validation: float, test: float) -> Parts:
    place = keys.astype(np.float64) / 2.0**64
    return np.where(place < test, TEST, np.where(place < test + validation, VALIDATION, TRAIN)).astype(np.uint8)


def _classes(labels: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """The records of each class."""
    return [np.flatnonzero(labels == one) for one in np.unique(labels)]


def _with_every_class(parts: Parts, labels: Values | None) -> Parts:
    """Give a class that chance left without training records all of its own back."""
    if labels is None:
        return parts
    trained = np.zeros(max(int(labels[piece].max()) for piece in pieces(len(parts))) + 1, dtype=np.int64)
    for piece in pieces(len(parts)):
        trained += np.bincount(labels[piece][parts[piece] == TRAIN], minlength=len(trained))
    for piece in pieces(len(parts)):
        parts[piece][trained[labels[piece]] == 0] = TRAIN
    return parts


def _quotas(sizes: NDArray[np.int64], share: float, room: NDArray[np.int64]) -> NDArray[np.int64]:
    """Records to take of each class, in all round(share × records) or one: the largest remainders are rounded up."""
    if share == 0:
        return np.zeros_like(sizes)
    wanted = max(1, round(share * int(sizes.sum())))
    if room.sum() < 1:
        raise TooFewError
    exact = share * sizes
    quotas: np.ndarray[Any, np.dtype[np.int64]] = np.minimum(np.floor(exact).astype(np.int64), room)
    for index in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if quotas.sum() >= wanted:
            break
        quotas[index] += int(quotas[index] < room[index])
    return quotas


def _by_rank(keys: Keys, tested: int, watched: int) -> Parts:
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    first = _between_equals(ranked, 0, tested)
    second = _between_equals(ranked, first, first + watched)
    parts = np.zeros(len(keys), dtype=np.uint8)
    parts[order[:first]] = TEST
    parts[order[first:second]] = VALIDATION
    return parts


def _between_equals(ranked: Keys, start: int, cut: int) -> int:
    """The cut nearest to `cut` that parts no equal keys, if one lies between `start` and the end; else `cut`."""
    if cut <= start or cut >= len(ranked) or ranked[cut - 1] != ranked[cut]:
        return cut
    below = int(np.searchsorted(ranked, ranked[cut], side="left"))
    above = int(np.searchsorted(ranked, ranked[cut], side="right"))
    fitting = [place for place in (below, above) if start < place < len(ranked)]
    return min(fitting, key=lambda place: abs(place - cut), default=cut)


def _taken(table: Values, rounds: int, turn: int) -> Keys:
    """The keys whose turn it is: equal keys always come in the same turn, and few enough of them come together."""
    taken = [np.empty(0, dtype=np.uint64)]
    for piece in pieces(len(table)):
        keys = table[piece]
        taken.append(keys[keys % np.uint64(rounds) == turn])
    return np.concatenate(taken)


def pieces(total: int) -> Iterator[slice]:
    """Slices of at most CHUNK records that cover `total`."""
    return (slice(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK))
