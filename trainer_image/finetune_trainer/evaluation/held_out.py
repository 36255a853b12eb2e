"""Base and tuned model on data that training never saw.

It decides which split judges, and that the base model is measured once, before the first step.
"""

from typing import Any

from finetune_api.schema import ApiModel
from finetune_api.status import Metrics
from finetune_trainer.data.prepared import tokenizer_folder
from finetune_trainer.evaluation.generation import answers
from finetune_trainer.runtime.files import write_file
from finetune_trainer.training.context import Stage
from finetune_trainer.training.state import Identity, check_identity
from finetune_trainer.training.trainer import FineTuneTrainer


class HeldOut(ApiModel):
    """One model on one split."""

    split: str
    metrics: Metrics
    details: dict[str, Any] = {}
    """What is too large for a status, such as the confusion matrix."""


class Baseline(ApiModel):
    """The base model, measured before the first step."""

    identity: Identity
    held_out: HeldOut | None = None
    answers: list[str] = []


def measured_base(stage: Stage, trainer: FineTuneTrainer) -> Baseline:
    """What the base model scores, measured before the first step; a resumed run finds it on the workspace."""
    place = stage.workspace.checkpoints / "baseline.json"
    if place.exists():
        baseline = Baseline.model_validate_json(place.read_bytes())
        check_identity(baseline.identity, stage.identity, place)
        return baseline
    tuned, trainer.model = trainer.model, trainer.method.untouched(trainer.model)
    baseline = Baseline(identity=stage.identity, held_out=measured(stage, trainer), answers=answered(stage, trainer))
    trainer.model = tuned
    write_file(place, baseline.model_dump_json(by_alias=True))
    return baseline


def measured(stage: Stage, trainer: FineTuneTrainer) -> HeldOut | None:
    """Metrics on the test split, else on the validation split, else none."""
    stage.progress.update(activity="evaluating")
    for name in ("test", "validation"):
        rows = stage.rows(name)
        if rows is not None:
            metrics, details = trainer.assess(rows, stage.stop.check)
            return HeldOut(split=name, metrics=metrics, details=details)
    return None


def answered(stage: Stage, trainer: FineTuneTrainer) -> list[str]:
    if not trainer.objective.head(tuple(stage.page.labels)).generates:
        return []
    stage.progress.update(activity="generating")
    return answers(trainer, tokenizer_folder(stage.workspace), stage.spec.evaluation, stage.stop.check)
