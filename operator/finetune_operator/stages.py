"""What the stages of a run are to the operator, in one table. What each mounts says finetune_api.spec.references."""

from dataclasses import dataclass

from finetune_api.reasons import ConditionType, Phase, Reason
from finetune_api.stages import PREPARE, PUBLISH, TRAIN, StageName


@dataclass(frozen=True)
class Traits:
    """Of one stage."""

    phase: Phase
    """Of a job that is at it."""
    running: Reason
    """That of Progressing while its pod runs."""
    milestone: ConditionType
    """The condition that is true once it is done."""
    grace_seconds: int
    """Between SIGTERM and SIGKILL: for `train`, time for a checkpoint."""
    is_training: bool = False
    """Whether it is what GPUs, a queue, shared memory and `status.attempts` are for."""


TRAITS: dict[StageName, Traits] = {
    PREPARE: Traits(Phase.PREPARING, Reason.PREPARING, ConditionType.PREPARED, grace_seconds=30),
    TRAIN: Traits(Phase.TRAINING, Reason.TRAINING, ConditionType.TRAINED, grace_seconds=120, is_training=True),
    PUBLISH: Traits(Phase.PUBLISHING, Reason.PUBLISHING, ConditionType.PUBLISHED, grace_seconds=30),
}
