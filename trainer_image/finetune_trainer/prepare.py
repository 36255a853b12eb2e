"""The prepare stage: everything that can go wrong without a GPU goes wrong here, and the data work is done once.

It decides the order of the checks (cheap and likely ones first), what the data's keys cover, and the plan. It trains
nothing and imports no torch; parameters are counted by a process of its own.
"""

import hashlib
import json
import logging
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.events import StageReport
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec, Split
from finetune_api.status import Data, Plan
from finetune_trainer.base_model import BaseModel, base_model
from finetune_trainer.data import sources, splits
from finetune_trainer.data.faults import Faults
from finetune_trainer.data.packing import packed
from finetune_trainer.data.reading import Labels, OpenSource, Reader, TableReader, Tally
from finetune_trainer.data.table import TableWriter
from finetune_trainer.data.tokenizer import ModelTokenizer, load, save
from finetune_trainer.data.tokens import Encoder
from finetune_trainer.failures import Failure
from finetune_trainer.output import check_output, check_room
from finetune_trainer.parameters import ParameterCount, Parameters
from finetune_trainer.prepared import (
    TOKENIZER,
    Prepared,
    SplitFiles,
    SplitName,
    Table,
    open_split,
    read_prepared,
    write_page,
)
from finetune_trainer.prepared import Split as Records
from finetune_trainer.report import Progress
from finetune_trainer.workspace import Workspace, new_folder

log = logging.getLogger(__name__)

LAYOUT = 1
"""Version of what this module makes of the same input: raise it when that changes."""
FEW = 20
"""Records below which held-out figures say little."""


@dataclass(frozen=True)
class Job:
    """One preparation and all that it needs."""

    run: Run
    spec: FineTuneJobSpec
    workspace: Workspace
    progress: Progress
    model: BaseModel
    tokenizer: ModelTokenizer

    @property
    def max_length(self) -> int:
        """Tokens of a record, within what the model can read."""
        longest = self.model.longest_input
        return self.spec.training.max_length if longest is None else min(self.spec.training.max_length, longest)

    @property
    def packing(self) -> bool:
        wish = self.spec.dataset.packing
        return self.spec.objective.sft is not None and (
            wish == "always" or (wish == "auto" and self.spec.resources.gpus > 0)
        )


def prepare(run: Run, workspace: Workspace, progress: Progress) -> StageReport:
    """Check the run, prepare its data and plan it; raises Failure."""
    began = time.monotonic()
    spec = run.spec.resolved()
    output = check_output(run)
    page = read_prepared(workspace)
    progress.update(activity="loading")
    model = base_model(run, workspace, {page.model_stamp: page.model_revision} if page else {})
    tokenizer = load(model.folder, model.name, spec.dataset.template)
    job = Job(run, spec, workspace, progress, model, tokenizer)
    data_key, plan_key = _data_key(job), _plan_key(job)
    if page is not None and (page.data_key, page.plan_key) == (data_key, plan_key):
        log.info("prepared already: %s records, nothing to do", f"{page.data.train_examples:,}")
        return StageReport(stage="prepare", plan=page.plan, data=page.data)
    with ParameterCount(model.folder, spec) as count:
        if page is None or page.data_key != data_key:
            page = _prepare_data(job, count, data_key)
        count.ask(page.labels)
        parameters = count.result()
    check_room(run, output, _artifact_bytes(job, parameters))
    page = page.model_copy(update={"plan": _plan(job, page, parameters), "plan_key": plan_key})
    write_page(workspace.prepared, page)
    shutil.rmtree(workspace.downloads, ignore_errors=True)
    log.info("prepared in %.1f s: %s", time.monotonic() - began, _summary(page))
    return StageReport(stage="prepare", plan=page.plan, data=page.data)


def _prepare_data(job: Job, count: ParameterCount, data_key: str) -> Prepared:
    """Read everything, split it and put it on the workspace; the plan is still to be made."""
    declared = job.spec.objective.classification.labels if job.spec.objective.classification else None
    labels = Labels(declared) if job.spec.objective.classification else None
    if labels is None or declared:
        count.ask(declared or [])
    opened = _opened(job)
    with new_folder(job.workspace.prepared) as draft:
        tallies, digests = _read(job, draft, opened, labels, count)
        names = [] if labels is None else labels.names
        files = _split(job, draft, tallies, names)
        rows = _pack(job, draft, files) if job.packing else None
        save(job.model.folder, job.tokenizer, draft / TOKENIZER)
        page = Prepared(
            data_key=data_key,
            objective=job.spec.objective.kind,
            record_kind=sorted(tallies["train"].kinds)[0],
            data=_data(draft, files, tallies, names, rows, _fingerprint(job, digests, names)),
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
        for left in draft.glob("*.identities"):
            left.unlink()
        write_page(draft, page)
    return page


def _opened(job: Job) -> dict[SplitName, list[OpenSource]]:
    """The sources of each table, their files on this machine."""
    opened: dict[SplitName, list[OpenSource]] = {}
    for place in sources.placed(job.spec.dataset):
        opened.setdefault(place.split, []).append(OpenSource(place, sources.files(job.run, job.workspace, place)))
    return opened


def _read(
    job: Job, draft: Path, opened: dict[SplitName, list[OpenSource]], labels: Labels | None, count: ParameterCount
) -> tuple[dict[SplitName, Tally], list[str]]:
    """Fill one table for each split that has sources of its own; returns what became of the records, and digests."""
    if job.max_length < job.spec.training.max_length:
        log.info("the model reads at most %d tokens: longer records are cut there", job.max_length)
    reader = Reader(
        objective=job.spec.objective.kind,
        tokenizer=job.tokenizer,
        encoder=Encoder(job.tokenizer, job.max_length),
        labels=labels,
        loss_on_all=job.spec.objective.sft is not None and job.spec.objective.sft.loss_on == "all",
        faults=Faults(job.workspace.bad_records),
        progress=job.progress,
        check=count.check,
    )
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
            count.ask(labels.names)
    if labels is not None:
        for name in opened:
            _renumber(draft / f"{name}.labels", labels.places)
    return tallies, digests


def _check_table(job: Job, name: str, tally: Tally, writer: TableWriter) -> None:
    if writer.records == 0:
        why = (
            f"{tally.read} read, {tally.dropped} of them with nothing to learn from"
            if tally.read
            else "the data is empty"
        )
        hint = f"; raise training.maxLength ({job.max_length})" if tally.dropped else ""
        raise Failure(Reason.DATASET_INVALID, f"spec.dataset.{name}: no record is left: {why}{hint}")
    vocabulary = (job.model.config.get("text_config") or job.model.config).get("vocab_size")
    if isinstance(vocabulary, int) and writer.highest >= vocabulary:
        message = (
            f"{job.model.name}: its tokenizer makes token {writer.highest}, its embeddings end at {vocabulary - 1}"
        )
        raise Failure(Reason.MODEL_INVALID, message)


def _check_classes(labels: Labels) -> None:
    found = [name for name, number in labels.counts.items() if number]
    if len(found) < 2:
        message = (
            f"spec.dataset.train: all records have the label {found[0]!r}: classification needs two classes or more"
        )
        raise Failure(Reason.DATASET_INVALID, message)
    absent = [name for name, number in labels.counts.items() if not number]
    if absent:
        log.warning("no training record has the label %s: it cannot be learnt", ", ".join(absent[:10]))


def _renumber(path: Path, places: list[int]) -> None:
    """Give the class ids of a table, which were handed out in the order of reading, their final values."""
    values = np.memmap(path, dtype=np.int32, mode="r+")
    final = np.array(places, dtype=np.int32)
    for start in range(0, len(values), splits.CHUNK):
        values[start : start + splits.CHUNK] = final[values[start : start + splits.CHUNK]]
    values.flush()


def _split(job: Job, draft: Path, tallies: dict[SplitName, Tally], names: list[str]) -> dict[str, SplitFiles]:
    """Decide which records are in which split."""
    dataset = job.spec.dataset
    files: dict[str, SplitFiles] = {"train": SplitFiles(table="train")}
    for name in ("validation", "test"):
        if name in tallies:
            files[name] = SplitFiles(table=name)
            _tell_shared(draft, name)
    shares = {"validation": _share(dataset.validation), "test": _share(dataset.test)}
    if any(shares.values()):
        parts = _parts(job, draft, shares)
        for name, part in (("train", splits.TRAIN), ("validation", splits.VALIDATION), ("test", splits.TEST)):
            if name == "train" or shares[name]:
                files[name] = SplitFiles(table="train", rows=f"{name}.rows")
                _write_rows(draft / f"{name}.rows", parts, part)
    return files


def _share(split: Split) -> float:
    return split.fraction or 0.0


def _parts(job: Job, draft: Path, shares: dict[str, float]) -> splits.Parts:
    table = Table(draft / "train")
    try:
        parts = splits.assigned(_identities(draft, "train"), table.labels, job.spec.training.seed, **shares)
    except splits.TooFewError:
        message = (
            f"spec.dataset.train: {len(table)} usable records are too few to hold some out: "
            "add records, or set spec.dataset.validation.fraction and spec.dataset.test.fraction to 0"
        )
        raise Failure(Reason.DATASET_INVALID, message) from None
    if len(table) < FEW:
        log.warning("only %d records: what is held out is too little to judge by", len(table))
    return parts


def _write_rows(path: Path, parts: splits.Parts, part: int) -> None:
    with path.open("wb") as file:
        for start in range(0, len(parts), splits.CHUNK):
            file.write((np.flatnonzero(parts[start : start + splits.CHUNK] == part) + start).astype(np.int32).tobytes())


def _tell_shared(draft: Path, name: str) -> None:
    found = splits.shared(_identities(draft, name), _identities(draft, "train"))
    if found:
        log.warning("%d records of spec.dataset.%s are in the training data too: its figures will flatter", found, name)


def _pack(job: Job, draft: Path, files: dict[str, SplitFiles]) -> int:
    """Pack the training split; returns its rows."""
    packs = packed(Records(draft, files["train"]).lengths, job.max_length)
    np.concatenate(packs).tofile(draft / "train.members")
    np.cumsum([len(pack) for pack in packs], dtype=np.int64).tofile(draft / "train.ends")
    files["train"] = files["train"].model_copy(update={"packs": "train"})
    return len(packs)


def _data(
    draft: Path,
    files: dict[str, SplitFiles],
    tallies: dict[SplitName, Tally],
    names: list[str],
    rows: int | None,
    fingerprint: str,
) -> Data:
    tables = {name: Table(draft / name) for name in tallies}
    sizes = {name: _size(draft, split) for name, split in files.items()}
    return Data(
        train_examples=sizes["train"],
        validation_examples=sizes.get("validation"),
        test_examples=sizes.get("test"),
        tokens=sum(len(table.ids) for table in tables.values()),
        truncated=sum(tally.truncated for tally in tallies.values()),
        dropped=sum(tally.dropped for tally in tallies.values()),
        duplicates=splits.repeated([_identities(draft, name) for name in tallies]),
        labels=len(names) or None,
        packed_rows=rows,
        fingerprint=fingerprint,
    )


def _size(draft: Path, files: SplitFiles) -> int:
    return len(Table(draft / files.table)) if files.rows is None else (draft / files.rows).stat().st_size // 4


def _identities(draft: Path, table: str) -> splits.Keys:
    return np.memmap(draft / f"{table}.identities", dtype=np.uint64, mode="r")


def _plan(job: Job, page: Prepared, parameters: Parameters) -> Plan:
    training = job.spec.training
    micro = training.micro_batch_size or 1
    rows = page.data.packed_rows or page.data.train_examples or 0
    return Plan(
        total_parameters=parameters.total,
        trainable_parameters=parameters.trainable,
        micro_batch_size=micro,
        gradient_accumulation=training.batch_size // micro,
        total_steps=training.max_steps or math.ceil(training.epochs * math.ceil(rows / training.batch_size)),
        train_tokens=_train_tokens(job.workspace, page),
        packing=page.packing,
        learning_rate=training.learning_rate,
        model_revision=page.model_revision,
    )


def _train_tokens(workspace: Workspace, page: Prepared) -> int:
    train = open_split(workspace, page, "train")
    return 0 if train is None else int(train.lengths.sum(dtype=np.int64))


def _artifact_bytes(job: Job, parameters: Parameters) -> int:
    """About what the result takes: the model again, or the adapter in fp32, or both."""
    whole = job.spec.method.full is not None or job.spec.output.merge
    adapter = 0 if job.spec.method.full is not None else 4 * parameters.trainable
    return adapter + (job.model.size if whole else 0)


def _data_key(job: Job) -> str:
    """Covers all that shapes the data, and stamps of the sources instead of their content: it is compared before they are read."""
    stamps = [sources.stamp(job.run, place) for place in sources.placed(job.spec.dataset)]
    return _sha256({"shape": _data_shape(job), "dataset": job.spec.dataset.to_wire(), "stamps": stamps})


def _data_shape(job: Job) -> dict[str, Any]:
    """What decides how records become tokens."""
    tokenizer = hashlib.sha256(job.tokenizer.backend.to_str().encode()).hexdigest()
    return {
        "layout": LAYOUT,
        "objective": job.spec.objective.to_wire(),
        "seed": job.spec.training.seed,
        "maxLength": job.max_length,
        "packing": job.packing,
        "tokenizer": tokenizer,
        "tokens": job.tokenizer.tokens,
        "template": job.tokenizer.template_source,
    }


def _plan_key(job: Job) -> str:
    spec = job.spec
    return _sha256(
        [spec.to_wire(include={"model", "objective", "method", "training"}), job.model.revision, str(job.model.folder)]
    )


def _fingerprint(job: Job, digests: list[str], names: list[str]) -> str:
    splits_of = {name: getattr(job.spec.dataset, name).to_wire() for name in ("validation", "test")}
    return "sha256:" + _sha256({"shape": _data_shape(job), "tables": digests, "labels": names, "splits": splits_of})


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _summary(page: Prepared) -> str:
    data = page.data
    parts = [
        f"{data.train_examples:,} records to train on",
        f"{data.validation_examples or 0:,} to validate",
        f"{data.test_examples or 0:,} to test",
        f"{data.tokens:,} tokens",
        *(
            f"{number:,} {word}"
            for number, word in ((data.truncated, "truncated"), (data.dropped, "dropped"))
            if number
        ),
        *([f"{data.duplicates:,} duplicates"] if data.duplicates else []),
        *([f"{data.packed_rows:,} packed rows"] if data.packed_rows else []),
        f"{page.plan.total_steps:,} steps",
        f"{page.plan.trainable_parameters:,} of {page.plan.total_parameters:,} parameters move",
    ]
    return ", ".join(parts)
