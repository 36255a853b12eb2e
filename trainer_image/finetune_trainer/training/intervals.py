"""When a run reports, evaluates and saves, counted in steps or seconds."""

from dataclasses import dataclass

from finetune_api.spec.job_spec import FineTuneJobSpec

LINES = 200
"""Lines of history that a run is divided into, at least."""


@dataclass(frozen=True)
class Intervals:
    """When what is due; steps are counted from 1."""

    total_steps: int
    evaluate_every: int
    checkpoint_steps: int | None
    checkpoint_seconds: float | None
    patience: int | None
    min_delta: float

    def evaluation_due(self, step: int) -> bool:
        return step > 0 and (step % self.evaluate_every == 0 or step == self.total_steps)

    @property
    def report_every(self) -> int:
        return max(1, self.total_steps // LINES)


def intervals_of(spec: FineTuneJobSpec, total_steps: int) -> Intervals:
    """Those of a resolved spec; ten evaluations unless it says otherwise."""
    minutes, stopping = spec.checkpoint.every_minutes, spec.training.early_stopping
    return Intervals(
        total_steps=total_steps,
        evaluate_every=spec.evaluation.every_steps or max(1, -(-total_steps // 10)),
        checkpoint_steps=spec.checkpoint.every_steps,
        checkpoint_seconds=None if minutes is None else 60.0 * minutes,
        patience=stopping.patience if stopping else None,
        min_delta=stopping.min_delta if stopping else 0.0,
    )
