"""Reads the sources of one table from beginning to end: rows, records, texts, tokens, bytes on disk.

It decides the size of a batch, what is counted and how progress is told. Memory holds one batch, however long the data.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.reasons import Reason
from finetune_trainer.data.bad_records import BadRecords
from finetune_trainer.data.class_labels import Labels
from finetune_trainer.data.formats import DataFile, rows
from finetune_trainer.data.record_types import Kind
from finetune_trainer.data.records import Shape, shape_of
from finetune_trainer.data.rendering import Renderer, Text
from finetune_trainer.data.sources import PlacedSource
from finetune_trainer.data.table_writer import TableWriter
from finetune_trainer.data.tokenization import Encoder
from finetune_trainer.pretrained.tokenizer import ModelTokenizer
from finetune_trainer.runtime.failures import BadRecordError, Failure
from finetune_trainer.runtime.files import megabytes
from finetune_trainer.runtime.progress import Progress

log = logging.getLogger(__name__)

BATCH_RECORDS = 1000
BATCH_CHARACTERS = 1_000_000
"""A batch ends at whichever comes first; long texts make the tokenizer's intermediate results large."""
PAUSE = 3.0
"""Seconds between two lines of the log."""


@dataclass
class RecordCounts:
    """What became of the records of one table."""

    read: int = 0
    truncated: int = 0
    dropped: int = 0
    kinds: set[Kind] = field(default_factory=set)


@dataclass(frozen=True)
class Reader:
    """What is the same for all tables of a run."""

    objective: str
    tokenizer: ModelTokenizer
    encoder: Encoder
    labels: Labels | None
    loss_on_all: bool
    in_pairs: bool
    """Whether inputs and answers are kept apart: for an encoder-decoder."""
    bad_records: BadRecords
    progress: Progress
    check: Callable[[], None]
    """Called between batches; raises what else has failed."""


@dataclass(frozen=True)
class OpenSource:
    """A source and its files, here by now."""

    place: PlacedSource
    files: list[DataFile]

    @property
    def size(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)


class TableReader:
    """Fills one table."""

    def __init__(self, reader: Reader, writer: TableWriter) -> None:
        self.tally = RecordCounts()
        self._reader = reader
        self._writer = writer
        self._texts: list[Text] = []
        self._labels: list[int] = []
        self._characters = 0
        self._told = time.monotonic()

    def read(self, sources: list[OpenSource]) -> RecordCounts:
        """Read all sources to their ends; raises DatasetInvalid naming the bad records, after the last of them."""
        self._total = sum(source.size for source in sources)
        self._finished = 0
        for source in sources:
            for file in source.files:
                self._file(file, source.place)
                self._finished += file.meter.position
        self._reader.bad_records.check()
        return self.tally

    def _file(self, file: DataFile, place: PlacedSource) -> None:
        shape: Shape | None = None
        for number, row in rows(file, self._reader.bad_records):
            if shape is None:
                shape = shape_of(row, place.source, place.field, file.name, self._reader.objective)
                self.tally.kinds.add(shape.kind)
                render = self._renderer(shape.kind, place, f"{file.name}:{number}")
            self.tally.read += 1
            try:
                text = render(shape.record(row))
                self._collect(text, self._id(text))
            except BadRecordError as error:
                self._reader.bad_records.add(file.name, number, str(error), file.unit)
            if len(self._texts) >= BATCH_RECORDS or self._characters >= BATCH_CHARACTERS:
                self._flush(file)
        self._flush(file)  # a batch has records of one kind

    def _renderer(self, kind: Kind, place: PlacedSource, where: str) -> Renderer:
        """For a file whose first record is at `where`."""
        if self._reader.in_pairs and kind == "text":
            raise Failure(
                Reason.DATASET_INVALID,
                f"{where}: plain text, and the model is an encoder-decoder, which learns to answer an input: map the "
                f"columns of both with {place.field}.columns.prompt and .completion, or choose a decoder (Llama, …)",
            )
        return Renderer(kind, self._reader.tokenizer, self._reader.loss_on_all, self._reader.in_pairs)

    def _id(self, text: Text) -> int:
        return 0 if self._reader.labels is None or text.label is None else self._reader.labels.id_of(text.label)

    def _collect(self, text: Text, label: int) -> None:
        if self._reader.bad_records.count:
            return  # the rest is read for its faults only
        self._texts.append(text)
        self._labels.append(label)
        self._characters += len(text.text) + len(text.answer or "")

    def _flush(self, file: DataFile) -> None:
        examples = self._reader.encoder.examples(self._texts)
        kept = [index for index, example in enumerate(examples) if example.fate != "dropped"]
        self.tally.dropped += len(examples) - len(kept)
        self.tally.truncated += sum(example.fate == "truncated" for example in examples)
        identities = [self._texts[index].identity for index in kept]
        self._writer.add([examples[index] for index in kept], identities, [self._labels[index] for index in kept])
        self._texts, self._labels, self._characters = [], [], 0
        self._tell(file)
        self._reader.check()

    def _tell(self, file: DataFile) -> None:
        done = max(self._finished + file.meter.position, 1)
        expected = round(self.tally.read * max(self._total / done, 1))
        self._reader.progress.update(activity="reading", step=self.tally.read, total_steps=expected)
        if time.monotonic() - self._told >= PAUSE:
            self._told = time.monotonic()
            bytes_told = f"{megabytes(done)} of {megabytes(self._total)}"
            log.info("read %s records (%s), %s tokens", f"{self.tally.read:,}", bytes_told, f"{self._writer.tokens:,}")
