"""How records become steps: rows of a forward pass, passes of a step, steps of a run. A pure function of the job."""

import math

from finetune_api.spec.training import DEFAULT_BATCH, Training

MOST_AT_ONCE = 64
"""Records of a step that `batchSize: auto` takes at most: fewer keep a GPU busy, more want another learning rate."""


def schedule(training: Training, records: int, rows: int, fitting: int | None = None) -> tuple[int, int, int]:
    """Rows per forward pass, forward passes per step, and steps in all, for `records` in `rows` (fewer where packed).

    A step sees about batchSize records, packed or not, so that packing changes the speed of a run and not its course.
    `fitting` is the number of rows per pass that memory allows, where that was found out; where it was not,
    `batchSize: auto` is the default.
    """
    by_memory = training.batch_size == "auto"
    batch, micro = batches(training.model_copy(update={"batch_size": DEFAULT_BATCH}) if by_memory else training)
    if by_memory and fitting:
        batch = fitting
    elif rows < records:
        share = rows / records
        batch = max(1, round(batch * share))
        micro = largest_divisor(batch, at_most=max(1, round(micro * share)))
    micro = fitting or micro
    steps = training.max_steps
    if steps is None:
        steps = math.ceil(training.epochs * math.ceil(rows / batch))
    return micro, batch // micro, steps


def batches(training: Training) -> tuple[int, int]:
    """Records of a step and of a forward pass, as far as the job says; the most of both where memory is to decide."""
    batch = MOST_AT_ONCE if training.batch_size == "auto" else training.batch_size
    if training.micro_batch_size != "auto":
        return batch, training.micro_batch_size
    return batch, batch if training.batch_size == "auto" else largest_divisor(batch, at_most=8)


def largest_divisor(number: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)
