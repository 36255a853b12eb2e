"""`spec.training` and `spec.checkpoint`: steps, batches, rates, precision, and what is kept on the way."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.schema import ApiModel, Rule, at_most_one_of, or_auto


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
