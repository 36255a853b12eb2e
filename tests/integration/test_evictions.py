"""Preemption costs seconds, every time; a stage that is done is done, whatever becomes of the objects that did it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from integration.kubelet import Api, Job, Pod, eventually
from integration.operators import Operator
from integration.test_life import ARTIFACT, PREPARED, TRAINED

pytestmark = pytest.mark.integration

Submit = Callable[..., Job]
JOBS = "/apis/batch/v1/namespaces/{}/jobs"


def evict(pod: Pod, step: int) -> None:
    """The pod is told to go, saves, and is gone."""
    pod.start()
    pod.disrupt()
    progress = {"stage": "train", "step": step, "checkpointStep": step, "resumedFromStep": max(0, step - 1)}
    pod.end(75, {"stage": "train", "reason": "Preempted", "progress": progress})


def test_the_seventh_preemption_costs_no_more_than_the_first(submit: Submit) -> None:
    """The Job's own back-off would be 10, 20, 40 s and so on up to ten minutes: another Job takes its place."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    for number in range(1, 8):
        evict(job.new_pod("train", 8), number)
    job.run_stage("train", **TRAINED)
    names = {pod.body["metadata"]["labels"]["batch.kubernetes.io/job-name"] for pod in job.pods("train")}
    assert {name.partition("-train")[2] for name in names} == {"-8"}
    job.run_stage("publish", **ARTIFACT)
    status = job.wait_phase("Succeeded")
    assert [attempt["number"] for attempt in status["attempts"]] == list(range(1, 9))
    assert status["recovery"]["restarts"] == 7


def test_with_the_operator_down_the_job_goes_on_alone(
    start_operator: Callable[..., Operator], submit_alone: Submit
) -> None:
    """The Kubernetes Job makes the next pod after its back-off; the operator that comes back keeps to it."""
    operator = start_operator()
    job = submit_alone()
    job.run_stage("prepare", **PREPARED)
    first = job.new_pod("train")
    first.start()
    job.wait_reason("Training")
    operator.kill()
    evict(first, 5)
    second = job.new_pod("train", 40)
    second.start()
    start_operator()
    eventually(lambda: len(job.status().get("attempts", [])) == 2, "both attempts are listed")
    second.end(0, {"stage": "train", **TRAINED})
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")
    assert len([child for child in job.child_jobs() if "-train" in child["metadata"]["name"]]) == 1


def test_a_queued_job_keeps_its_place(api: Api, submit: Submit) -> None:
    """With a queue the same Kubernetes Job goes on: a new one would lose its quota."""
    job = submit(scheduling={"queue": "team"})
    job.run_stage("prepare", **PREPARED)
    child = eventually(lambda: job.child_job("train"), "the train Job exists")
    api.merge(f"{JOBS.format(job.namespace)}/{child['metadata']['name']}", {"spec": {"suspend": False}})
    evict(job.new_pod("train"), 5)
    job.new_pod("train", 40)
    assert (job.child_job("train") or {})["metadata"]["uid"] == child["metadata"]["uid"]


@pytest.mark.parametrize(
    "message",
    [
        'Usage of EmptyDir volume "tmp" exceeds the limit "4Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 5Gi. ",
        "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 1Mi. Container trainer "
        "was using 9Gi, request is 1Gi, has larger consumption of ephemeral-storage. ",
    ],
)
def test_an_eviction_that_is_the_pods_own_fault_counts(submit: Submit, message: str) -> None:
    """What it used itself it would use again: it costs a try, and the message says what to raise."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    pod.evict(message, 143)
    assert message.split(".")[0] in job.wait_reason("Evicted", "Failed")["message"]


def test_a_stage_that_is_done_is_not_run_again(
    api: Api, start_operator: Callable[..., Operator], submit_alone: Submit, namespace: str
) -> None:
    """A clean-up deletes each Job in the moment in which it ends: the watch's last word is enough."""
    start_operator()
    job = submit_alone()
    for stage, report in (("prepare", PREPARED), ("train", TRAINED), ("publish", ARTIFACT)):
        pod = job.new_pod(stage)
        pod.start()
        pod.end(0, {"stage": stage, **report})
        child = eventually(lambda stage=stage: _finished(job, stage), f"{stage} is complete")  # type: ignore[misc]
        api.delete(f"{JOBS.format(namespace)}/{child}", propagationPolicy="Background")
    status = job.wait_phase("Succeeded")
    assert status["plan"]["totalSteps"] == 100
    assert status["artifact"]["digest"] == "sha256:abc"
    assert len(status["attempts"]) == 1


def _finished(job: Job, stage: str) -> str:
    """Name of the stage's Job once it is complete, or has been passed by already."""
    children = {one["metadata"]["labels"]["finetune.dev/stage"]: one for one in job.child_jobs()}
    conditions: list[Any] = children.get(stage, {}).get("status", {}).get("conditions", [])
    is_done = any(one["type"] == "Complete" for one in conditions)
    return str(children[stage]["metadata"]["name"]) if is_done else ""


def test_jobs_say_how_long_they_stay(submit: Submit) -> None:
    """Said explicitly, so that a policy which fills in a short time to live leaves it alone."""
    job = submit()
    job.new_pod("prepare")
    child = job.child_job("prepare")
    assert child is not None
    assert child["spec"]["ttlSecondsAfterFinished"] == 2**31 - 1
    assert json.dumps(child["spec"]["podFailurePolicy"]).count("Ignore") == 2
