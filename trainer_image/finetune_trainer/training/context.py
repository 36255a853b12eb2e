"""What every step of training needs to know, read from the workspace once: which run it is, and on which rows."""

import hashlib
import json
from dataclasses import dataclass

from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec.dataset import SplitName
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_trainer.data.prepared import Prepared, open_split, read_prepared
from finetune_trainer.pretrained.initial_adapter import from_composed
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.stop import StopRequest
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.training.batching import Rows
from finetune_trainer.training.state import Identity


@dataclass(frozen=True)
class Stage:
    """What every step of the stage needs to know."""

    run: Run
    page: Prepared
    workspace: Workspace
    progress: Progress
    stop: StopRequest
    identity: Identity

    @property
    def spec(self) -> FineTuneJobSpec:
        return from_composed(self.run.spec, self.workspace.start)

    def rows(self, name: SplitName) -> Rows | None:
        """The rows of a split; None where it is switched off or empty."""
        split = open_split(self.workspace, self.page, name)
        return Rows(split, packed=self.page.packing and name == "train") if split is not None and len(split) else None


def stage_of(run: Run, workspace: Workspace, progress: Progress, stop: StopRequest) -> Stage:
    page = read_prepared(workspace)
    if page is None:
        raise Failure(Reason.INPUT_UNAVAILABLE, f"{workspace.prepared} holds no prepared data: run `prepare` first")
    recipe = run.spec.to_wire(include={"objective", "method", "training"})
    if page.start is not None:
        recipe["start"] = page.start.digest
    identity = Identity(
        uid=run.uid,
        data=page.data.fingerprint or "",
        base=page.model_revision,
        recipe=hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
    )
    return Stage(run, page, workspace, progress, stop, identity)
