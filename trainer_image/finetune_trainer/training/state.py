"""Where a run stands and which run it is, besides its tensors. It imports no torch, so that every stage can read it."""

from pathlib import Path
from typing import Literal

from finetune_api.reasons import Reason
from finetune_api.schema import ApiModel
from finetune_trainer.runtime.failures import Failure


class Identity(ApiModel):
    """Which run a checkpoint belongs to. Two runs with equal identities would end in equal weights."""

    uid: str
    """Of the job."""
    data: str
    """Fingerprint of the prepared data."""
    base: str
    """Revision of the base model."""
    recipe: str
    """sha256 of objective, method and training."""


class Event(ApiModel):
    """One line of the run's history."""

    step: int
    epoch: float
    loss: float | None = None
    """Mean training loss since the previous line."""
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None


class RunState(ApiModel):
    """Where a run stands, besides its tensors."""

    step: int = 0
    tokens: int = 0
    """Tokens trained on, padding excluded."""
    seconds: float = 0
    """Time spent in training steps, over all attempts."""
    best_step: int | None = None
    best_loss: float | None = None
    bar: float | None = None
    """Validation loss that counts as no improvement any more (early stopping)."""
    stale: int = 0
    """Evaluations since the last improvement."""
    evaluated_step: int = 0
    finished: Literal["", "steps", "early"] = ""
    history: list[Event] = []


def check_identity(theirs: Identity, ours: Identity, place: Path) -> None:
    """Raise Failure if what lies at `place` was made by another run."""
    names = {"uid": "job", "data": "data", "base": "base model", "recipe": "objective, method or training"}
    differing = [names[key] for key, value in ours if getattr(theirs, key) != value]
    if differing:
        raise Failure(
            Reason.CHECKPOINT_MISMATCH,
            f"{place} belongs to another run (another {', another '.join(differing)}): "
            "use a new workspace, or delete that folder",
        )
