"""An edit of a job that lives reaches its pods, and a job that has failed can be brought back by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.kubelet import Api, Job, Object, eventually
from integration.test_evictions import evict
from integration.test_life import ARTIFACT, PREPARED, TRAINED

pytestmark = pytest.mark.integration

Submit = Callable[..., Job]


def selector(pod_or_job: Object) -> Object:
    template = pod_or_job["spec"].get("template", pod_or_job)
    return dict(template["spec"].get("nodeSelector", {}))


def test_a_selector_that_fits_no_node_is_corrected_while_it_waits(submit: Submit) -> None:
    """No attempt has begun: the pod that waits is replaced by one that fits."""
    job = submit(scheduling={"nodeSelector": {"zone": "nowhere"}})
    pod = job.new_pod("prepare")
    pod.refuse("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.")
    job.wait_reason("Unschedulable")
    job.edit(scheduling={"nodeSelector": {"zone": "here"}})
    found = lambda: [one for one in job.pods("prepare") if selector(one.body) == {"zone": "here"}]  # noqa: E731
    eventually(found, "a pod that fits")
    assert pod.reload().is_deleting()
    job.run_stage("prepare", **PREPARED)
    job.new_pod("train")


def test_an_edit_leaves_a_running_pod_alone_and_reaches_the_next(submit: Submit) -> None:
    """The attempt that runs has its node; after an eviction the next one goes where the spec says."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    job.wait_reason("Training")
    job.edit(scheduling={"nodeSelector": {"zone": "b"}}, podTemplate={"nodeSelector": {"pool": "spot"}})
    eventually(lambda: job.status()["observedGeneration"] == 2, "the edit is seen")
    assert not pod.reload().is_deleting()
    evict(pod, 5)
    assert selector(job.new_pod("train").body) == {"zone": "b", "pool": "spot"}


def test_a_deadline_that_is_raised_brings_the_job_back(submit: Submit) -> None:
    """It goes on from its checkpoint, with the workspace that it left, and ends well."""
    job = submit(deadlineSeconds=3)
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    job.wait_reason("DeadlineExceeded", "Failed", 15)
    pod.end(75)
    job.edit(deadlineSeconds=3600)
    job.wait_reason("Starting")
    assert job.condition("Failed") == {}
    assert "finishedAt" not in job.status()
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    status = job.wait_phase("Succeeded")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["DeadlineExceeded", "Succeeded"]
    assert "Resumed" in job.events()


def test_a_job_that_ran_out_of_memory_comes_back_with_more(submit: Submit) -> None:
    """Memory may be edited; `restarts` asks for another try; all tries are there again."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    pod.end(137, reason="OOMKilled")
    job.wait_reason("OutOfMemory", "Failed")
    job.edit(resources={"memory": "16Gi"}, restarts=1)
    again = job.new_pod("train")
    assert again.body["spec"]["containers"][0]["resources"]["limits"]["memory"] == "16Gi"
    again.start()
    again.end(137, reason="OOMKilled")
    job.wait_reason("OutOfMemory", "Failed")
    job.edit(retry={"limit": 1})
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    assert len(job.wait_phase("Succeeded")["attempts"]) == 3


def test_a_push_that_failed_is_tried_again_with_what_was_trained(api: Api, submit: Submit) -> None:
    """The workspace outlives the failure, and even the job; publish alone runs again."""
    job = submit(retry={"limit": 0})
    job.run_stage("prepare", **PREPARED)
    job.run_stage("train", **TRAINED)
    pod = job.new_pod("publish")
    pod.start()
    pod.end(73)
    message = job.wait_reason("ArtifactPushFailed", "Failed")["message"]
    claim = f"{job.name}-{job.uid[:5]}-workspace"
    assert f"kubectl delete pvc {claim}" in message
    path = f"/api/v1/namespaces/{job.namespace}/persistentvolumeclaims/{claim}"
    assert "ownerReferences" not in (api.get(path) or {})["metadata"]
    job.edit(restarts=1)
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")
    assert len(job.pods("train")) == 1
    eventually(lambda: not _is_kept(api, path), "the workspace of a published job is deleted")


def _is_kept(api: Api, path: str) -> bool:
    """Nothing here removes the finalizer that protects a claim from deletion while pods use it."""
    return "deletionTimestamp" not in (api.get(path) or {"metadata": {"deletionTimestamp": "gone"}})["metadata"]


def test_a_running_job_is_restarted(submit: Submit) -> None:
    """As a stalled one needs it: the pod is told to end, and the next attempt begins."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    job.wait_reason("Training")
    job.edit(restarts=1)
    eventually(lambda: pod.reload().is_deleting(), "the pod is told to end")
    pod.end(75)
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    status = job.wait_phase("Succeeded")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Preempted", "Succeeded"]


def test_a_job_that_has_succeeded_is_not_run_again(api: Api, submit: Submit) -> None:
    """The API server says so."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")
    status, answer = api.request("PATCH", job.path, {"spec": {"restarts": 1}})
    assert status == 422
    assert "a job that has succeeded is not run again" in answer["message"]
