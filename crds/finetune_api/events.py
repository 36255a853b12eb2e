"""What a trainer pod says to the operator: a live page and one last word. Both are data from a pod, so both are
bounded and checked."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.reasons import Reason
from finetune_api.schema import ApiModel
from finetune_api.stages import StageName
from finetune_api.status import Artifact, Data, EvaluationResult, Plan

Count = Annotated[int, Field(ge=0, le=2**53)]
Figure = Annotated[float, Field(ge=-1e30, le=1e30)]

PROGRESS_LIMIT = 16 * 1024
"""Bytes of a `/progress` page; the operator reads no more."""
TERMINATION_LIMIT = 4096
"""Bytes of a termination message (the kubelet's limit)."""


class ProgressReport(ApiModel):
    """The JSON page that each trainer pod serves at `/progress`."""

    stage: StageName
    """The running stage."""
    activity: Literal[
        "starting",
        "loading",
        "reading",
        "training",
        "evaluating",
        "checkpointing",
        "generating",
        "writing",
        "verifying",
        "done",
    ] = "starting"
    """What it is doing just now."""
    step: Count = 0
    """Optimizer steps done over all attempts; records read in prepare; files done in publish."""
    total_steps: Count = 0
    """The same at the end; 0 while unknown."""
    resumed_from_step: Count = 0
    """Step that this process started from."""
    epoch: Annotated[float, Field(ge=0, le=1e9)] = 0
    """Passes over the data done."""
    loss: Figure | None = None
    """Mean training loss since the last report."""
    eval_loss: Figure | None = None
    """Latest validation loss."""
    learning_rate: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Current learning rate."""
    tokens_per_second: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """Tokens, padding excluded."""
    checkpoint_step: Count = 0
    """Step of the latest complete checkpoint."""


class StageReport(ApiModel):
    """The termination message: what the stage leaves in the operator's hands when its process ends."""

    stage: StageName
    """The stage that ended."""
    reason: Reason | None = None
    """Absent after success."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """For people: what went wrong, with field or file and line."""
    plan: Plan | None = None
    """From prepare; again from publish."""
    data: Data | None = None
    """From prepare; again from publish."""
    progress: ProgressReport | None = None
    """The last progress, from train."""
    evaluation: EvaluationResult | None = None
    """From train; again from publish."""
    artifact: Artifact | None = None
    """From publish."""
