"""The dataset of a run, made once: its tables, its splits, its packs, and the page about them.

It decides the order of the work, what the data's key and fingerprint cover, and what makes a dataset unusable as a
whole. It knows no file format and no template; those are in `data`.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Data
from finetune_trainer.data import sources, splits
from finetune_trainer.data.faults import Faults
from finetune_trainer.data.packing import packed
from finetune_trainer.data.reading import Labels, OpenSource, Reader, TableReader, Tally
from finetune_trainer.data.table import Column, TableWriter
from finetune_trainer.data.tokens import Encoder
from finetune_trainer.prepared import TOKENIZER, Prepared, Split, SplitFiles, SplitName, Table, write_page
from finetune_trainer.pretrained.base_model import BaseModel, text_part
from finetune_trainer.pretrained.initial_adapter import Start
from finetune_trainer.pretrained.tokenizer import ModelTokenizer, save
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import new_folder, sha256_of
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.workspace import Workspace

log = logging.getLogger(__name__)

LAYOUT = 1
"""Version of what is made of the same input: raise it when that changes."""
FEW = 20
"""Records below which held-out figures say little."""


@dataclass(frozen=True)
class Preparation:
    """One preparation and all that it needs."""

    run: Run
    spec: FineTuneJobSpec
    workspace: Workspace
    progress: Progress
    model: BaseModel
    tokenizer: ModelTokenizer
    start: Start | None = None
    """Stored adapters that the method starts from; `spec` names their composition."""

    @property
    def max_length(self) -> int:
        """Tokens of a record (of an encoder-decoder's input, and of its answer), within what the model can read beside
        the method's virtual tokens."""
        longest, wished = self.model.longest_input, self.spec.training.max_length
        return wished if longest is None else min(wished, longest - self.spec.method.options.positions)

    @property
    def packing(self) -> bool:
        wish, sft = self.spec.dataset.packing, self.spec.objective.sft is not None and not self.in_pairs
        pays = self.spec.resources.gpus > 0 and self.spec.method.options.takes_packed_rows
        return sft and (wish == "always" or (wish == "auto" and pays))

    @property
    def in_pairs(self) -> bool:
        """Whether a record is an input and an answer, apart, as an encoder-decoder takes them."""
        return self.spec.objective.sft is not None and self.model.is_encoder_decoder

    @property
    def declared_labels(self) -> list[str] | None:
        """The classes that the spec names; [] where the objective has none, None where the data will tell."""
        classification = self.spec.objective.classification
        return [] if classification is None else classification.labels


@dataclass(frozen=True)
class Watch:
    """Who listens while the data is read."""

    labels_known: Callable[[list[str]], None]
    """Told the classes as soon as they are settled."""
    check: Callable[[], None]
    """Called now and then; raises what has failed elsewhere."""


def data_key(job: Preparation) -> str:
    """Covers all that shapes the data, with stamps of the sources in place of their content: they are not read yet."""
    stamps = [sources.stamp(job.run, place) for place in sources.placed(job.spec.dataset)]
    return sha256_of({"shape": _shape(job), "dataset": job.spec.dataset.to_wire(), "stamps": stamps})


def prepared_data(job: Preparation, key: str, watch: Watch) -> Prepared:
    """Read everything, split it and put it on the workspace; returns its page, without a plan."""
    labels = None if job.spec.objective.classification is None else Labels(job.declared_labels)
    opened = _opened(job)
    with new_folder(job.workspace.prepared) as draft:
        tallies, digests = _tables(job, draft, opened, labels, watch)
        names = [] if labels is None else labels.names
        files = _splits(job, draft, tallies)
        tokens = sum(int(lengths.sum()) for lengths in _lengths(draft, files["train"]))
        if job.packing:
            files["train"] = _packed(draft, files["train"], job.max_length)
        save(job.model.folder, job.tokenizer, draft / TOKENIZER)
        data = _data(draft, files, tallies, names, _fingerprint(job, digests, names))
        page = _page(job, key, files, data, names, tallies["train"])
        page = page.model_copy(update={"train_tokens": tokens})
        for left in draft.glob("*.identities"):
            left.unlink()
        write_page(draft, page)
    return page


def _opened(job: Preparation) -> dict[SplitName, list[OpenSource]]:
    """The sources of each table, their files on this machine."""
    opened: dict[SplitName, list[OpenSource]] = {}
    for place in sources.placed(job.spec.dataset):
        opened.setdefault(place.split, []).append(OpenSource(place, sources.files(job.run, job.workspace, place)))
    return opened


def _tables(
    job: Preparation, draft: Path, opened: dict[SplitName, list[OpenSource]], labels: Labels | None, watch: Watch
) -> tuple[dict[SplitName, Tally], list[str]]:
    """Fill one table for each split that has sources of its own; returns what became of the records, and digests."""
    if job.max_length < job.spec.training.max_length:
        log.info("the model reads at most %d tokens: longer records are cut there", job.max_length)
    reader = _reader(job, labels, watch)
    tallies: dict[SplitName, Tally] = {}
    digests = []
    for name, mine in opened.items():
        with TableWriter(draft / name, labelled=labels is not None) as writer:
            tallies[name] = TableReader(reader, writer).read(mine)
        _check_table(job, name, tallies[name], writer)
        digests.append(writer.digest)
        if labels is not None and name == "train":
            _check_classes(labels)
            labels.close()
            watch.labels_known(labels.names)
    if labels is not None:
        for name in opened:
            _renumber(draft / f"{name}.labels", labels.places)
    return tallies, digests


def _reader(job: Preparation, labels: Labels | None, watch: Watch) -> Reader:
    sft = job.spec.objective.sft
    return Reader(
        objective=job.spec.objective.kind,
        tokenizer=job.tokenizer,
        encoder=Encoder(job.tokenizer, job.max_length),
        labels=labels,
        loss_on_all=sft is not None and sft.loss_on == "all",
        in_pairs=job.in_pairs,
        faults=Faults(job.workspace.bad_records),
        progress=job.progress,
        check=watch.check,
    )


def _check_table(job: Preparation, name: str, tally: Tally, writer: TableWriter) -> None:
    if writer.records == 0:
        why = "the data is empty"
        if tally.read:
            why = f"of {tally.read} read, none has anything to learn from within {job.max_length} tokens"
        raise Failure(Reason.DATASET_INVALID, f"spec.dataset.{name} has no usable record: {why}")
    vocabulary = text_part(job.model.config).get("vocab_size")
    if isinstance(vocabulary, int) and writer.highest >= vocabulary:
        told = f"its tokenizer makes token {writer.highest}, and its embeddings end at {vocabulary - 1}"
        raise Failure(Reason.MODEL_INVALID, f"spec.model.uri: {job.model.name}: {told}")


def _check_classes(labels: Labels) -> None:
    found = [name for name, number in labels.counts.items() if number]
    if len(found) < 2:
        told = f"all records have the label {found[0]!r}: classification needs two classes or more"
        raise Failure(Reason.DATASET_INVALID, f"spec.dataset.train: {told}")
    absent = [name for name, number in labels.counts.items() if not number]
    if absent:
        log.warning("no training record has the label %s: it cannot be learnt", ", ".join(absent[:10]))


def _renumber(path: Path, places: list[int]) -> None:
    """Give the class ids of a table, which were handed out in the order of reading, their final values."""
    values, final = Column(path, np.int32), np.array(places, dtype=np.int32)
    with path.open("r+b") as file:
        for piece in splits.pieces(len(values)):
            file.seek(4 * piece.start)
            file.write(final[values[piece]].tobytes())
            file.flush()


def _splits(job: Preparation, draft: Path, tallies: dict[SplitName, Tally]) -> dict[str, SplitFiles]:
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
    identities, labels = _identities(draft, "train"), draft / "train.labels"
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
    found = splits.shared(_identities(draft, name), _identities(draft, "train"))
    if found:
        log.warning("%d records of spec.dataset.%s are in the training data too: its figures will flatter", found, name)


def _lengths(draft: Path, files: SplitFiles) -> Iterator[NDArray[np.int64]]:
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


def _packed(draft: Path, files: SplitFiles, capacity: int) -> SplitFiles:
    """Pack a split piece by piece, so that memory stays flat."""
    records, members = 0, 0
    with (draft / "train.members").open("wb") as member_file, (draft / "train.ends").open("wb") as end_file:
        for lengths in _lengths(draft, files):
            packs = packed(lengths.astype(np.int32), capacity)
            ends = members + np.cumsum([len(pack) for pack in packs], dtype=np.int64)
            member_file.write((np.concatenate(packs) + np.int32(records)).tobytes())
            end_file.write(ends.tobytes())
            records, members = records + len(lengths), int(ends[-1])
    return files.model_copy(update={"packs": "train"})


def _data(
    draft: Path, files: dict[str, SplitFiles], tallies: dict[SplitName, Tally], names: list[str], fingerprint: str
) -> Data:
    sizes = {name: len(Split(draft, split)) for name, split in files.items()}
    packs = draft / "train.ends"
    return Data(
        train_examples=sizes["train"],
        validation_examples=sizes.get("validation"),
        test_examples=sizes.get("test"),
        tokens=sum(len(Table(draft / name).ids) for name in tallies),
        truncated=sum(tally.truncated for tally in tallies.values()),
        dropped=sum(tally.dropped for tally in tallies.values()),
        duplicates=splits.repeated([_identities(draft, name) for name in tallies]),
        labels=len(names) or None,
        packed_rows=packs.stat().st_size // 8 if files["train"].packs else None,
        fingerprint=fingerprint,
    )


def _page(
    job: Preparation, key: str, files: dict[str, SplitFiles], data: Data, names: list[str], tally: Tally
) -> Prepared:
    return Prepared(
        data_key=key,
        objective=job.spec.objective.kind,
        record_kind=sorted(tally.kinds)[0],
        data=data,
        labels=names,
        max_length=job.max_length,
        model_path=str(job.model.folder),
        model_revision=job.model.revision,
        model_stamp=job.model.stamp,
        eos_token_id=job.tokenizer.eos,
        pad_token_id=job.tokenizer.pad,
        packing=job.packing,
        splits=files,
    )


def _identities(draft: Path, table: str) -> Column:
    return Column(draft / f"{table}.identities", np.uint64)


def _shape(job: Preparation) -> dict[str, Any]:
    """What decides how records become tokens."""
    return {
        "layout": LAYOUT,
        "objective": job.spec.objective.to_wire(),
        "seed": job.spec.training.seed,
        "maxLength": job.max_length,
        "packing": job.packing,
        "tokenizer": hashlib.sha256(job.tokenizer.backend.to_str().encode()).hexdigest(),
        "tokens": job.tokenizer.tokens,
        "template": job.tokenizer.template_source,
        **({"pairs": True} if job.in_pairs else {}),
    }


def _fingerprint(job: Preparation, digests: list[str], names: list[str]) -> str:
    shares = {name: getattr(job.spec.dataset, name).fraction for name in ("validation", "test")}
    return "sha256:" + sha256_of({"shape": _shape(job), "tables": digests, "labels": names, "shares": shares})
