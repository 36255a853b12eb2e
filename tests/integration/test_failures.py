"""Each class of failure is produced for real, and named in a condition within five seconds of being visible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from integration.kubelet import Api, Job, eventually
from integration.operators import Operator
from integration.test_life import PREPARED, TRAINED

pytestmark = pytest.mark.integration

Submit = Callable[..., Job]
SOON = 5
"""Seconds: the issue's promise."""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (64, "BadSpec"),
        (65, "DatasetInvalid"),
        (66, "InputUnavailable"),
        (76, "Diverged"),
        (77, "AccessDenied"),
        (78, "Unsupported"),
    ],
)
def test_a_permanent_exit_code_fails_the_job_at_its_first_try(submit: Submit, code: int, reason: str) -> None:
    """Without a report the exit code names the class; no allowed try is wasted; no train Job exists."""
    job = submit(retry={"limit": 3})
    pod = job.new_pod("prepare")
    pod.start()
    pod.end(code)
    failed = job.wait_reason(reason, "Failed", SOON)
    assert f"exit code {code}" in failed["message"]
    assert job.child_job("train") is None
    assert len(job.pods()) == 1
    eventually(lambda: reason in job.events(), "the failure is told")  # Events follow the status


def test_the_report_says_more_than_the_exit_code(submit: Submit) -> None:
    """The termination message's reason and words win, and the next step is added."""
    job = submit()
    pod = job.new_pod("prepare")
    pod.start()
    pod.end(66, {"stage": "prepare", "reason": "ModelUnavailable", "message": "no folder base in claim models"})
    message = job.wait_reason("ModelUnavailable", "Failed", SOON)["message"]
    assert message.startswith("no folder base in claim models. Check spec.model.uri")


@pytest.mark.parametrize(
    "garbage",
    [
        "\x00\x01 not json",
        '{"stage": "prepare", "plan": {"totalParameters": 123456789012345678901234567890}}',
        '{"stage": "publish", "reason": "Diverged"}',
        '{"stage": "prepare", "reason": "NameConflict"}',
        "x" * 4096,
    ],
)
def test_a_garbled_report_is_ignored(submit: Submit, garbage: str) -> None:
    """What is not a report of this stage, or more than a trainer may claim, leaves the exit code to speak."""
    job = submit()
    pod = job.new_pod("prepare")
    pod.start()
    pod.end(65, garbage)
    job.wait_reason("DatasetInvalid", "Failed", SOON)


def test_a_killed_container_is_out_of_memory(submit: Submit) -> None:
    """OOMKilled is said at once, and fails the job when no try is left."""
    job = submit(retry={"limit": 1})
    job.run_stage("prepare", **PREPARED)
    for _ in range(2):
        pod = job.new_pod("train", seconds=40)
        pod.start()
        pod.end(137, reason="OOMKilled")
        job.wait_reason("OutOfMemory", seconds=SOON)
    status = job.wait_phase("Failed", SOON)
    assert "microBatchSize" in job.condition("Failed")["message"]
    assert [attempt["reason"] for attempt in status["attempts"]] == ["OutOfMemory", "OutOfMemory"]


def test_a_preempted_pod_is_replaced_and_costs_no_try(submit: Submit) -> None:
    """With no try allowed, the run survives preemption, and counts it and the steps that it cost."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    first = job.new_pod("train")
    first.start()
    job.wait_reason("Training")
    first.disrupt()
    job.wait_reason("Preempted", seconds=SOON)
    first.end(75, {"stage": "train", "reason": "Preempted", "progress": {"stage": "train", "step": 40}})
    second = job.new_pod("train")
    second.start()
    second.end(0, {"stage": "train", "progress": {"stage": "train", "resumedFromStep": 30, "step": 100}})
    job.run_stage("publish", artifact={"uri": "pvc://results/tuned", "digest": "sha256:abc"})
    status = job.wait_phase("Succeeded")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Preempted", "Succeeded"]
    assert status["recovery"] == {"restarts": 1, "stepsLost": 10}


@pytest.mark.parametrize("waiting", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled(submit: Submit, waiting: str) -> None:
    """The kubelet's waiting reason becomes ImagePullFailed, and goes away by itself."""
    job = submit()
    pod = job.new_pod("prepare")
    pod.wait(waiting, "manifest unknown")
    assert "manifest unknown" in job.wait_reason("ImagePullFailed", seconds=SOON)["message"]
    assert job.status()["phase"] == "Waiting"
    pod.start()
    job.wait_reason("Preparing", seconds=SOON)


def test_an_unschedulable_pod(submit: Submit) -> None:
    """The scheduler's words are handed on."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    job.new_pod("train").refuse("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    assert "nvidia.com/gpu" in job.wait_reason("Unschedulable", seconds=SOON)["message"]


def test_a_missing_claim(submit: Submit) -> None:
    """A PersistentVolumeClaim that does not exist is VolumeNotReady, by name."""
    job = submit()
    job.new_pod("prepare").refuse('0/1 nodes are available: persistentvolumeclaim "models" not found.')
    assert '"models" not found' in job.wait_reason("VolumeNotReady", seconds=SOON)["message"]


@pytest.mark.parametrize(
    ("complaint", "reason"),
    [
        ('MountVolume.SetUp failed for volume "place-0" : secret "hub" not found', "SecretNotFound"),
        ('MountVolume.SetUp failed for volume "place-0" : configmap "data" not found', "ConfigMapNotFound"),
        ("Unable to attach or mount volumes: timed out waiting for the condition", "VolumeNotReady"),
    ],
)
def test_a_mount_that_fails(submit: Submit, complaint: str, reason: str) -> None:
    """Only the pod's Events tell of a failed mount; the operator, which may read no Secret, learns it there."""
    job = submit()
    pod = job.new_pod("prepare")
    pod.complain(complaint)
    job.wait_reason(reason, seconds=SOON)
    pod.start()
    job.wait_reason("Preparing", seconds=SOON)


def test_a_quota_that_is_full(
    api: Api, namespace: str, start_operator: Callable[..., Operator], submit_alone: Submit
) -> None:
    """When the namespace's quota lets no pod in, the Job controller's words are handed on."""
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.create(path, quota)
    eventually(lambda: (api.get(f"{path}/none") or {}).get("status", {}).get("hard"), "the quota holds")
    start_operator()
    assert "exceeded quota" in submit_alone().wait_reason("QuotaExceeded", seconds=30)["message"]


def test_a_spec_that_kubernetes_refuses(api: Api, submit: Submit) -> None:
    """What our schema lets pass and the Job's does not is a bad spec, in the API server's words. A run that had begun
    keeps its checkpoints, also when the job is deleted, and goes on with the field corrected."""
    job = submit(podTemplate={"metadata": annotations("a"), "stages": {"train": {"metadata": annotations("b")}}})
    job.run_stage("prepare", **PREPARED)
    assert "annotations: Too long" in job.wait_reason("BadSpec", "Failed", 20)["message"]
    assert job.condition("Accepted")["status"] == "False"
    claim = f"/api/v1/namespaces/{job.namespace}/persistentvolumeclaims/{job.name}-{job.uid[:5]}-workspace"
    assert "ownerReferences" not in (api.get(claim) or {})["metadata"]
    job.edit(podTemplate=None, restarts=1)
    job.new_pod("train")


def annotations(prefix: str) -> dict[str, Any]:
    """Half of what a pod may have, and a little more."""
    return {"annotations": {f"{prefix}{number}": "x" * 4096 for number in range(32)}}


def test_a_deadline_that_passes(submit: Submit) -> None:
    """The pod's active seconds are counted; at the deadline its Job is deleted and the job has failed."""
    job = submit(deadlineSeconds=2)
    pod = job.new_pod("prepare")
    pod.start()
    job.wait_reason("DeadlineExceeded", "Failed", 2 + SOON)
    assert job.child_job("prepare") is None
    eventually(lambda: pod.reload().is_deleting(), "the pod is told to end")


def test_a_push_that_fails(submit: Submit) -> None:
    """publish is retried alone; when that is over the message says that nothing trained is lost."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    job.run_stage("train", **TRAINED)
    pod = job.new_pod("publish")
    pod.start()
    pod.end(73)
    assert "kept on the workspace" in job.wait_reason("ArtifactPushFailed", "Failed", SOON)["message"]
    assert job.status()["evaluation"]["tuned"]["loss"] == 2.0


def test_a_publish_without_a_digest(submit: Submit) -> None:
    """Exit code 0 is not enough: without a verified manifest there is no Succeeded."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    job.run_stage("train", **TRAINED)
    job.run_stage("publish")
    job.wait_reason("ArtifactInvalid", "Failed", SOON)


@pytest.mark.parametrize("code", [70, 1])
def test_tries_that_run_out(submit: Submit, code: int) -> None:
    """A code that another try may heal fails the job when none is left."""
    job = submit(retry={"limit": 0})
    pod = job.new_pod("prepare")
    pod.start()
    pod.end(code)
    job.wait_reason("InternalError", "Failed", SOON)
    assert [one.name for one in job.pods("prepare")] == [pod.name], "its log is there to be read"


@pytest.mark.parametrize("code", [75, 143, 137])
def test_a_pod_that_is_deleted_by_hand_costs_no_try(api: Api, submit: Submit, code: int) -> None:
    """With no try allowed: whether it stopped with a checkpoint, without, or was killed when its grace was over."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    job.wait_reason("Training")
    api.delete(f"/api/v1/namespaces/{job.namespace}/pods/{pod.name}")
    pod.end(code)
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", artifact={"uri": "pvc://results/tuned", "digest": "sha256:abc"})
    assert [attempt["reason"] for attempt in job.wait_phase("Succeeded")["attempts"]] == ["Preempted", "Succeeded"]


def test_a_checkpoint_that_gets_further_makes_a_failure_good(submit: Submit) -> None:
    """`retry.limit` counts tries that bring the run no further: of three crashes, only those without progress."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    for step in (20, 40):
        pod = job.new_pod("train", seconds=40)
        pod.start()
        resumed = {"resumedFromStep": step - 20, "step": step + 5, "checkpointStep": step}
        pod.end(
            70, {"stage": "train", "reason": "InternalError", "message": "x", "progress": {"stage": "train", **resumed}}
        )
    pod = job.new_pod("train", seconds=40)
    pod.start()
    stuck = {"resumedFromStep": 40, "step": 45, "checkpointStep": 40}
    pod.end(70, {"stage": "train", "reason": "InternalError", "message": "x", "progress": {"stage": "train", **stuck}})
    assert len(job.wait_phase("Failed", SOON)["attempts"]) == 3


def test_a_try_that_is_repeated(submit: Submit) -> None:
    """Between two tries the status says why, and that it goes on by itself."""
    job = submit(retry={"limit": 1})
    pod = job.new_pod("prepare")
    pod.start()
    pod.end(70, {"stage": "prepare", "reason": "InternalError", "message": "the disk hiccuped"})
    assert "the disk hiccuped" in job.wait_reason("Retrying", seconds=SOON)["message"]
    job.run_stage("prepare", **PREPARED)
    job.wait_reason("Starting")


def test_an_object_in_the_way(api: Api, submit: Submit) -> None:
    """Somebody else's object under a child's name is neither used nor changed; once it is gone the job goes on."""
    job = submit(suspend=True)
    job.wait_phase("Suspended")
    name = f"{job.name}-{job.uid[:5]}-run"
    path = f"/api/v1/namespaces/{job.namespace}/configmaps"
    theirs = {"metadata": {"name": name}, "data": {"run.json": "theirs"}}
    created = api.create(path, theirs)
    job.edit(suspend=False)
    assert name in job.wait_reason("NameConflict", seconds=SOON)["message"]
    assert job.child_jobs() == []
    found: dict[str, Any] = api.get(f"{path}/{name}") or {}
    assert found["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]
    api.delete(f"{path}/{name}")
    job.new_pod("prepare", seconds=45)
