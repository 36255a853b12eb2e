"""The `spec` of a FineTuneJob: what a person may ask for, with bounds, defaults and the rules between fields.

A field exists here only if the operator or the trainer acts on it. Two axes carry it: `objective` (which loss) and
`method` (which parameters are trained); neither knows the other.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from finetune_api import labels
from finetune_api.schema import ApiModel, Rule, broken_rules, members_that
from finetune_api.spec.dataset import Dataset
from finetune_api.spec.evaluation import Evaluation
from finetune_api.spec.immutable import frozen
from finetune_api.spec.methods import Lora, Method
from finetune_api.spec.model import ModelSource
from finetune_api.spec.objectives import Objective, Sft
from finetune_api.spec.output import Output
from finetune_api.spec.pod_template import PodTemplate
from finetune_api.spec.scheduling import Resources, Retry, Scheduling
from finetune_api.spec.training import DEFAULT_BATCH, Checkpoint, Training

FROZEN: dict[str, type[ApiModel]] = {
    "model": ModelSource,
    "dataset": Dataset,
    "objective": Objective,
    "method": Method,
    "training": Training,
    "checkpoint": Checkpoint,
    "evaluation": Evaluation,
    "output": Output,
    "resources": Resources,
}
"""Stanzas that define the run. The others may change while it runs."""
EDITABLE = ("resources.cpu", "resources.memory", "resources.workspace.reclaim")
"""What may change in them all the same."""
STEERING = ("scheduling", "podTemplate", "retry", "restarts", "suspend", "deadlineSeconds", "ttlSecondsAfterFinished")
"""The other fields: an edit is acted upon at once, or at the next attempt at the latest."""


def _any_of(field: str, union: type[ApiModel], trait: str) -> str:
    """CEL: the member of the union at `field` that is set is one of those with this trait."""
    return "(" + " || ".join(f"has(self.{field}.{name})" for name in members_that(union, trait)) + ")"


class FineTuneJobSpec(ApiModel):
    """What to fine-tune, on what, how, and where the result goes."""

    rules: ClassVar = (
        *(frozen(name, model, EDITABLE) for name, model in FROZEN.items()),
        Rule(
            f"self.dataset.packing != 'always' || {_any_of('objective', Objective, 'takes_packed_rows')}",
            "packing puts several records in one row; this objective needs one record a row: leave dataset.packing out",
        ),
        Rule(
            f"self.dataset.packing != 'always' || {_any_of('method', Method, 'takes_packed_rows')}",
            "packing puts several records in one row, and this method's virtual tokens stand in front of a row: leave "
            "dataset.packing out",
        ),
        Rule(
            f"!self.training.gradientCheckpointing || {_any_of('method', Method, 'takes_gradient_checkpointing')}",
            "training.gradientCheckpointing computes layers again without their cache, and there this method's virtual "
            "tokens are: leave it out, or take promptTuning or pTuning",
        ),
        Rule(
            "!has(self.training.maxSteps) || self.training.maxSteps > 0 || "
            "(has(self.method.lora) && has(self.method.lora.startFrom))",
            "training.maxSteps: 0 publishes stored adapters without training: name them in method.lora.startFrom, or "
            "train for a step at least",
        ),
        Rule(
            "self.resources.gpus > 0 || self.training.optimizer != 'pagedAdamw8bit'",
            "training.optimizer: pagedAdamw8bit moves its state out of a GPU's memory; without a GPU choose adamw8bit",
        ),
        Rule(
            f"!self.output.merge || {_any_of('method', Method, 'is_mergeable')}",
            "output.merge: what this method learns cannot become part of the base model's weights: leave it out",
        ),
    )

    model: ModelSource
    dataset: Dataset
    objective: Objective = Field(default_factory=lambda: Objective(sft=Sft()))
    method: Method = Field(default_factory=lambda: Method(lora=Lora()))
    training: Training = Field(default_factory=Training)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    output: Output
    resources: Resources = Field(default_factory=Resources)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    pod_template: PodTemplate | None = None
    retry: Retry = Field(default_factory=Retry)
    suspend: bool = False
    """True: the run is checkpointed and its pods end; false: it goes on where it stopped."""
    restarts: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Raise it to try again: a job that has failed goes on from its last checkpoint, and one that runs starts a new
    attempt. A job that has succeeded is not run again."""
    deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Longest time that pods of this job may be active, in seconds; suspended and queued time does not count. A job
    that failed by it goes on when it is raised."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = None
    """Seconds after its end at which the job is deleted; the published artifact stays. Default: never."""

    @property
    def named_jobs(self) -> list[str]:
        """Names of the FineTuneJobs whose artifacts this one needs, each once."""
        found = (adapter.uri for adapter in self.method.options.adapters)
        return list(dict.fromkeys(uri.removeprefix("job://") for uri in found if uri.startswith("job://")))

    def with_artifacts(self, artifacts: Mapping[str, str]) -> "FineTuneJobSpec":
        """The same spec with each `job://name` replaced by the URI that `artifacts` has for the name."""
        if not self.named_jobs:
            return self
        return self.model_copy(update={"method": self.method.with_artifacts(artifacts)})

    def resolved(self) -> "FineTuneJobSpec":
        """The same spec with the defaults filled in that depend on other fields; resolving twice changes nothing."""
        training, checkpoint = self.training, self.checkpoint
        rate = training.learning_rate or self.method.options.default_learning_rate
        if checkpoint.every_steps is None and checkpoint.every_minutes is None:
            checkpoint = checkpoint.model_copy(update={"every_minutes": 10})
        training = training.model_copy(update={"learning_rate": rate, "batch_size": self._batch_size()})
        return self.model_copy(update={"training": training, "checkpoint": checkpoint})

    def _batch_size(self) -> int | Literal["auto"]:
        """`auto` only where the memory of a GPU is to decide."""
        batch, micro = self.training.batch_size, self.training.micro_batch_size
        if batch != "auto":
            return batch
        if micro == "auto" and not (self.resources.gpus and self.resources.gpu_memory):
            return DEFAULT_BATCH
        return micro


def read_spec(stored: Any) -> tuple[FineTuneJobSpec | None, str]:
    """A stored spec, whichever release wrote it, without what this one does not know; else None, and why it cannot be
    read. A union of which only an unknown member is set cannot be read either: what is left of it says nothing."""
    try:
        spec = FineTuneJobSpec.model_validate(stored, extra="ignore")
    except ValidationError as problem:
        first = problem.errors()[0]
        return None, f"spec.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    broken = next(broken_rules(spec, "spec", unions_only=True), "")
    return (None, f"{broken}; what is set is not known here") if broken else (spec, "")


def jobs_named(spec: Any) -> list[str]:
    """Names behind `job://` in a spec as it is stored, each once, whichever release wrote it: of every `uri` in it, for
    in a prompt or a variable the same words name nothing."""
    return list(dict.fromkeys(uri.removeprefix("job://") for uri in _uris(spec) if uri.startswith("job://")))


def _uris(part: Any) -> Iterator[str]:
    if isinstance(part, dict) and isinstance(part.get("uri"), str):
        yield part["uri"]
    if isinstance(part, dict | list):
        for below in part.values() if isinstance(part, dict) else part:
            yield from _uris(below)


class Metadata(ApiModel):
    """The part of an object's metadata that the contract reads; Kubernetes owns the rest."""

    model_config = {**ApiModel.model_config, "extra": "ignore"}

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


ROOT_RULES = (
    Rule(
        "!has(oldSelf.status) || !has(oldSelf.status.phase) || oldSelf.status.phase != 'Succeeded' || "
        "(has(self.spec.restarts) ? self.spec.restarts : 0) == "
        "(has(oldSelf.spec.restarts) ? oldSelf.spec.restarts : 0)",
        "spec.restarts: a job that has succeeded is not run again: apply it under a new name",
    ),
    Rule(
        f"self.metadata.name.size() <= {labels.NAME_LIMIT} && "
        "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        f"metadata.name must be a DNS label of at most {labels.NAME_LIMIT} characters: its pods are named after it",
    ),
)
