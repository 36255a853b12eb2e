"""Which records share a row, so that rows are full: best-fit decreasing (Johnson 1973), 11/9 of the best at worst.

It decides by length alone. Keeping the records of a row apart is the trainer's work.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data import splits
from finetune_trainer.data.prepared import SplitFiles
from finetune_trainer.data.table_writer import Column


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


def record_lengths(draft: Path, files: SplitFiles) -> Iterator[NDArray[np.int64]]:
    """Tokens of a split's records, in pieces of splits.CHUNK records."""
    offsets = Column(draft / f"{files.table}.offsets", np.int64)
    rows = None if files.rows is None else Column(draft / files.rows, np.int32)
    for piece in splits.pieces(len(offsets) - 1 if rows is None else len(rows)):
        if rows is None:
            yield np.diff(offsets[piece.start : piece.stop + 1])
        else:
            mine = rows[piece]
            yield np.diff(offsets[mine[0] : mine[-1] + 2])[mine - mine[0]]


def longest(folder: Path, splits_files: Iterable[SplitFiles], in_pairs: bool) -> tuple[int, int]:
    """Tokens of the longest record and 0; where inputs and answers are apart, of the longest of each. At least 1."""
    length, answer = 1, int(in_pairs)
    for table in {files.table for files in splits_files}:
        offsets, mask = Column(folder / f"{table}.offsets", np.int64), folder / f"{table}.mask"
        for piece in splits.pieces(len(offsets) - 1):
            here = offsets[piece.start : piece.stop + 1]
            lengths = np.diff(here)
            if in_pairs:
                learnt = Column(mask, np.bool_)[int(here[0]) : int(here[-1])]
                answers = np.add.reduceat(learnt, here[:-1] - here[0], dtype=np.int64)
                lengths, answer = lengths - answers, max(answer, int(answers.max()))
            length = max(length, int(lengths.max()))
    return length, answer


def packed_files(draft: Path, files: SplitFiles, capacity: int) -> SplitFiles:
    """Pack a split piece by piece, so that memory stays flat."""
    records, members = 0, 0
    with (draft / "train.members").open("wb") as member_file, (draft / "train.ends").open("wb") as end_file:
        for lengths in record_lengths(draft, files):
            packs = packed(lengths.astype(np.int32), capacity)
            ends = members + np.cumsum([len(pack) for pack in packs], dtype=np.int64)
            member_file.write((np.concatenate(packs) + np.int32(records)).tobytes())
            end_file.write(ends.tobytes())
            records, members = records + len(lengths), int(ends[-1])
    return files.model_copy(update={"packs": "train"})
