"""A FineTuneJob as the API server stores it, whichever release wrote it, read as far as this command can.

What cannot be read is said, and hides nothing else: a list of jobs is shown although one of them is newer than we are.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.reasons import Phase
from finetune_api.spec import FineTuneJobSpec, Metadata
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
    try:
        spec = FineTuneJobSpec.model_validate(body["spec"], extra="ignore")
        _ = spec.method.kind, spec.objective.kind  # a member that we do not know was left out
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("spec", *(str(part) for part in first["loc"])))
        return StoredJob(metadata, status, None, f"{place}: {first['msg']}")
    except ValueError:
        return StoredJob(metadata, status, None, "spec: its objective or method is not known here")
    return StoredJob(metadata, status, spec)
