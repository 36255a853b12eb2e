"""What `prepare` leaves for `train` and `publish`: token ids in flat files, index arrays for the splits, and one page.

It decides the layout on disk. It knows nothing of sources, templates or models, and imports neither torch nor pyarrow.

A table is `<name>.ids` (int32), `<name>.mask` (one byte a token, 1 where the token is learnt; sft), `<name>.labels`
(int32; classification) and `<name>.offsets` (int64, records + 1). A split is a list of rows of a table. Nothing is
read into memory: records are views of the mapped files.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune_api.schema import ApiModel
from finetune_api.spec.dataset import SplitName
from finetune_api.status import Data, Plan
from finetune_trainer.pretrained.initial_adapter import Start
from finetune_trainer.runtime.files import write_file
from finetune_trainer.runtime.workspace import Workspace

Ints = NDArray[np.int32]
PAGE = "prepared.json"
TOKENIZER = "tokenizer"


class SplitFiles(ApiModel):
    """Where the records of a split are."""

    table: str
    """Prefix of the table's files."""
    rows: str | None = None
    """File of int32 row numbers of the table; absent: all of them, in order."""
    packs: str | None = None
    """Prefix of the pack files; absent: not packed."""


class Prepared(ApiModel):
    """The page `prepared.json`. It is written last: where it stands, all is complete."""

    data_key: str
    """sha256 of everything that shaped the data: equal keys make equal data."""
    plan_key: str = ""
    """sha256 of everything else that shaped the plan; empty before it is made."""
    objective: str
    """Name of the objective whose records these are."""
    record_kind: Literal["chat", "prompt", "text", "labelled"]
    """What a record of the training data was."""
    data: Data
    """Counts and fingerprint, as in the job's status."""
    start: Start | None = None
    """Stored adapters that the method starts from."""
    plan: Plan = Plan()
    """As in the job's status."""
    labels: list[str] = []
    """Classes in the order of their ids."""
    model_path: str
    """Folder of the base model."""
    model_revision: str
    """Commit, or digest of the weights."""
    model_stamp: str
    """Sizes and times of the weights when they were digested."""
    max_length: int
    """Tokens of the longest record, and of a pack; for an encoder-decoder of an input, and of an answer."""
    eos_token_id: int | None = None
    """Ends a record; None where the tokenizer has none."""
    pad_token_id: int
    """Fills a batch; never learnt."""
    train_tokens: int = 0
    """Tokens of the training split."""
    packing: bool = False
    """Whether the training split has packs."""
    splits: dict[str, SplitFiles]
    """`train`, and `validation` and `test` where they are not switched off."""


class Table:
    """The records of some files, mapped into memory."""

    def __init__(self, prefix: Path) -> None:
        self.offsets: NDArray[np.int64] = _mapped(prefix.with_suffix(".offsets"), np.int64)
        self.ids: Ints = _mapped(prefix.with_suffix(".ids"), np.int32)
        self.mask = _mapped(prefix.with_suffix(".mask"), np.bool_) if prefix.with_suffix(".mask").exists() else None
        self.labels = (
            _mapped(prefix.with_suffix(".labels"), np.int32) if prefix.with_suffix(".labels").exists() else None
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def record(self, row: int) -> dict[str, Any]:
        start, end = self.offsets[row], self.offsets[row + 1]
        record: dict[str, Any] = {"input_ids": self.ids[start:end]}
        if self.mask is not None:
            record["loss_mask"] = self.mask[start:end]
        if self.labels is not None:
            record["label"] = int(self.labels[row])
        return record


class Split:
    """One split. `split[i]` is `{"input_ids": int32[n], "loss_mask": bool[n]}` (sft) or `{"input_ids", "label": int}`.

    The arrays are read-only views of mapped files.
    """

    def __init__(self, folder: Path, files: SplitFiles) -> None:
        self._table = Table(folder / files.table)
        self._rows = None if files.rows is None else _mapped(folder / files.rows, np.int32)
        self._packs = None if files.packs is None else folder / files.packs

    def __len__(self) -> int:
        return len(self._table) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._table.record(index if self._rows is None else int(self._rows[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each record, int32[len(self)]."""
        lengths = np.diff(self._table.offsets).astype(np.int32)
        return lengths if self._rows is None else lengths[self._rows]

    @cached_property
    def labels(self) -> Ints | None:
        """Class ids, int32[len(self)]; None for sft."""
        labels = self._table.labels
        return labels if labels is None or self._rows is None else labels[self._rows]

    @cached_property
    def packs(self) -> list[Ints] | None:
        """Indices of this split's records that share a row, int32[any] a pack; None where records are not packed."""
        if self._packs is None:
            return None
        members = _mapped(self._packs.with_suffix(".members"), np.int32)
        ends = _mapped(self._packs.with_suffix(".ends"), np.int64)
        return np.split(members, ends[:-1])


def read_prepared(workspace: Workspace) -> Prepared | None:
    """The page of the workspace's prepared data; None where there is none that this version understands."""
    try:
        return Prepared.model_validate_json((workspace.prepared / PAGE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_page(folder: Path, page: Prepared) -> None:
    write_file(folder / PAGE, page.model_dump_json(by_alias=True, exclude_none=True, indent=1))


def open_split(workspace: Workspace, page: Prepared, name: SplitName) -> Split | None:
    """The records of a split; None where the split is switched off."""
    files = page.splits.get(name)
    return None if files is None else Split(workspace.prepared, files)


def tokenizer_folder(workspace: Workspace) -> Path:
    """The tokenizer's files, with the chat template that was used."""
    return workspace.prepared / TOKENIZER


def _mapped(path: Path, kind: Any) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")
