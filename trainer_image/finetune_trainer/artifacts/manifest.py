"""manifest.json and metrics.json of the artifact: where it came from, what is in it, what was measured.

It says what was recorded, and digests what is there. It measures nothing.
"""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.run import Run
from finetune_trainer.artifacts.result import ARTIFACT, Result
from finetune_trainer.artifacts.verification import files_in
from finetune_trainer.data.prepared import Prepared
from finetune_trainer.runtime.files import sha256
from finetune_trainer.runtime.workspace import Workspace


@dataclass(frozen=True)
class Publication:
    """What is published, and where."""

    run: Run
    workspace: Workspace
    page: Prepared
    result: Result
    target: Path

    @property
    def trained(self) -> Path:
        return self.workspace.result / ARTIFACT


def manifest(publication: Publication, folder: Path) -> dict[str, Any]:
    """What the artifact is made of and where it came from: enough to check it and to make it again."""
    run, page, result = publication.run, publication.page, publication.result
    return {
        "job": {"name": run.name, "namespace": run.namespace, "uid": run.uid},
        "kind": result.kind,
        "baseModel": {"uri": run.spec.model.uri, "revision": page.model_revision},
        **({"startFrom": page.start.to_wire(exclude={"key"})} if page.start else {}),
        "data": page.data.to_wire(),
        "plan": page.plan.to_wire(),
        "metrics": metrics(result),
        "spec": run.spec.to_wire(),
        "versions": {"python": platform.python_version(), **result.versions},
        "trainerImage": run.trainer_image,
        "files": {
            str(path.relative_to(folder)): {"sha256": sha256(path), "sizeBytes": path.stat().st_size}
            for path in files_in(folder)
        },
    }


def metrics(result: Result) -> dict[str, Any]:
    """All that was measured, as in metrics.json."""
    state, evaluation = result.state, result.evaluation
    training = {
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "finished": state.finished,
    }
    speed = {"tokensPerSecond": round(state.tokens / state.seconds, 1)} if state.seconds > 0 else {}
    models = {
        name: {**scores, **result.details.get(name, {})}
        for name, scores in (("base", evaluation.base), ("tuned", evaluation.tuned))
        if scores is not None
    }
    return {"split": evaluation.split, **models, "training": {**training, **speed, "bestStep": evaluation.best_step}}
