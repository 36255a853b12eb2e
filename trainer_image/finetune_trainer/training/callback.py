"""What happens between two optimizer steps: reports, evaluations, checkpoints, and the end of the run.

It decides when, by the intervals that it is given. It knows no objective and no method: a model with a loss is all it
sees.
"""

import logging
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.status import Metric
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.stop import StopRequest
from finetune_trainer.training.batching import Rows
from finetune_trainer.training.checkpoints import Store
from finetune_trainer.training.intervals import Intervals
from finetune_trainer.training.state import Event, RunState
from finetune_trainer.training.trainer import FineTuneTrainer

log = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0
"""Longest time without a report while steps are made."""


class RunCallback(TrainerCallback):
    """Follows a run from step to step and keeps its RunState."""

    def __init__(
        self,
        trainer: FineTuneTrainer,
        table: Intervals,
        store: Store,
        validation: Rows | None,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.trainer, self.table, self.store, self.validation = trainer, table, store, validation
        self.progress, self.stop = progress, stop
        self.state = trainer.resumed_from.state if trainer.resumed_from else RunState()
        self._rate = 0.0
        self._saved_step = self.state.step
        self._saved_at = self._reported_at = time.monotonic()
        self._reported_step, self._reported_tokens = self.state.step, 0

    def catch_up(self) -> None:
        """Evaluate the step of the checkpoint, with its weights, if the attempt before was stopped too early for it."""
        if self._evaluation_due():
            self._evaluate()
        self._finish_if_over()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_at = time.monotonic()
        self._restart_clock()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._rate = self.trainer.lr_scheduler.get_last_lr()[0]  # of this step: the schedule moves on before it ends
        self.trainer.after_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.state = self.state.model_copy(update={"step": state.global_step})
        if self._report_due():
            self._report()
        if not self.stop.is_set() and self._evaluation_due():
            self._evaluate()
        self._finish_if_over()
        if self.stop.is_set() or self.state.finished or self._checkpoint_due():
            self.checkpoint()
        control.should_training_stop = self.stop.is_set() or bool(self.state.finished)

    def _finish_if_over(self) -> None:
        if self.state.step >= self.table.total_steps and not self._evaluation_due() and not self.state.finished:
            self.state = self.state.model_copy(update={"finished": "steps"})

    def checkpoint(self) -> None:
        """Save the run as it stands, unless that was done already."""
        if self.state.step == self._saved_step:
            return
        self._report()
        started = time.monotonic()
        self.progress.update(activity="checkpointing")
        self.store.save(self.trainer, self.state)
        self._saved_step, self._saved_at = self.state.step, time.monotonic()
        log.info("checkpoint at step %d (%.2f s)", self.state.step, self._saved_at - started)
        self.progress.update(activity="training", checkpoint_step=self.state.step)
        self._restart_clock()

    def _report_due(self) -> bool:
        overdue = time.monotonic() - self._reported_at > SILENCE_SECONDS
        return self.state.step % self.table.report_every == 0 or self.state.step >= self.table.total_steps or overdue

    def _report(self) -> None:
        steps = self.state.step - self._reported_step
        if steps <= 0:
            return
        seconds, tokens = time.monotonic() - self._reported_at, self.trainer.tokens - self._reported_tokens
        loss = self.trainer.take_losses() / steps
        seen = {"tokens": self.state.tokens + tokens, "seconds": self.state.seconds + seconds}
        self.state = self.state.model_copy(update=seen)
        speed = tokens / seconds if seconds > 0 else None
        self._record(
            Event(
                step=self.state.step, epoch=self._epoch(), loss=loss, learning_rate=self._rate, tokens_per_second=speed
            )
        )
        self.progress.update(
            activity="training", step=self.state.step, total_steps=self.table.total_steps, epoch=self._epoch(),
            loss=loss, learning_rate=self._rate, tokens_per_second=speed,
        )  # fmt: skip
        log.info(
            "step %d/%d  loss %.4f  lr %.2e  %.0f tokens/s",
            self.state.step,
            self.table.total_steps,
            loss,
            self._rate,
            speed or 0,
        )
        self._restart_clock()

    def _restart_clock(self) -> None:
        """Steps are timed; what happens between them is not."""
        self._reported_at, self._reported_step, self._reported_tokens = (
            time.monotonic(),
            self.state.step,
            self.trainer.tokens,
        )

    def _evaluation_due(self) -> bool:
        due = self.table.evaluation_due(self.state.step)
        return self.validation is not None and due and self.state.evaluated_step < self.state.step

    def _evaluate(self) -> None:
        assert self.validation is not None
        self._report()
        self.progress.update(activity="evaluating")
        try:
            metrics, _ = self.trainer.assess(self.validation, self._check)
        except _Interrupted:
            return  # the step is checkpointed; the next attempt evaluates it
        loss = metrics[Metric.LOSS]
        self._record(Event(step=self.state.step, epoch=self._epoch(), eval_loss=loss))
        self._keep_best(loss, can_be_kept=self.trainer.method.can_be_kept(self.trainer.model, self.state.step))
        log.info(
            "step %d/%d  validation loss %.4f%s",
            self.state.step,
            self.table.total_steps,
            loss,
            "  (best)" if self.state.stale == 0 else "",
        )
        self.progress.update(activity="training", eval_loss=loss)
        self._restart_clock()

    def _keep_best(self, loss: float, can_be_kept: bool) -> None:
        """Keep the best weights, and count evaluations that brought nothing."""
        was = self.state
        if not can_be_kept:
            self.state = was.model_copy(update={"evaluated_step": was.step})
            return
        changes: dict[str, Any] = {"evaluated_step": was.step, "stale": was.stale + 1}
        if was.best_loss is None or loss < was.best_loss:
            self.store.save_best(self.trainer.model, was.step)
            changes |= {"best_step": was.step, "best_loss": loss}
        if was.bar is None or loss < was.bar - self.table.min_delta:
            changes |= {"bar": loss, "stale": 0}
        self.state = was.model_copy(update=changes)
        if self.table.patience is not None and self.state.stale >= self.table.patience:
            log.info("the validation loss has not fallen for %d evaluations: stopping early", self.state.stale)
            self.state = self.state.model_copy(update={"finished": "early"})

    def _checkpoint_due(self) -> bool:
        steps, seconds = self.table.checkpoint_steps, self.table.checkpoint_seconds
        if steps is not None:
            return self.state.step % steps == 0
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _record(self, event: Event) -> None:
        self.state = self.state.model_copy(update={"history": [*self.state.history, event]})

    def _epoch(self) -> float:
        return float(self.trainer.state.epoch or 0.0)

    def _check(self) -> None:
        if self.stop.is_set():
            raise _Interrupted


class _Interrupted(Exception):
    """An evaluation was left because the run is asked to stop."""
