"""Observed jobs for the tests of the operator's pure core: short to write, and everything else at its default."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import labels
from finetune_api.spec.job_spec import FineTuneJobSpec, Metadata
from finetune_api.stages import StageName
from finetune_api.status import FineTuneJobStatus, PinnedRun
from finetune_operator.manifests import frozen_run, run_config_map
from finetune_operator.observed_state import Claim, Observed, Pod, RunFile, StageJob, Termination, run_file, timestamp
from finetune_operator.settings import Settings

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SETTINGS = Settings(trainer_image="registry.example/trainer:1")
UID = "0a1b2c3d-0000-4000-8000-000000000000"
METADATA = Metadata(name="support-bot", namespace="team", uid=UID)


def at(seconds: float) -> str:
    """The timestamp so many seconds after NOW."""
    return timestamp(NOW + timedelta(seconds=seconds))


def spec(**fields: Any) -> FineTuneJobSpec:
    """The smallest spec, and these fields in camelCase."""
    minimal = {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": {"train": [{"uri": "pvc://datasets/support.jsonl"}]},
        "output": {"uri": "pvc://models/support-bot"},
    }
    return FineTuneJobSpec.model_validate(minimal | fields)


def stage_job(stage: StageName, **facts: Any) -> StageJob:
    return StageJob("team", labels.stage_job_name(METADATA.name, UID, stage), f"uid-of-{stage}", stage, **facts)


def pod(stage: StageName, number: int = 1, **facts: Any) -> Pod:
    """A pod of the stage's Kubernetes Job."""
    name = f"{labels.child_name(METADATA.name, UID, stage)}-{number}"
    return Pod(name, f"uid-of-{name}", stage, owner=f"uid-of-{stage}", created_at=at(number), **facts)


def running(stage: StageName, number: int = 1, since: float = 0, **facts: Any) -> Pod:
    return pod(stage, number, phase="Running", is_scheduled=True, running_since=at(since), **facts)


def ended(stage: StageName, code: int, number: int = 1, start: float = 0, end: float = 60, **facts: Any) -> Pod:
    """A pod whose container ended; `message` and `reason` are its termination's."""
    message, reason = facts.pop("message", ""), facts.pop("reason", "")
    termination = Termination(code, reason, message, at(start), at(end))
    return pod(stage, number, phase="Succeeded" if code == 0 else "Failed", termination=termination, **facts)


def frozen(wanted: FineTuneJobSpec) -> RunFile:
    """The run file as it lies there for this spec."""
    return run_file(run_config_map(METADATA, frozen_run(METADATA, wanted, SETTINGS)))


def pinned(wanted: FineTuneJobSpec) -> PinnedRun:
    """The run as it is frozen for this spec."""
    return PinnedRun(digest=frozen(wanted).digest, image=SETTINGS.trainer_image)


def observed(
    *things: Pod | StageJob, status: FineTuneJobStatus | None = None, started: bool = True, **fields: Any
) -> Observed:
    """A job with these children; `started` means that its run is frozen and its workspace exists."""
    wanted = fields.pop("spec", None) or spec()
    status = status or FineTuneJobStatus()
    if started and status.run is None:
        status = status.model_copy(update={"run": pinned(wanted)})
    return Observed(
        metadata=METADATA,
        spec=wanted,
        status=status,
        run=frozen(wanted) if started else None,
        workspace=Claim("workspace", "uid-of-workspace") if started else None,
        jobs={thing.stage: thing for thing in things if isinstance(thing, StageJob)},
        pods=tuple(thing for thing in things if isinstance(thing, Pod)),
        **fields,
    )
