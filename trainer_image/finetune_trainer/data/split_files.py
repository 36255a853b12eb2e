"""Which records are in which split, as files of row numbers.

It decides what is said of splits that are too small or share records. How records are parted is decided in `splits`.
"""

import logging
from pathlib import Path

import numpy as np

from finetune_api.reasons import Reason
from finetune_api.spec.dataset import SplitName
from finetune_trainer.data import splits
from finetune_trainer.data.preparation import Preparation
from finetune_trainer.data.prepared import SplitFiles
from finetune_trainer.data.table_reader import RecordCounts
from finetune_trainer.data.table_writer import Column
from finetune_trainer.runtime.failures import Failure

log = logging.getLogger(__name__)

FEW = 20
"""Records below which held-out figures say little."""


def split_files(job: Preparation, draft: Path, tallies: dict[SplitName, RecordCounts]) -> dict[str, SplitFiles]:
    """Decide which records are in which split."""
    dataset = job.spec.dataset
    files = {str(name): SplitFiles(table=name) for name in tallies}
    for name in files.keys() - {"train"}:
        _tell_shared(draft, name)
    shares = {"validation": dataset.validation.fraction or 0.0, "test": dataset.test.fraction or 0.0}
    if not any(shares.values()):
        return files
    parts = _parts(draft, job.spec.training.seed, shares)
    numbers = {"train": splits.TRAIN, "validation": splits.VALIDATION, "test": splits.TEST}
    halves = {name: number for name, number in numbers.items() if name == "train" or shares[name]}
    for name, number in halves.items():
        _write_rows(draft / f"{name}.rows", parts, number)
    return {**files, **{name: SplitFiles(table="train", rows=f"{name}.rows") for name in halves}}


def _parts(draft: Path, seed: int, shares: dict[str, float]) -> splits.Parts:
    identities, labels = identities_of(draft, "train"), draft / "train.labels"
    try:
        parts = splits.assigned(identities, Column(labels, np.int32) if labels.exists() else None, seed, **shares)
    except splits.TooFewError:
        message = (
            f"spec.dataset.train: {len(identities)} usable records are too few to hold some out: "
            "add records, or set spec.dataset.validation.fraction and spec.dataset.test.fraction to 0"
        )
        raise Failure(Reason.DATASET_INVALID, message) from None
    if len(parts) < FEW:
        log.warning("only %d records: what is held out is too little to judge by", len(parts))
    return parts


def _write_rows(path: Path, parts: splits.Parts, part: int) -> None:
    with path.open("wb") as file:
        for piece in splits.pieces(len(parts)):
            file.write((np.flatnonzero(parts[piece] == part) + piece.start).astype(np.int32).tobytes())


def _tell_shared(draft: Path, name: str) -> None:
    found = splits.shared(identities_of(draft, name), identities_of(draft, "train"))
    if found:
        log.warning("%d records of spec.dataset.%s are in the training data too: its figures will flatter", found, name)


def identities_of(draft: Path, table: str) -> Column:
    return Column(draft / f"{table}.identities", np.uint64)
