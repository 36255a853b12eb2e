"""FineTuneJobs as the tests speak of them: apply one, wait for its end, find its pods and volumes.

It knows the contract's names and words. It asserts only what every test takes for granted.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from e2e.kubectl import Kubectl, Object
from finetune_api import labels

ENDS = ("Succeeded", "Failed")


class Jobs:
    """The FineTuneJobs of one namespace."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.applied: list[str] = []

    def apply(self, manifest: Path | Object) -> str:
        """Apply a job and give its name."""
        body = yaml.safe_load(manifest.read_text(encoding="utf-8")) if isinstance(manifest, Path) else manifest
        self.kubectl.apply(manifest)
        self.applied.append(body["metadata"]["name"])
        return self.applied[-1]

    def get(self, name: str) -> Object:
        return self.kubectl.get("finetunejob", name)

    def until(self, name: str, is_true: Callable[[Object], bool], what: str, seconds: float = 300) -> Object:
        """The job as soon as `is_true` of it. A job that has ended will not change, so its end ends the wait."""
        seen = self.kubectl.until("finetunejob", name, lambda job: is_true(job) or phase(job) in ENDS, what, seconds)
        assert is_true(seen), f"{name} ended before {what}: {explanation(seen)}"
        return seen

    def until_succeeded(self, name: str, seconds: float = 600) -> Object:
        return self.until(name, lambda job: phase(job) == "Succeeded", "Succeeded", seconds)

    def until_failed(self, name: str, seconds: float = 300) -> Object:
        return self.until(name, lambda job: phase(job) == "Failed", "Failed", seconds)

    def until_step(self, name: str, step: int, seconds: float = 300) -> Object:
        """As soon as the job trains and has done `step` steps."""
        return self.until(name, lambda job: phase(job) == "Training" and steps(job) >= step, f"step {step}", seconds)

    def suspend(self, name: str, suspend: bool) -> None:
        patch = f'{{"spec": {{"suspend": {str(suspend).lower()}}}}}'
        self.kubectl("patch", "finetunejob", name, "--type=merge", "--patch", patch)

    def pods(self, name: str, stage: str) -> list[Object]:
        """Pods of a stage, oldest first."""
        return self.kubectl.all("pod", f"{labels.JOB_LABEL}={name},{labels.STAGE_LABEL}={stage}")

    def stage_jobs(self, name: str) -> dict[str, Object]:
        """The Kubernetes Jobs of a job by their stage."""
        found = self.kubectl.all("job", f"{labels.JOB_LABEL}={name}")
        return {job["metadata"]["labels"][labels.STAGE_LABEL]: job for job in found}

    def workspace(self, name: str) -> str:
        """The name of the claim that the stages share."""
        return labels.child_name(name, self.get(name)["metadata"]["uid"], "workspace")

    def delete(self, name: str) -> None:
        """Delete a job; what it owns is gone too when this returns."""
        self.kubectl(
            "delete", "finetunejob", name, "--ignore-not-found", "--cascade=foreground", "--timeout=180s", seconds=200
        )
        if name in self.applied:
            self.applied.remove(name)

    def delete_all(self) -> None:
        for name in list(self.applied):
            self.delete(name)


def phase(job: Object) -> str:
    return str(job.get("status", {}).get("phase", ""))


def steps(job: Object) -> int:
    progress = job.get("status", {}).get("progress", {})
    return int(progress.get("step", 0)) if progress.get("stage") == "train" else 0


def condition(job: Object, kind: str) -> dict[str, Any]:
    """A condition of a job; empty where it has none of that type."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def has_reason(job: Object, reason: str) -> bool:
    return any(one["reason"] == reason for one in job.get("status", {}).get("conditions", []))


def explanation(job: Object) -> str:
    """The job's conditions, a line each."""
    lines = (
        f"{one['type']}={one['status']} {one['reason']}: {one['message']}"
        for one in job.get("status", {}).get("conditions", [])
    )
    return "\n  ".join([phase(job), *lines])
