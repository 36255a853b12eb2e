"""The one training path: a transformers.Trainer whose batches, precision, bookkeeping and resume are ours.

What is decided here holds for every objective: records of similar length share a micro-batch, the loss of an optimizer
step is the mean over all that its micro-batches learn, a loss that is not finite ends the run, and a resumed run goes
on bit for bit. It knows no objective and no method by name.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

from finetune_api.reasons import Reason
from finetune_api.status import Metric
from finetune_trainer.methods.method import TuningMethod
from finetune_trainer.objectives.objective import Batch, Objective
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.training import checkpoints
from finetune_trainer.training.batching import EpochBatches, EpochLoader, Rows, by_length


class FineTuneTrainer(transformers.Trainer):
    """Trains a model for `objective` on `rows`."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the items of the whole step

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments,
        rows: Rows,
        objective: Objective,
        method: TuningMethod,
        rates: dict[str, float],
    ) -> None:
        """`rates` are learning rates of single parameters, by name; all others have that of `args`."""
        self.use_cache = model.config.use_cache if hasattr(model.config, "use_cache") else None
        super().__init__(model=model, args=args, train_dataset=rows)
        self.remove_callback(transformers.PrinterCallback)
        self.objective: Objective = objective
        self.method, self.rates = method, rates
        self.step_losses = torch.zeros((), device=args.device)
        self.tokens = 0
        self.resumed_from: checkpoints.Checkpoint | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.train_dataset
        batches = EpochBatches(rows.lengths, self.args.per_device_train_batch_size, self.args.seed)
        return EpochLoader(rows, batch_sampler=batches, collate_fn=self.objective.collate, generator=torch.Generator())

    def autocast(self) -> Any:
        return self.objective.autocast(self.args.device)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        self.tokens += inputs["tokens"]
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self.autocast():
            loss = self.objective.compute_loss(model, inputs).loss / num_items_in_batch
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

    def assess(self, rows: Rows, check: Callable[[], None]) -> tuple[dict[Metric, float], dict[str, Any]]:
        """Metrics of the model as it is on `rows`. `check` is called between batches and may raise.

        It draws no random number and leaves no gradient: training goes on as if it had not been.
        """
        self.model.eval()
        outputs, items = [], 0
        with torch.no_grad(), self.autocast():
            for batch in self._evaluation_batches(rows):
                check()
                items += batch["items"]
                outputs.append(self.objective.compute_loss(self.model, self._prepare_inputs(batch)))
        self.model.train()
        loss = float(sum(output.loss for output in outputs)) / max(items, 1)
        if not np.isfinite(loss):
            raise Failure(Reason.DIVERGED, f"the loss on held-out data is {loss} at step {self.state.global_step}")
        return self.objective.metrics(loss, outputs)

    def _evaluation_batches(self, rows: Rows) -> Iterable[Batch]:
        size = self.args.per_device_eval_batch_size
        return (self.objective.collate([rows[index] for index in batch]) for batch in by_length(rows.lengths, size))

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
