"""The one training path: a transformers.Trainer whose batches, precision, bookkeeping and resume are ours.

Every objective is a subclass. What is decided here holds for all of them: records of similar length share a
micro-batch, the loss of an optimizer step is the mean over all that its micro-batches learn, a loss that is not finite
ends the run, and a resumed run goes on bit for bit. It knows no objective and no method by name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

from finetune_api.reasons import Reason
from finetune_api.status import Metrics
from finetune_trainer.methods.method import TuningMethod
from finetune_trainer.models.loading import Head
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.training import checkpoints
from finetune_trainer.training.batching import EpochBatches, EpochLoader, Rows, by_length

Batch = dict[str, Any]
"""What a collator makes of records: tensors for the model, and the plain numbers `tokens` and `items`."""


@dataclass(frozen=True)
class Judgement:
    """What one batch says about the model."""

    loss: torch.Tensor
    """Sum of the cross-entropy over the batch's items."""
    predicted: torch.Tensor | None = None
    """Class of each record, where the objective has classes."""
    expected: torch.Tensor | None = None


class FineTuner(transformers.Trainer):
    """Trains on `rows`; `collate` turns a list of rows into a Batch."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the items of the whole step

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments,
        rows: Rows,
        pad_token_id: int,
        dtype: torch.dtype,
        method: TuningMethod,
        rates: dict[str, float],
    ) -> None:
        """`rates` are learning rates of single parameters, by name; all others have that of `args`."""
        self.use_cache = model.config.use_cache if hasattr(model.config, "use_cache") else None
        super().__init__(model=model, args=args, train_dataset=rows)
        self.remove_callback(transformers.PrinterCallback)
        self.pad_token_id, self.dtype = pad_token_id, dtype
        self.method, self.rates = method, rates
        self.step_losses = torch.zeros((), device=args.device)
        self.tokens = 0
        self.resumed_from: checkpoints.Checkpoint | None = None

    # What an objective says.

    @classmethod
    def suited(cls, config: transformers.PretrainedConfig) -> "type[FineTuner]":
        """The objective for models of this kind: this class, or one of its own."""
        return cls

    @classmethod
    def head(cls, labels: tuple[str, ...]) -> Head:
        """What it asks of the base model."""
        raise NotImplementedError

    def collate(self, rows: list[list[dict[str, Any]]]) -> Batch:
        """A batch of rows; `items` counts what is learnt, `tokens` what is read."""
        raise NotImplementedError

    def judge(self, batch: Batch) -> Judgement:
        """The loss of a batch, with gradients where they are on."""
        raise NotImplementedError

    def metrics(self, loss: float, judgements: list[Judgement]) -> tuple[Metrics, dict[str, Any]]:
        """Held-out metrics, given the mean loss over all items, and the details that are too large for a status."""
        raise NotImplementedError

    # What holds for all objectives.

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.train_dataset
        batches = EpochBatches(rows.lengths, self.args.per_device_train_batch_size, self.args.seed)
        return EpochLoader(rows, batch_sampler=batches, collate_fn=self.collate, generator=torch.Generator())

    def autocast(self) -> Any:
        return torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        self.tokens += inputs["tokens"]
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self.autocast():
            loss = self.judge(inputs).loss / num_items_in_batch
        self.step_losses += loss.detach()
        penalty = self.method.penalty(model)
        return loss if penalty is None else loss + penalty / self.args.gradient_accumulation_steps

    def create_optimizer(self, model: Any = None) -> Any:
        """As the Trainer's, and then parameters with a rate of their own in groups of their own, behind the others."""
        optimizer = super().create_optimizer(model)
        special = {id(p): self.rates[name] for name, p in self.model.named_parameters() if name in self.rates}
        for group in list(optimizer.param_groups):
            members = group["params"]
            group["params"] = [p for p in members if id(p) not in special]
            for rate in sorted({special[id(p)] for p in members if id(p) in special}):
                moved = [p for p in members if special.get(id(p)) == rate]
                optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer

    def after_step(self) -> None:
        """Called when the optimizer has made a step, before the gradients are forgotten."""
        self.method.after_step(self.model, self.state.global_step + 1)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> int:
        """Of a whole optimizer step. It is counted on the host: no wait for the device."""
        return max(1, sum(batch["items"] for batch in batch_samples))

    def floating_point_ops(self, inputs: Batch) -> int:
        return 0  # nobody reads it, and counting walks over all parameters at each step

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self.step_losses += 0 * norm  # a norm that is not finite is as bad as such a loss
        if self.args.device.type == "cpu":
            self.check_finite()  # before the optimizer spoils the weights; on a GPU this would wait for the device
        return norm

    def check_finite(self) -> float:
        """The losses since the last `take_losses`, summed; raises Failure if one was not finite."""
        total = float(self.step_losses)
        if not np.isfinite(total):
            step = self.state.global_step + 1
            raise Failure(
                Reason.DIVERGED,
                f"the loss or its gradient is {total} at or before step {step}; the last good checkpoint is kept",
            )
        return total

    def take_losses(self) -> float:
        """As check_finite, and start to sum anew."""
        total = self.check_finite()
        self.step_losses.zero_()
        return total

    def assess(self, rows: Rows, check: Callable[[], None]) -> tuple[Metrics, dict[str, Any]]:
        """Metrics of the model as it is on `rows`. `check` is called between batches and may raise.

        It draws no random number and leaves no gradient: training goes on as if it had not been.
        """
        self.model.eval()
        judgements, items = [], 0
        with torch.no_grad(), self.autocast():
            for batch in self._evaluation_batches(rows):
                check()
                items += batch["items"]
                judgements.append(self.judge(self._prepare_inputs(batch)))
        self.model.train()
        loss = float(sum(judgement.loss for judgement in judgements)) / max(items, 1)
        if not np.isfinite(loss):
            raise Failure(Reason.DIVERGED, f"the loss on held-out data is {loss} at step {self.state.global_step}")
        return self.metrics(loss, judgements)

    def _evaluation_batches(self, rows: Rows) -> Iterable[Batch]:
        size = self.args.per_device_eval_batch_size
        return (self.collate([rows[index] for index in batch]) for batch in by_length(rows.lengths, size))

    # Resume: what transformers.Trainer asks for at the points where it would read its own checkpoints.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.restore_weights(self._resumed(), self)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_optimizer(self._resumed(), self.model, self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_random(self._resumed())

    def _resumed(self) -> "checkpoints.Checkpoint":
        assert self.resumed_from is not None
        return self.resumed_from


def padded(rows: list[np.ndarray], fill: int) -> torch.Tensor:
    """int64 [rows, longest], filled up on the right."""
    block = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for line, row in zip(block, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(block)
