"""The life of a job when nothing goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.kubelet import Job, eventually

pytestmark = pytest.mark.integration

PREPARED = {
    "plan": {"totalSteps": 100, "trainableParameters": 1000, "totalParameters": 10000},
    "data": {"trainExamples": 900, "fingerprint": "sha256:data"},
}
TRAINED = {
    "evaluation": {"split": "test", "base": {"loss": 3.0}, "tuned": {"loss": 2.0}},
    "progress": {"stage": "train", "step": 100, "totalSteps": 100, "loss": 1.9, "checkpointStep": 100},
}
ARTIFACT = {"artifact": {"uri": "pvc://results/tuned", "digest": "sha256:abc", "sizeBytes": 12, "kind": "adapter"}}


def live(job: Job) -> None:
    """All three stages, each ending well."""
    job.run_stage("prepare", **PREPARED)
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)


def test_a_job_is_prepared_trained_and_published(submit: Callable[..., Job]) -> None:
    """Each stage's report ends up in the status, and Succeeded names the artifact's digest."""
    job = submit()
    live(job)
    status = job.wait_phase("Succeeded")
    assert status["plan"]["totalSteps"] == 100
    assert status["data"]["trainExamples"] == 900
    assert status["evaluation"]["tuned"]["loss"] == 2.0
    assert status["artifact"]["digest"] == "sha256:abc"
    assert [attempt["number"] for attempt in status["attempts"]] == [1]
    assert status["progress"]["percent"] == 100
    assert [one["type"] for one in status["conditions"] if one["status"] == "True"] == [
        "Accepted", "Prepared", "Trained", "Evaluated", "Published", "Complete", "Ready",
    ]  # fmt: skip
    told = ["Prepared", "Succeeded", "Training"]
    eventually(lambda: sorted(job.events()) == told, "every step is told once")  # Events follow the status
