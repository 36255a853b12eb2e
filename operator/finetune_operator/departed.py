"""The last that was seen of pods and Kubernetes Jobs that are deleted: a clean-up may be faster than a look.

What is here is a courtesy, lost with the process: where it is missing, a stage runs again and finds its work done on
the workspace. It decides nothing.
"""

from collections import deque
from datetime import UTC, datetime
from typing import Any

from finetune_api import labels
from finetune_operator import observed_state
from finetune_operator.observed_state import Pod, StageJob, timestamp

Object = dict[str, Any]

JOBS = 2000
"""FineTuneJobs of which something is kept; the one that was heard of first gives way."""
KEPT = 16
"""Of one FineTuneJob: more pods than end between two looks at it."""


class Departed:
    """What was deleted lately, by the uid of the FineTuneJob that it belonged to."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[Pod | StageJob]] = {}

    def note(self, kind: str, body: Object) -> None:
        """A pod or Job of ours (`kind` as in its manifest) was deleted, and this is what it said last."""
        try:
            uid = body["metadata"]["labels"][labels.JOB_UID_LABEL]
            gone_at = timestamp(datetime.now(UTC))
            last = (
                observed_state.pod(body, gone_at=gone_at)
                if kind == "Pod"
                else observed_state.stage_job(body, is_gone=True)
            )
        except KeyError:  # it wears our label, and is not ours
            return
        self._seen.setdefault(uid, deque(maxlen=KEPT)).append(last)
        if len(self._seen) > JOBS:
            del self._seen[next(iter(self._seen))]

    def forget(self, uid: str) -> None:
        """The FineTuneJob has ended, or is gone."""
        self._seen.pop(uid, None)

    def pods(self, uid: str) -> list[Pod]:
        return [one for one in self._seen.get(uid, ()) if isinstance(one, Pod)]

    def job(self, uid: str, name: str) -> StageJob | None:
        """The Kubernetes Job of that name, if it had finished when it was deleted."""
        found = [one for one in self._seen.get(uid, ()) if isinstance(one, StageJob) and one.name == name]
        return found[-1] if found and found[-1].is_finished else None
