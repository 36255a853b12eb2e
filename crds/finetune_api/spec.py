"""The `spec` of a FineTuneJob: what a person may ask for, with bounds, defaults and the rules between fields.

A field exists here only if the operator or the trainer acts on it. Two axes carry it: `objective` (which loss) and
`method` (which parameters are trained); neither knows the other.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from finetune_api import labels
from finetune_api.frozen import frozen
from finetune_api.methods import Lora, Method
from finetune_api.pods import NodeLabels, PodTemplate, Toleration
from finetune_api.schema import (
    ApiModel,
    DnsLabel,
    DnsName,
    ExtendedResource,
    Quantity,
    Rule,
    at_most_one_of,
    broken_rules,
    exactly_one_of,
    members_that,
    or_auto,
)
from finetune_api.sources import REVISION_OF_THE_HUB, Auth, not_a_local_file, plain_path, stays_inside
from finetune_api.uris import DATASET_FORMS, DATASET_PATTERN, MODEL_FORMS, MODEL_PATTERN, OUTPUT_FORMS, OUTPUT_PATTERN


class ModelSource(ApiModel):
    """The base model."""

    rules: ClassVar = (not_a_local_file("uri"), stays_inside("uri"), plain_path("uri"))

    uri: Annotated[str, Field(pattern=MODEL_PATTERN, max_length=1024, json_schema_extra={"x-message": MODEL_FORMS})]
    """Where the model lives: `hf://org/name`, or `pvc://claim/path` for a folder in Hugging Face layout (config,
    tokenizer, safetensors)."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an `hf://` model. It is resolved to a commit once and recorded. Default: the main
    branch."""
    auth: Auth | None = None
    """Needed for gated or private models."""


ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class Columns(ApiModel):
    """Which column of the data plays which part. A part left out is looked for under its own name."""

    rules: ClassVar = (
        Rule(
            "!(has(self.messages) && (has(self.prompt) || has(self.completion) || has(self.text)))",
            "messages excludes prompt, completion and text: a record is one of chat, prompt/completion or text",
        ),
    )

    messages: ColumnName | None = None
    """Chat: a list of `{role, content}`."""
    prompt: ColumnName | None = None
    """The prompt of a prompt/completion record."""
    completion: ColumnName | None = None
    """The answer to learn."""
    text: ColumnName | None = None
    """Plain text (`sft`), or the text to classify."""
    label: ColumnName | None = None
    """The class of a record (`classification`)."""


class Source(ApiModel):
    """One set of records."""

    rules: ClassVar = (
        not_a_local_file("uri"),
        stays_inside("uri"),
        plain_path("uri"),
        REVISION_OF_THE_HUB,
    )

    uri: Annotated[str, Field(pattern=DATASET_PATTERN, max_length=1024, json_schema_extra={"x-message": DATASET_FORMS})]
    """Where it lives: `pvc://claim/path`, `configmap://name/key`, `https://…`, `hf://org/name[/path]`."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "text"] = "auto"
    """File format. Default: `auto`, which goes by the file's suffix. `text` makes each non-empty line a plain-text
    record."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an `hf://` dataset. Default: the main branch."""
    columns: Columns = Field(default_factory=Columns)
    auth: Auth | None = None
    """Needed for gated or private data."""


class Split(ApiModel):
    """Held-out data: a share of the training records, or sources of its own."""

    rules: ClassVar = (exactly_one_of("fraction", "sources"),)

    fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the training records split off by `training.seed`, by label for classification. 0 turns the split
    off."""
    sources: Annotated[list[Source], Field(min_length=1, max_length=32)] | None = None
    """Separate data. Labels that training never saw are an error."""


SplitName = Literal["train", "validation", "test"]


class Dataset(ApiModel):
    """The records to learn from and to be judged on."""

    train: Annotated[list[Source], Field(min_length=1, max_length=32)]
    """Training data; several sources are read one after the other and shuffled together."""
    validation: Split = Field(default_factory=lambda: Split(fraction=0.05))
    """Watched during training: early stopping and the choice of the best checkpoint look at it."""
    test: Split = Field(default_factory=lambda: Split(fraction=0.05))
    """Looked at once, at the end, with the base model and with the tuned one."""
    template: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """Jinja chat template that replaces the tokenizer's own."""
    packing: Literal["auto", "always", "never"] = "auto"
    """Several records in one row, kept apart by position and attention. `auto` packs where attention kernels take
    document boundaries (CUDA) and groups by length elsewhere."""


class ObjectiveOptions(ApiModel):
    """What every objective has."""

    takes_packed_rows: ClassVar[bool] = False
    """Whether several records may share a row."""

    @property
    def carries_loss_everywhere(self) -> bool:
        """Whether the tokens of an input carry loss too, not only those of the answer."""
        return False

    @property
    def declared_labels(self) -> list[str] | None:
        """The classes; None where there are none, or where the data will tell."""
        return None


class Sft(ObjectiveOptions):
    """Supervised fine-tuning: next-token cross-entropy on answers (chat, prompt/completion) or on plain text. An
    encoder-decoder reads the prompt and learns the completion, or the last answer of a chat; it takes no plain text."""

    loss_on: Literal["completion", "all"] = "completion"
    """`completion`: only the assistant's tokens carry loss; `all`: every token. Plain text has no prompt: all its
    tokens count."""

    takes_packed_rows: ClassVar = True

    @property
    def carries_loss_everywhere(self) -> bool:
        return self.loss_on == "all"


class Classification(ObjectiveOptions):
    """Single-label text classification with a linear head on the model."""

    labels: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=2, max_length=1000)]
        | None
    ) = None
    """The classes in the order of their ids. Default: those found in the training data, sorted."""

    @property
    def declared_labels(self) -> list[str] | None:
        return self.labels


class Objective(ApiModel):
    """Which loss is minimised. Set exactly one member; supervised fine-tuning unless told otherwise."""

    rules: ClassVar = (exactly_one_of("sft", "classification"),)

    sft: Sft | None = None
    classification: Classification | None = None

    @property
    def kind(self) -> str:
        """The name of the member that is set."""
        return _only_member(self)

    @property
    def options(self) -> ObjectiveOptions:
        """The member that is set."""
        options: ObjectiveOptions = getattr(self, self.kind)
        return options


def _only_member(union: ApiModel) -> str:
    (name,) = [name for name in type(union).model_fields if getattr(union, name) is not None]
    return name


class EarlyStopping(ApiModel):
    """Stop when the validation loss no longer falls."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without improvement before the run stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0
    """Smallest fall of the validation loss that counts as an improvement."""


DEFAULT_BATCH = 16
BatchSize = Annotated[Annotated[int, Field(ge=1, le=65536)] | Literal["auto"], or_auto(1, 65536)]
MicroBatchSize = Annotated[Annotated[int, Field(ge=1, le=4096)] | Literal["auto"], or_auto(1, 4096)]


class Training(ApiModel):
    """The optimizer, and how it is driven."""

    rules: ClassVar = (
        Rule(
            "!has(self.batchSize) || !has(self.microBatchSize) || type(self.batchSize) == string || "
            "type(self.microBatchSize) == string || self.batchSize % self.microBatchSize == 0",
            "batchSize must be a multiple of microBatchSize",
        ),
    )

    epochs: Annotated[float, Field(gt=0, le=1000)] = 3
    """Passes over the training data; may be a fraction. maxSteps, when set, wins."""
    max_steps: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Optimizer steps, whatever the number of epochs. 0, for a method that starts from stored adapters, trains nothing:
    what they make together is measured and published as it is."""
    batch_size: BatchSize = DEFAULT_BATCH
    """Records per optimizer step, over all devices. `auto`: as many as microBatchSize says; where both are `auto`, as
    many as fit resources.gpuMemory at once, a power of two up to 64, and 16 where that is not known or on the CPU."""
    micro_batch_size: MicroBatchSize = "auto"
    """Records per forward pass; the gradient is accumulated over batchSize / microBatchSize passes. `auto`: the largest
    divisor of batchSize that fits resources.gpuMemory; where that is not known, and on the CPU, that is at most 8. What
    it is stands in status.plan."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: the method's own."""
    optimizer: Literal["adamw", "adamw8bit", "pagedAdamw8bit", "adafactor"] = "adamw"
    """`adamw` holds two fp32 moments of each trainable parameter: 8 bytes. `adamw8bit` holds them in 8 bits with a
    scale a block, those of embeddings and of small tensors excepted: 2 bytes (Dettmers et al. 2021, arXiv:2110.02861).
    `pagedAdamw8bit` moves these to the host's memory while a GPU's runs short. `adafactor` holds no first moment, and
    of the second one row and one column a matrix (Shazeer and Stern 2018, arXiv:1804.04235)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0
    """Decoupled weight decay; biases and norms are exempt."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1
    """Gradients are clipped to this norm."""
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    """Tokens per record; longer ones are cut at the end, and counted in status.data.truncated. With an encoder-decoder
    the input and the answer may each be so long."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward pass; `auto` takes bf16 where the device has matrix units for it: GPUs from compute
    capability 8.0, CPUs with AMX. status.plan says what it took. Trainable weights are kept in fp32."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them: less memory, about a third slower."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 42
    """Seeds splits, shuffling, initialisation and dropout."""
    early_stopping: EarlyStopping | None = None
    """Off unless set."""


class Checkpoint(ApiModel):
    """When the run is saved for resuming. It is also saved when it is asked to stop."""

    rules: ClassVar = (at_most_one_of("everySteps", "everyMinutes"),)

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps between checkpoints."""
    every_minutes: Annotated[int, Field(ge=1, le=10_080)] | None = None
    """Minutes between checkpoints. Default when neither is set: 10."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of the latest are kept; the best by validation loss is kept besides."""


class Evaluation(ApiModel):
    """What is measured beside the loss."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps between validations. Default: ten times in a run."""
    prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(max_length=8)] = []
    """Prompts that the base and the tuned model answer at the end (sft); the answers stand in the model card."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 64
    """Length limit of those answers."""


class Output(ApiModel):
    """Where the result goes."""

    rules: ClassVar = (not_a_local_file("uri"), stays_inside("uri"), plain_path("uri"))

    uri: Annotated[str, Field(pattern=OUTPUT_PATTERN, max_length=1024, json_schema_extra={"x-message": OUTPUT_FORMS})]
    """Folder for the result: `pvc://claim/path`. What is there is replaced only if an earlier run of this job put it
    there."""
    merge: bool = False
    """Also publish the whole model with the adapter merged in, under `merged/`."""


class Reclaim(ApiModel):
    """What becomes of the workspace volume when the job has ended. It may be edited until then."""

    on_success: Literal["Delete", "Retain"] = "Delete"
    """`Delete`: once the result is published and read back, the volume is deleted. `Retain`: it stays as long as the
    job."""
    on_failure: Literal["Delete", "Retain"] = "Retain"
    """`Retain`: the volume, with its checkpoints, outlives the job too, and is deleted by hand. `Delete`: it is deleted
    when the job has failed."""


class Workspace(ApiModel):
    """The volume that the stages share: prepared data, checkpoints, the result before it is published."""

    rules: ClassVar = (
        Rule(
            "!has(self.accessModes) || !('ReadWriteOncePod' in self.accessModes) || self.accessModes.size() == 1",
            "accessModes: ReadWriteOncePod stands alone",
        ),
    )

    size: Quantity = "20Gi"
    """Requested size."""
    storage_class_name: DnsName | None = None
    """Default: the cluster's default class."""
    # No defaults in the CRD: an operator that runs on through an upgrade of it would refuse fields that it never saw.
    access_modes: (
        Annotated[
            list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]], Field(min_length=1, max_length=2)
        ]
        | None
    ) = None
    """What the claim asks of its class. Default: ReadWriteOnce. With ReadWriteMany the stages may run on nodes, and in
    zones, apart."""
    reclaim: Reclaim | None = None
    """Default: deleted after success, kept after a failure."""

    def is_deleted_after(self, success: bool) -> bool:
        """Whether the volume goes when the job has succeeded, or failed."""
        reclaim = self.reclaim or Reclaim()
        return (reclaim.on_success if success else reclaim.on_failure) == "Delete"


class Resources(ApiModel):
    """What each stage's pod asks for; only `train` asks for GPUs."""

    gpus: Annotated[int, Field(ge=0, le=1)] = 1
    """GPUs of the training pod; 0 trains on CPU. One process trains, so more than one would stand idle."""
    gpu_resource: ExtendedResource = "nvidia.com/gpu"
    """Name of the extended resource that counts GPUs."""
    gpu_memory: Quantity | None = None
    """What the GPU has, such as `24Gi`. `prepare` then chooses the largest microBatchSize that fits, and refuses a job
    that cannot fit before it holds a GPU. Unknown unless set: nothing is checked."""
    cpu: Quantity = "2"
    """CPU cores, as request and limit."""
    memory: Quantity = "8Gi"
    """Memory, as request and limit. A job without a GPU that would need much more is refused by `prepare`."""
    workspace: Workspace = Field(default_factory=Workspace)


class Scheduling(ApiModel):
    """Where the pods may run. All stages share it, because they share a volume."""

    queue: DnsLabel | None = None
    """Kueue LocalQueue: the train Job is created suspended with this queue's label, and Kueue admits it."""
    priority_class_name: DnsName | None = None
    """As in a pod."""
    node_selector: NodeLabels = {}
    """As in a pod, of all stages; what podTemplate says of the same label outweighs it."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """As in a pod, of all stages, besides those of podTemplate."""


class Retry(ApiModel):
    """What happens after a failure that another try may heal. Preemption, eviction and other requests to stop are not
    counted, unless the pod was evicted for what it used itself."""

    limit: Annotated[int, Field(ge=0, le=20)] = 3
    """Failures of a stage, after its first, in which the checkpoint got no further. A job that failed by it goes on
    when it is raised."""


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
