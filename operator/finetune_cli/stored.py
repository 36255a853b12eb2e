"""A FineTuneJob as the API server stores it, whichever release wrote it, read as far as this command can.

What cannot be read is said, and hides nothing else: a list of jobs is shown although one of them is newer than we are.
"""

from dataclasses import dataclass
from typing import Any

from finetune_api.reasons import Phase
from finetune_api.spec.job_spec import FineTuneJobSpec, Metadata, read_spec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.status import brought_back

ENDED = (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class StoredJob:
    """What is known of it."""

    metadata: Metadata
    status: FineTuneJobStatus
    spec: FineTuneJobSpec | None
    """Without the fields that only a newer release knows; None: it cannot be read."""
    problem: str = ""
    """Why it cannot."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens: a failed job whose limits were raised goes on once the operator sees it."""
        return self.status.phase in ENDED and brought_back(self.spec, self.status) is None


def stored_job(body: dict[str, Any]) -> StoredJob:
    """Read the object."""
    metadata, status = Metadata.model_validate(body["metadata"]), FineTuneJobStatus.read(body.get("status") or {})
    spec, problem = read_spec(body["spec"])
    return StoredJob(metadata, status, spec, problem)
