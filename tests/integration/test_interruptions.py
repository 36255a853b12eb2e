"""Suspend and resume, delete and create again, deadlines and times to live: what people do to a job while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from integration.kubelet import PODS, Api, Job, eventually
from integration.operators import Operator
from integration.test_life import ARTIFACT, PREPARED, TRAINED, live

pytestmark = pytest.mark.integration

Submit = Callable[..., Job]


def test_suspend_ends_the_pod_and_resume_goes_on(submit: Submit) -> None:
    """The pod is told to end and saves; Suspended holds once it is gone; resumed, a second attempt finishes the run."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    first = job.new_pod("train")
    first.start()
    job.wait_reason("Training")
    job.edit(suspend=True)
    eventually(lambda: first.reload().is_deleting(), "the pod is told to end")
    assert job.wait_reason("Suspending", "Suspended")["status"] == "False"
    first.end(75, {"stage": "train", "reason": "Preempted", "progress": {"stage": "train", "step": 40}})
    assert job.wait_reason("Suspended", "Suspended")["status"] == "True"
    assert job.child_job("train") is None
    job.edit(suspend=False)
    second = job.new_pod("train")
    second.start()
    job.wait_reason("Training")
    second.end(0, {"stage": "train", "progress": {"stage": "train", "resumedFromStep": 40, "step": 100}})
    job.run_stage("publish", **ARTIFACT)
    status = job.wait_phase("Succeeded")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Suspended", "Succeeded"]
    assert status["recovery"] == {"restarts": 1, "stepsLost": 0}
    told = ["Prepared", "Resumed", "Succeeded", "Suspended", "Training", "Training"]
    eventually(lambda: sorted(job.events()) == told, "every step is told once")  # Events follow the status


def test_a_resume_waits_for_the_old_pod(submit: Submit) -> None:
    """Two pods never share the workspace: while the first still saves, a resume makes none."""
    job = submit()
    first = job.new_pod("prepare")
    first.start()
    job.edit(suspend=True)
    eventually(lambda: first.reload().is_deleting(), "the pod is told to end")
    job.edit(suspend=False)
    time.sleep(1)
    assert job.child_job("prepare") is None
    first.end(75)
    job.new_pod("prepare")


def test_a_job_created_suspended_makes_nothing(submit: Submit) -> None:
    """Suspended from the start, it has neither pods nor a volume; it starts when it is resumed."""
    job = submit(suspend=True)
    job.wait_phase("Suspended")
    assert job.child_jobs() == []
    job.edit(suspend=False)
    job.new_pod("prepare")


def test_a_job_deleted_in_mid_run_leaves_nothing(api: Api, submit: Submit) -> None:
    """Its children go by their owner references; no finalizer holds the job."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    job.wait_reason("Training")
    job.delete()
    assert api.get(job.path) is None
    eventually(lambda: pod.reload().is_deleting(), "the pod is told to end", 60)
    pod.end(75)
    eventually(lambda: not job.child_jobs(), "the Kubernetes Jobs are gone", 60)


def test_a_job_created_again_under_its_name_starts_anew(submit: Submit) -> None:
    """The second of that name shares no child, attempt or status with the first."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    old_pod = job.new_pod("train")
    old_uid = job.uid
    job.delete()
    again = submit(job.name)
    fresh = lambda: [pod for pod in again.pods("prepare") if pod.is_fresh()]  # noqa: E731
    pod = eventually(fresh, "a new prepare pod")[0]
    assert pod.body["metadata"]["labels"]["finetune.dev/job-uid"] == again.uid != old_uid
    assert pod.name != old_pod.name
    assert "plan" not in again.status()


def test_a_finished_job_lives_for_its_time_and_not_longer(api: Api, submit: Submit) -> None:
    """ttlSecondsAfterFinished counts from the end, and deletes the job."""
    job = submit(ttlSecondsAfterFinished=2)
    live(job)
    job.wait_phase("Succeeded")
    eventually(lambda: api.get(job.path) is None, "the job is deleted", 10)


def test_a_deadline_counts_over_a_suspension(submit: Submit) -> None:
    """Suspended seconds are free, and a resume resets nothing: the active seconds of both attempts are added."""
    job = submit(deadlineSeconds=6)
    job.run_stage("prepare", **PREPARED)
    first = job.new_pod("train")
    first.start()
    job.wait_reason("Training")
    time.sleep(2)
    job.edit(suspend=True)
    eventually(lambda: first.reload().is_deleting(), "the pod is told to end")
    first.end(75)
    job.wait_reason("Suspended", "Suspended")
    time.sleep(3)
    assert job.status()["phase"] == "Suspended"
    job.edit(suspend=False)
    second = job.new_pod("train")
    second.start()
    resumed_at = time.monotonic()
    status = job.wait_phase("Failed", 8)
    assert time.monotonic() - resumed_at < 5
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Suspended", "DeadlineExceeded"]


def test_a_deadline_can_be_raised_while_it_runs(submit: Submit) -> None:
    """The live value counts, not the one that the run started with."""
    job = submit(deadlineSeconds=3)
    pod = job.new_pod("prepare")
    pod.start()
    job.edit(deadlineSeconds=3600)
    time.sleep(4)
    assert job.status()["phase"] == "Preparing"


def test_a_queued_train_job_is_kueues_to_start(api: Api, submit: Submit) -> None:
    """The train Job is born suspended with the queue's label; until it is admitted the phase is Queued."""
    job = submit(scheduling={"queue": "team"})
    job.run_stage("prepare", **PREPARED)
    job.wait_phase("Queued")
    child = eventually(lambda: job.child_job("train"), "the train Job exists")
    assert child["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    path = f"/apis/batch/v1/namespaces/{job.namespace}/jobs/{child['metadata']['name']}"
    api.merge(path, {"spec": {"suspend": False}})
    pod = job.new_pod("train")
    pod.start()
    job.wait_phase("Training")
    api.merge(path, {"spec": {"suspend": True}})
    eventually(lambda: pod.reload().is_deleting(), "Kueue took the quota back")
    pod.end(75)
    job.wait_phase("Queued")
    api.merge(path, {"spec": {"suspend": False}})
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")


def test_a_child_deleted_by_hand_is_made_again(api: Api, submit: Submit) -> None:
    """Level-triggered: the missing Kubernetes Job comes back, once its pods are gone."""
    job = submit()
    job.new_pod("prepare")
    child = eventually(lambda: job.child_job("prepare"), "the prepare Job exists")
    path = f"/apis/batch/v1/namespaces/{job.namespace}/jobs/{child['metadata']['name']}"
    api.delete(path, propagationPolicy="Background")
    other = lambda: (job.child_job("prepare") or child)["metadata"]["uid"] != child["metadata"]["uid"]  # noqa: E731
    eventually(other, "another prepare Job exists")


def test_a_publish_whose_report_was_lost_is_repeated(
    api: Api, start_operator: Callable[..., Operator], submit_alone: Submit
) -> None:
    """When publish's pod vanished while nobody looked, publish runs again: it only has to verify."""
    operator = start_operator()
    job = submit_alone()
    job.run_stage("prepare", **PREPARED)
    job.run_stage("train", **TRAINED)
    pod = job.new_pod("publish")
    pod.start()
    operator.kill()
    path = f"{PODS.format(job.namespace)}/{pod.name}"
    api.delete(path)
    pod.end(0)
    api.delete(path, gracePeriodSeconds=0)
    complete = lambda: "conditions" in (job.child_job("publish") or {}).get("status", {})  # noqa: E731
    eventually(complete, "the Kubernetes Job has ended")
    start_operator()
    eventually(lambda: [pod for pod in job.pods("publish") if pod.is_fresh()], "a second publish pod")
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")
