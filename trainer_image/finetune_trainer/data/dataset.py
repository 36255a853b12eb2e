"""The dataset of a run, made once: its tables, its splits, its packs, and the page about them.

It decides the order of the work, and what makes a dataset unusable as a whole. It knows no file format and no template.
"""

import logging
from pathlib import Path

import numpy as np

from finetune_api.reasons import Reason
from finetune_api.spec.dataset import SplitName
from finetune_api.status import Data
from finetune_trainer.data import sources, splits
from finetune_trainer.data.bad_records import BadRecords
from finetune_trainer.data.class_labels import Labels
from finetune_trainer.data.fingerprint import fingerprint_of
from finetune_trainer.data.packing import packed_files, record_lengths
from finetune_trainer.data.preparation import Preparation, Watch
from finetune_trainer.data.prepared import TOKENIZER, Prepared, Split, SplitFiles, Table, write_page
from finetune_trainer.data.split_files import identities_of, split_files
from finetune_trainer.data.table_reader import OpenSource, Reader, RecordCounts, TableReader
from finetune_trainer.data.table_writer import Column, TableWriter
from finetune_trainer.data.tokenization import Encoder
from finetune_trainer.pretrained.base_model import text_part
from finetune_trainer.pretrained.tokenizer import save
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import new_folder

log = logging.getLogger(__name__)


def prepared_data(job: Preparation, key: str, watch: Watch) -> Prepared:
    """Read everything, split it and put it on the workspace; returns its page, without a plan."""
    labels = (
        Labels(job.declared_labels, f"spec.objective.{job.spec.objective.kind}.labels")
        if job.records.has_labels
        else None
    )
    opened = _opened(job)
    with new_folder(job.workspace.prepared) as draft:
        tallies, digests = _tables(job, draft, opened, labels, watch)
        names = [] if labels is None else labels.names
        files = split_files(job, draft, tallies)
        tokens = sum(int(lengths.sum()) for lengths in record_lengths(draft, files["train"]))
        if job.packing:
            files["train"] = packed_files(draft, files["train"], job.max_length)
        save(job.model.folder, job.tokenizer, draft / TOKENIZER)
        data = _data(draft, files, tallies, names, fingerprint_of(job, digests, names))
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
) -> tuple[dict[SplitName, RecordCounts], list[str]]:
    """Fill one table for each split that has sources of its own; returns what became of the records, and digests."""
    if job.max_length < job.spec.training.max_length:
        log.info("the model reads at most %d tokens: longer records are cut there", job.max_length)
    reader = _reader(job, labels, watch)
    tallies: dict[SplitName, RecordCounts] = {}
    digests = []
    for name, mine in opened.items():
        with TableWriter(draft / name, labelled=labels is not None) as writer:
            tallies[name] = TableReader(reader, writer).read(mine)
        _check_table(job, name, tallies[name], writer)
        digests.append(writer.digest)
        if labels is not None and name == "train":
            _check_classes(job, labels)
            labels.close()
            watch.labels_known(labels.names)
    if labels is not None:
        for name in opened:
            _renumber(draft / f"{name}.labels", labels.places)
    return tallies, digests


def _reader(job: Preparation, labels: Labels | None, watch: Watch) -> Reader:
    return Reader(
        objective=job.spec.objective.kind,
        tokenizer=job.tokenizer,
        encoder=Encoder(job.tokenizer, job.max_length),
        labels=labels,
        loss_on_all=job.spec.objective.options.carries_loss_everywhere,
        in_pairs=job.in_pairs,
        bad_records=BadRecords(job.workspace.bad_records),
        progress=job.progress,
        check=watch.check,
    )


def _check_table(job: Preparation, name: str, tally: RecordCounts, writer: TableWriter) -> None:
    if writer.records == 0:
        why = "the data is empty"
        if tally.read:
            why = f"of {tally.read} read, none has anything to learn from within {job.max_length} tokens"
        raise Failure(Reason.DATASET_INVALID, f"spec.dataset.{name} has no usable record: {why}")
    vocabulary = text_part(job.model.config).get("vocab_size")
    if isinstance(vocabulary, int) and writer.highest >= vocabulary:
        told = f"its tokenizer makes token {writer.highest}, and its embeddings end at {vocabulary - 1}"
        raise Failure(Reason.MODEL_INVALID, f"spec.model.uri: {job.model.name}: {told}")


def _check_classes(job: Preparation, labels: Labels) -> None:
    found = [name for name, number in labels.counts.items() if number]
    if len(found) < 2:
        told = f"all records have the label {found[0]!r}: {job.spec.objective.kind} needs two classes or more"
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


def _data(
    draft: Path,
    files: dict[str, SplitFiles],
    tallies: dict[SplitName, RecordCounts],
    names: list[str],
    fingerprint: str,
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
        duplicates=splits.repeated([identities_of(draft, name) for name in tallies]),
        labels=len(names) or None,
        packed_rows=packs.stat().st_size // 8 if files["train"].packs else None,
        fingerprint=fingerprint,
    )


def _page(
    job: Preparation, key: str, files: dict[str, SplitFiles], data: Data, names: list[str], tally: RecordCounts
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
