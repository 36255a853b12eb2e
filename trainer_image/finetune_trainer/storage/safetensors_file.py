"""A safetensors file without a library that would import torch: its header, and single tensors as float32.

It decides when a file is one: what its header says and how long it is have to agree. It knows no model.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LONGEST_HEADER = 100_000_000
"""Bytes; as in safetensors itself."""
METADATA = "__metadata__"
KINDS: dict[str, Any] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""Kinds of numbers that a tensor can be read from; numpy has no bf16, which is the upper half of a float32."""


class TensorFile:
    """One file. Raises ValueError, in words that follow the file's name, when it is cut or no safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else LONGEST_HEADER + 1
            try:
                header: dict[str, Any] = json.loads(file.read(length) if length <= LONGEST_HEADER else b"")
                self.metadata: dict[str, str] = header.pop(METADATA, {})
                self._entries = {name: _Entry(entry) for name, entry in header.items()}
            except (ValueError, AttributeError, KeyError, TypeError):
                pointer = " (a git-lfs pointer: fetch the file itself)" if head.startswith(b"version ") else ""
                raise ValueError(f"is not a safetensors file{pointer}") from None
        self._start = 8 + length
        expected = self._start + max((entry.end for entry in self._entries.values()), default=0)
        found = path.stat().st_size
        if found != expected:
            raise ValueError(f"has {found:,} bytes where its header says {expected:,}: copy it again")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by its name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> Floats:
        """One tensor; raises ValueError for numbers that are no floats."""
        entry = self._entries[name]
        if entry.kind not in KINDS:
            raise ValueError(f"holds {name} as {entry.kind}: expected one of {', '.join(KINDS)}")
        count = int(np.prod(entry.shape, dtype=np.int64))
        with self.path.open("rb") as file:
            numbers: Any = np.fromfile(file, KINDS[entry.kind], count, offset=self._start + entry.start)
        if entry.kind == "BF16":
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        values: np.ndarray[Any, np.dtype[np.float32]] = numbers.astype(np.float32).reshape(entry.shape)
        return values


class _Entry:
    """What the header says of one tensor."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.kind, self.shape = str(said["dtype"]), tuple(int(size) for size in said["shape"])
        self.start, self.end = (int(place) for place in said["data_offsets"])
