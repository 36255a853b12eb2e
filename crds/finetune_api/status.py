"""The `status` of a FineTuneJob: what the operator observed. Nothing in it is a decision that only it remembers.

Every field is optional, so that an old object always parses; what a newer operator wrote is kept by an older one.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from finetune_api.schema import ApiModel, model_of

Text = Annotated[str, Field(max_length=4096)]
Word = Annotated[str, Field(max_length=256)]
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
CONDITIONS = 32
"""More than this release has types: room for those of others."""


class Condition(ApiModel):
    """As metav1.Condition."""

    type: Word
    """Accepted, Prepared, Progressing, Suspended, Trained, Evaluated, Published, Complete or Failed; and for tools that
    know kstatus Ready, Reconciling and Stalled."""
    status: Word
    """True, False or Unknown."""
    reason: Word
    """One CamelCase word; docs/troubleshooting.md explains each."""
    message: Text = ""
    """What happened and what to do next."""
    last_transition_time: Time
    """When status last changed."""
    observed_generation: int | None = None
    """The generation of the spec that it speaks of."""


class Memory(ApiModel):
    """Estimated peak memory of the train stage, in bytes, by what it is for: on the GPU, or of the pod that trains on
    the CPU. The parts add up to the peak."""

    frozen_weights_bytes: int = 0
    """Weights that stay as they are, in the precision in which they are held, and the model's buffers."""
    trainable_weights_bytes: int = 0
    """Trainable weights, in fp32."""
    gradients_bytes: int = 0
    """A gradient for each of them."""
    optimizer_bytes: int = 0
    """AdamW's two moments for each of them."""
    activations_bytes: int = 0
    """What the backward pass needs of the forward pass."""
    temporary_bytes: int = 0
    """What is held besides at the moment of the peak: intermediate results and, on the CPU, what the heap does not give
    back."""
    runtime_bytes: int = 0
    """The process itself: libraries, and the context of the GPU."""

    @property
    def total(self) -> int:
        """The estimated peak, in bytes."""
        return sum(getattr(self, name) for name in type(self).model_fields)


class Plan(ApiModel):
    """What `prepare` found the run to be."""

    total_parameters: int | None = None
    """Parameters of the model, adapters included."""
    trainable_parameters: int | None = None
    """Those that are trained; of a run without steps, those of its adapter."""
    micro_batch_size: int | None = None
    """Records per forward pass; rows, where records are packed."""
    gradient_accumulation: int | None = None
    """Forward passes per optimizer step."""
    total_steps: int | None = None
    """Optimizer steps of the whole run."""
    train_tokens: int | None = None
    """Tokens in one pass over the training data, padding excluded."""
    packing: bool | None = None
    """Whether records share rows."""
    learning_rate: float | None = None
    """Peak learning rate."""
    precision: Word | None = None
    """bf16 or fp32: arithmetic of the forward pass on a CPU, chosen once for all attempts. Absent for a GPU, which
    takes bf16 where it has it."""
    precision_basis: Word | None = None
    """The fact about the processor that `precision: auto` took it by; absent where the spec says it."""
    model_revision: Word | None = None
    """Commit of the base model, or the digest of its weights where it has no commit."""
    estimated_memory_bytes: int | None = None
    """Peak memory of the train stage at microBatchSize and the longest record; absent where it cannot be estimated."""
    memory: Memory | None = None
    """Its parts."""


class Progress(ApiModel):
    """The latest report of the running stage."""

    stage: Word | None = None
    """prepare, train or publish."""
    step: int | None = None
    """Optimizer steps done, over all attempts (in prepare: records read)."""
    total_steps: int | None = None
    """Optimizer steps in all."""
    epoch: float | None = None
    """Passes over the data done."""
    percent: int | None = None
    """step / totalSteps, in percent."""
    eta_seconds: int | None = None
    """Seconds to the end at the rate seen since the last resume."""
    loss: float | None = None
    """Training loss, mean since the last report."""
    eval_loss: float | None = None
    """Latest validation loss."""
    learning_rate: float | None = None
    """Current learning rate."""
    tokens_per_second: float | None = None
    """Tokens, padding excluded."""
    checkpoint_step: int | None = None
    """Step of the latest checkpoint."""
    updated_at: Time | None = None
    """When the operator read it."""


class Data(ApiModel):
    """What `prepare` made of the dataset."""

    train_examples: int | None = None
    """Records that are trained on."""
    validation_examples: int | None = None
    """Records watched during training."""
    test_examples: int | None = None
    """Records held out to the end."""
    tokens: int | None = None
    """Tokens in all splits."""
    truncated: int | None = None
    """Records cut at training.maxLength."""
    dropped: int | None = None
    """Records with nothing to learn from: empty, or no answer left after the cut."""
    duplicates: int | None = None
    """Records equal to an earlier one; they are kept."""
    labels: int | None = None
    """Classes."""
    packed_rows: int | None = None
    """Rows of the training data after packing."""
    fingerprint: Word | None = None
    """sha256 of the prepared data and of all that shaped it."""


class Attempt(ApiModel):
    """One pod that trained."""

    number: int
    """Counted from 1."""
    pod: Word | None = None
    """Its name."""
    started_at: Time | None = None
    """When its container started."""
    finished_at: Time | None = None
    """When it ended; absent while it runs."""
    reason: Word | None = None
    """Why it ended."""
    from_step: int | None = None
    """Step that it started or resumed from."""
    to_step: int | None = None
    """Last step it reported."""
    checkpoint_step: int | None = None
    """Step of its last checkpoint."""


class Recovery(ApiModel):
    """What interruptions cost, over all attempts, also those that `attempts` no longer lists."""

    restarts: int = 0
    """Attempts after the first."""
    steps_lost: int = 0
    """Steps done twice because they came after the last checkpoint."""


Attempts = Annotated[list[Attempt], Field(max_length=100, json_schema_extra={"x-kubernetes-list-type": "atomic"})]


class PinnedRun(ApiModel):
    """The run as it was frozen. Only the operator writes the status, so nobody else decides what a run is."""

    digest: Word | None = None
    """sha256 of the run file in the ConfigMap NAME-UID-run. With another one there, nothing is made."""
    image: Annotated[str, Field(max_length=1024)] | None = None
    """Image of all stages."""


class Dependency(ApiModel):
    """What a job that the spec names had published when it was first seen complete."""

    name: Word
    """The FineTuneJob behind `job://`."""
    uri: Annotated[str, Field(max_length=1024)]
    """Where its artifact is."""
    digest: Word | None = None
    """sha256 of the artifact's manifest.json."""


class StageStatus(ApiModel):
    """The present stage, and the Kubernetes Job that runs it."""

    name: Word
    """prepare, train or publish."""
    number: int = 1
    """Kubernetes Jobs of this stage so far, this one included. From the second on its name ends in it: `-train-2`."""
    tries: int = 0
    """Failures that count against retry.limit: those since the checkpoint last got further."""
    checkpoint_step: int | None = None
    """Step of the furthest checkpoint that an ended attempt left."""
    attempts: Attempts = []
    """Pods of prepare or publish that have ended; those of train stand in status.attempts."""


class Limits(ApiModel):
    """The limits that this status was decided by: a job that failed comes back when they are raised."""

    deadline_seconds: int | None = None
    """spec.deadlineSeconds."""
    retry_limit: int | None = None
    """spec.retry.limit."""
    restarts: int = 0
    """spec.restarts, as far as it was acted upon."""


class Metric(StrEnum):
    """The held-out metrics of this release, as they stand in the status. Another release may have more."""

    LOSS = "loss"
    """Mean cross-entropy: per trained token (sft), per record (classification)."""
    PERPLEXITY = "perplexity"
    """exp(loss), sft."""
    ACCURACY = "accuracy"
    """Share of records classified right."""
    MACRO_F1 = "macroF1"
    """Mean over the classes of their F1."""


def _measured(stored: Any) -> Any:
    """Results of earlier releases name what was not measured too."""
    return {name: one for name, one in stored.items() if one is not None} if isinstance(stored, dict) else stored


def _one_word(name: str) -> str:
    """It comes from a pod, and stands in terminals and tables."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
        raise ValueError("expected letters and digits")
    return name


MetricName = Annotated[str, Field(max_length=64), AfterValidator(_one_word)]
Metrics = Annotated[dict[MetricName, float], Field(max_length=32), BeforeValidator(_measured)]
"""Held-out metrics of one model, by name."""


class Sample(ApiModel):
    """One prompt answered by both models."""

    prompt: Text
    """From spec.evaluation.prompts."""
    before: Text
    """The base model's answer."""
    after: Text
    """The tuned model's answer."""


class EvaluationResult(ApiModel):
    """The held-out split, seen once, at the end."""

    split: Word | None = None
    """`test`, or `validation` where there is no test split."""
    base: Metrics | None = None
    """Of the base model, as of the tuned one. For classification its head is untrained: the score of chance."""
    tuned: Metrics | None = None
    """Of the tuned model: `loss`, the mean cross-entropy per trained token (sft) or per record (classification);
    `perplexity`, exp(loss) (sft); `accuracy`, the share of records classified right, and `macroF1`, the mean of the
    classes' F1 (classification)."""
    best_step: int | None = None
    """Step of the checkpoint that was kept."""
    samples: Annotated[list[Sample], Field(max_length=8)] = []
    """Answers before and after."""


class Artifact(ApiModel):
    """The published result."""

    uri: Annotated[str, Field(max_length=1024)] | None = None
    """Where it is."""
    digest: Word | None = None
    """sha256 of manifest.json, which holds the sha256 of every file."""
    size_bytes: int | None = None
    """Bytes in all."""
    kind: Word | None = None
    """`adapter` (PEFT layout) or `model` (transformers layout)."""


class Usage(ApiModel):
    """What ended pods of the job used, suspended and queued time excluded; all of them, not only those still listed."""

    active_seconds: int = 0
    """Seconds in which a training pod ran."""
    stage_seconds: int = 0
    """Seconds in which a pod of any stage ran: what deadlineSeconds is compared with."""
    gpu_seconds: int = 0
    """activeSeconds times the GPUs held."""
    wasted_gpu_seconds: int = 0
    """Those of steps after an attempt's last checkpoint, and of attempts that did no step."""


class FineTuneJobStatus(ApiModel):
    """What the operator observed."""

    model_config = {**ApiModel.model_config, "extra": "ignore"}

    phase: Word | None = None
    """Waiting, Preparing, Queued, Training, Suspended, Publishing, Succeeded or Failed."""
    observed_generation: int | None = None
    """The generation of the spec that this status speaks of."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=CONDITIONS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    """The truth; phase is derived from them."""
    run: PinnedRun | None = None
    dependencies: Annotated[list[Dependency], Field(max_length=64)] = []
    """What the jobs behind `job://` had published when they were first seen complete."""
    stage: StageStatus | None = None
    limits: Limits | None = None
    plan: Plan | None = None
    """What `prepare` found the run to be."""
    progress: Progress | None = None
    """The latest report of the running stage."""
    data: Data | None = None
    """What `prepare` made of the dataset."""
    attempts: Attempts = []
    """The training pods, oldest first; the latest 100."""
    recovery: Recovery | None = None
    """What interruptions cost."""
    evaluation: EvaluationResult | None = None
    artifact: Artifact | None = None
    """The published result."""
    usage: Usage | None = None
    started_at: Time | None = None
    """When the first pod of the job ran."""
    finished_at: Time | None = None
    """When the job succeeded or failed."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "FineTuneJobStatus":
        """What can be read of a stored status, whoever wrote it: a field that is not understood hides no other one, and
        nothing is too long, because another release may allow more."""
        found: FineTuneJobStatus | None = _read(cls, stored)
        return found or cls()

    def over(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """This status as it is to be written over a stored one: what a newer operator put there stays."""
        new = self.to_wire()
        if not stored or new == stored:
            return new
        return _over(type(self), stored, new, type(self).read(stored).to_wire())


def _read(model: type[ApiModel], stored: Any) -> Any:
    """`stored` as a `model`, without what `model` does not understand of it; None where that is a required field."""
    try:
        return model.model_validate(stored, extra="ignore")
    except ValidationError:
        if not isinstance(stored, Mapping):
            return None
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value, part = stored.get(field.alias or name), model_of(field.annotation)
        if part is None:
            found[name] = _scalar(model, name, value)
        elif isinstance(value, list):
            found[name] = [item for item in (_read(part, one) for one in value) if item is not None]
        else:
            found[name] = _read(part, value)
    known = {name: value for name, value in found.items() if value is not None}
    if any(field.is_required() and name not in known for name, field in model.model_fields.items()):
        return None
    return model.model_construct(**known)


def _scalar(model: type[ApiModel], name: str, value: Any) -> Any:
    """The value as the type of that field; None if it is none. One that is only too long is taken as it is."""
    try:
        return _type(model, name).validate_python(value)
    except ValidationError as problem:
        is_long = all(error["type"] in ("string_too_long", "too_long") for error in problem.errors())
        return value if is_long else None


@cache
def _type(model: type[ApiModel], name: str) -> TypeAdapter[Any]:
    field = model.model_fields[name]
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return TypeAdapter(annotation)


def _over(
    model: type[ApiModel], stored: Mapping[str, Any], new: dict[str, Any], read: Mapping[str, Any]
) -> dict[str, Any]:
    """`new` with those parts of `stored` that `model` does not know, or that `read`, its reading, does not hold."""
    parts = _parts(model)
    written = dict(new)
    for alias, value in stored.items():
        if alias not in parts or (alias not in read and alias not in new and value is not None):
            written[alias] = value
            continue
        part = parts[alias]
        if part is None or alias not in new:
            continue
        if isinstance(value, dict):
            written[alias] = _over(part, value, new[alias], read.get(alias, {}))
        elif isinstance(value, list):
            written[alias] = _items_over(part, value, new[alias], read.get(alias, []))
    return written


@cache
def _parts(model: type[ApiModel]) -> dict[str, type[ApiModel] | None]:
    """The fields of `model` by their alias, each with the model inside it."""
    return {field.alias or name: model_of(field.annotation) for name, field in model.model_fields.items()}


def _items_over(
    model: type[ApiModel], stored: list[Any], new: list[dict[str, Any]], read: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The same for the items of a list. The first field of an item is its key; what has one that `read` does not hold
    could not be read, and stays."""
    name, field = next(iter(model.model_fields.items()))
    first = field.alias or name
    before = {item[first]: item for item in stored if isinstance(item, dict) and first in item}
    taken = {item.get(first) for item in (*new, *read)}
    kept = [item for key, item in before.items() if key not in taken]
    return [*kept, *(_over(model, before.get(item.get(first), {}), item, item) for item in new)]
