"""Writes the records of one table, a batch at a time, in the layout of `finetune_trainer.data.prepared`.

It decides the order of bytes and their digest. It knows no record's meaning.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.tokenization import Example


class Column:
    """An array on disk, one piece of which is read at a time: unlike a mapped one it leaves nothing in memory."""

    def __init__(self, path: Path, kind: type[np.generic]) -> None:
        self._path = path
        self._kind = np.dtype(kind)
        self._length = path.stat().st_size // self._kind.itemsize

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, piece: slice) -> NDArray[Any]:
        start, stop, _ = piece.indices(self._length)
        offset = start * self._kind.itemsize
        return np.fromfile(self._path, dtype=self._kind, count=max(stop - start, 0), offset=offset)


class TableWriter:
    """A table that grows. Use as a context manager; the files are complete after it."""

    def __init__(self, prefix: Path, labelled: bool) -> None:
        self._stack = ExitStack()
        parts = ("ids", "offsets", "identities", "labels" if labelled else "mask")
        self._files = {part: self._stack.enter_context(prefix.with_suffix(f".{part}").open("wb")) for part in parts}
        self._digest = hashlib.sha256()
        self.records = 0
        self.tokens = 0
        self.highest = -1
        """The highest token id."""
        self._put("offsets", np.zeros(1, dtype=np.int64))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def digest(self) -> str:
        """sha256 of what was written, so far."""
        return self._digest.hexdigest()

    def add(self, examples: Sequence[Example], identities: Sequence[int], labels: Sequence[int]) -> None:
        """Append records; `labels` is empty where the objective has none."""
        if not examples:
            return
        ids = np.concatenate([example.ids for example in examples])
        ends = self.tokens + np.cumsum([len(example.ids) for example in examples], dtype=np.int64)
        self._put("ids", ids)
        self._put("offsets", ends)
        self._put("identities", np.array(identities, dtype=np.uint64))
        if "labels" in self._files:
            self._put("labels", np.array(labels, dtype=np.int32))
        else:
            self._put("mask", np.concatenate([example.mask for example in examples]))
        self.records += len(examples)
        self.tokens = int(ends[-1])
        self.highest = max(self.highest, int(ids.max()))

    def _put(self, part: str, values: NDArray[Any]) -> None:
        content = values.tobytes()
        self._files[part].write(content)
        if part != "identities":  # they follow from the rest
            self._digest.update(content)
