"""The prepare stage: everything that can go wrong without a GPU goes wrong here, and the data work is done once.

It decides the order of the checks, cheap and likely ones first, what of an earlier preparation can be kept, and the
plan. It imports no torch: parameters are counted by a process of its own.
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api.events import StageReport
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.stages import PREPARE
from finetune_api.status import Plan
from finetune_trainer.data.dataset import prepared_data
from finetune_trainer.data.fingerprint import data_key
from finetune_trainer.data.preparation import Preparation, Watch
from finetune_trainer.data.prepared import Prepared, read_prepared, write_page
from finetune_trainer.planning.batch_size import schedule
from finetune_trainer.planning.client import ParameterCount, Parameters
from finetune_trainer.planning.workload import prepared_load
from finetune_trainer.pretrained.base_model import base_model
from finetune_trainer.pretrained.initial_adapter import composed_start, from_composed
from finetune_trainer.pretrained.tokenizer import load
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import sha256_of
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.storage.output import check_output, check_room

log = logging.getLogger(__name__)

SHORTEST = 8
"""Tokens of a record, below which nothing can be learnt: the least that training.maxLength may be."""


def prepare(
    run: Run,
    workspace: Workspace,
    progress: Progress,
    counting: Callable[[Path, FineTuneJobSpec], ParameterCount] = ParameterCount,
) -> StageReport:
    """Check the run, prepare its data and plan it; raises Failure."""
    began = time.monotonic()
    output = check_output(run)
    page = read_prepared(workspace)
    progress.update(activity="loading")
    job = _preparation(run, workspace, progress, page)
    key, plan_key = data_key(job), _plan_key(job)
    if page is not None and (page.data_key, page.plan_key) == (key, plan_key):
        log.info("prepared already: %s", _summary(page))
        return _report(page)
    with counting(job.model.folder, job.spec) as count:
        if job.declared_labels is not None:
            count.ask(job.declared_labels)
        if page is None or page.data_key != key:
            page = prepared_data(job, key, Watch(labels_known=count.ask, check=count.check))
            log.info("data ready after %.1f s", time.monotonic() - began)
        count.ask(page.labels)
        parameters = count.result(prepared_load(job, page))
    check_room(run, output, _result_size(job, parameters))
    page = _planned(job, page, parameters, plan_key)
    write_page(workspace.prepared, page)
    shutil.rmtree(workspace.downloads, ignore_errors=True)
    log.info("prepared in %.1f s: %s", time.monotonic() - began, _summary(page))
    if page.plan.precision_basis:
        log.info("precision: auto means %s here: %s", page.plan.precision, page.plan.precision_basis)
    return _report(page)


def _preparation(run: Run, workspace: Workspace, progress: Progress, page: Prepared | None) -> Preparation:
    model = base_model(run, workspace, {page.model_stamp: page.model_revision} if page else {})
    spec = from_composed(run.spec.resolved(), workspace.start)
    tokenizer = load(model.folder, model.name, spec.dataset.template)
    start = composed_start(run, workspace, model, page.start if page else None)
    job = Preparation(run, spec, workspace, progress, model, tokenizer, start)
    _check_positions(job)
    if job.in_pairs:
        _check_pairs(job)
    return job


def _check_positions(job: Preparation) -> None:
    """Records and the method's virtual tokens stand in the model's positions together."""
    taken = job.spec.method.options.positions
    if job.max_length < SHORTEST:
        message = f"{taken} virtual tokens leave no room in the model's {job.model.longest_input} positions; take fewer"
        raise Failure(Reason.BAD_SPEC, f"spec.method.{job.spec.method.kind}.tokens: {message}")


def _check_pairs(job: Preparation) -> None:
    """What an encoder-decoder has no place for."""
    if job.spec.objective.options.carries_loss_everywhere:
        told = "an encoder-decoder writes answers alone, so its inputs carry no loss: leave lossOn out"
        raise Failure(
            Reason.BAD_SPEC, f"spec.objective.{job.spec.objective.kind}.lossOn: {told}, or choose a decoder (Llama, …)"
        )
    if job.spec.dataset.packing == "always":
        told = "an encoder reads all of a row at once, so records that share one would see each other: leave it out"
        raise Failure(Reason.BAD_SPEC, f"spec.dataset.packing: {told}")


def _report(page: Prepared) -> StageReport:
    return StageReport(stage=PREPARE, plan=page.plan, data=page.data)


def _plan_key(job: Preparation) -> str:
    """Covers what the plan depends on besides the data."""
    spec = job.spec.to_wire(include={"model", "objective", "method", "training", "resources"})
    return sha256_of([spec, job.model.revision, str(job.model.folder), *([job.start.digest] if job.start else [])])


def _planned(job: Preparation, page: Prepared, parameters: Parameters, plan_key: str) -> Prepared:
    """The page with its plan, and with the model as it is now: the data may be older than both."""
    model = {
        "model_path": str(job.model.folder),
        "model_revision": job.model.revision,
        "model_stamp": job.model.stamp,
    }
    made = {"plan": _plan(job, page, parameters), "plan_key": plan_key, "start": job.start}
    return page.model_copy(update=made | model)


def _plan(job: Preparation, page: Prepared, parameters: Parameters) -> Plan:
    records = page.data.train_examples or 0
    micro, accumulation, steps = schedule(job.spec.training, records, page.data.packed_rows or records, parameters.rows)
    return Plan(
        total_parameters=parameters.total,
        trainable_parameters=parameters.trainable,
        micro_batch_size=micro,
        gradient_accumulation=accumulation,
        total_steps=steps,
        train_tokens=page.train_tokens,
        packing=page.packing,
        learning_rate=job.spec.training.learning_rate,
        precision=parameters.precision,
        precision_basis=parameters.precision_basis,
        model_revision=job.model.revision,
        estimated_memory_bytes=parameters.memory.total if parameters.memory else None,
        memory=parameters.memory,
    )


def _result_size(job: Preparation, parameters: Parameters) -> int:
    """About what the result takes, in bytes: the model again, or the adapter in fp32, or both."""
    is_model = job.spec.method.options.publishes_whole_model
    adapter = 0 if is_model else 4 * parameters.trainable
    return adapter + (job.model.size if is_model or job.spec.output.merge else 0)


def _summary(page: Prepared) -> str:
    data, plan = page.data, page.plan
    told = {
        "records to train on": data.train_examples,
        "to validate": data.validation_examples,
        "to test": data.test_examples,
        "tokens": data.tokens,
        "truncated": data.truncated,
        "dropped": data.dropped,
        "duplicates": data.duplicates,
        "packed rows": data.packed_rows,
        "steps": plan.total_steps,
        "trainable parameters" if plan.total_steps else "parameters in the adapter": plan.trainable_parameters,
    }
    return ", ".join(f"{number:,} {what}" for what, number in told.items() if number)
