"""Which records share a row, so that rows are full: best-fit decreasing (Johnson 1973), 11/9 of the best at worst.

It decides by length alone. Keeping the records of a row apart is the trainer's work.
"""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray


def packed(lengths: NDArray[np.int32], capacity: int) -> list[NDArray[np.int32]]:
    """Indices of `lengths`, int32 arrays whose lengths sum to at most `capacity`; each index in one array.

    Raises ValueError when a length exceeds `capacity`.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a record of {int(lengths.max())} tokens does not fit into {capacity}")
    return [np.array(pack, dtype=np.int32) for pack in _packs(lengths, capacity)]


def _packs(lengths: NDArray[np.int32], capacity: int) -> list[list[int]]:
    """Longest first, each into the pack with the least room that is enough.

    Packs are kept by their room; a number whose bit r says that some pack has room r finds the least one at once.
    """
    by_room: defaultdict[int, list[list[int]]] = defaultdict(list)
    rooms = 0
    packs: list[list[int]] = []
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            pack = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            pack.append(index)
        else:
            room = capacity
            pack = [index]
            packs.append(pack)
        room -= length
        if room:
            by_room[room].append(pack)
            rooms |= 1 << room
    return packs
