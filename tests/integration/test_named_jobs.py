"""A job that starts from what another one publishes waits for it, and is told at once when that will never be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from integration.kubelet import Job, eventually
from integration.test_life import live

pytestmark = pytest.mark.integration

Submit = Callable[..., Job]
SOON = 5
"""Seconds."""


def starting_from(*names: str) -> dict[str, Any]:
    """The stanzas of a job that composes what these jobs publish."""
    adapters = [{"uri": f"job://{name}", "weight": 0.5} for name in names]
    return {"method": {"lora": {"startFrom": {"adapters": adapters}}}, "training": {"maxSteps": 0}}


def frozen_run(job: Job) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{job.namespace}/configmaps/{job.name}-{job.uid[:5]}-run"
    return dict(json.loads(eventually(lambda: job.api.get(path), "the run is frozen")["data"]["run.json"]))


def test_a_job_waits_for_the_one_that_it_names_and_takes_its_artifact(submit: Submit) -> None:
    """Nothing is made while it waits; when the other has succeeded, the frozen run names its artifact, mounted."""
    first = submit()
    second = submit(**starting_from(first.name))
    waiting = second.wait_reason("WaitingForJob", seconds=SOON)
    assert f"waiting for the FineTuneJob {first.name}." in waiting["message"]
    assert second.status()["phase"] == "Waiting"
    assert second.child_jobs() == []
    live(first)
    first.wait_phase("Succeeded")
    pod = second.new_pod("prepare", seconds=SOON)
    run = frozen_run(second)
    assert run["spec"]["method"]["lora"]["startFrom"]["adapters"][0]["uri"] == "pvc://results/tuned"
    assert "pvc://results" in run["mounts"]
    claims = [one.get("persistentVolumeClaim", {}).get("claimName") for one in pod.body["spec"]["volumes"]]
    assert "results" in claims
    live(second)
    second.wait_phase("Succeeded")
    eventually(lambda: "WaitingForJob" in second.events(), "that it waited is told")


def test_a_job_that_does_not_exist_yet_may_come(submit: Submit) -> None:
    """Both are waited for; the message says which one is not there."""
    job = submit(**starting_from("comes-later"))
    assert "comes-later, which does not exist yet" in job.wait_reason("WaitingForJob", seconds=SOON)["message"]
    other = submit(name="comes-later")
    eventually(lambda: "not exist" not in job.condition("Progressing")["message"], "it is seen", SOON)
    live(other)
    job.new_pod("prepare", seconds=SOON)


def test_a_job_that_fails_takes_those_that_wait_for_it_along(submit: Submit) -> None:
    """At once, with its reason, also through several jobs."""
    first = submit()
    second = submit(**starting_from(first.name))
    third = submit(**starting_from(second.name))
    third.wait_reason("WaitingForJob", seconds=SOON)
    pod = first.new_pod("prepare")
    pod.start()
    pod.end(65)
    failed = second.wait_reason("DependencyFailed", "Failed", SOON)
    assert f"the FineTuneJob {first.name} failed: DatasetInvalid" in failed["message"]
    third.wait_reason("DependencyFailed", "Failed", SOON)
    assert second.child_jobs() == []


def test_a_whole_model_is_no_start(submit: Submit) -> None:
    """What the other job published has to be an adapter."""
    first = submit()
    first.run_stage("prepare")
    first.run_stage("train")
    artifact = {"uri": "pvc://results/tuned", "digest": "sha256:abc", "kind": "model"}
    first.run_stage("publish", artifact=artifact)
    first.wait_phase("Succeeded")
    failed = submit(**starting_from(first.name)).wait_reason("BadSpec", "Failed", SOON)
    assert "published a model, where an adapter is needed" in failed["message"]


def test_jobs_that_wait_for_each_other_are_told_so(submit: Submit) -> None:
    """A circle of two, and a job that names itself: neither waits for ever."""
    alone = submit(name="names-itself", **starting_from("names-itself"))
    assert "names this job" in alone.wait_reason("BadSpec", "Failed", SOON)["message"]
    one = submit(name="circle-one", **starting_from("circle-two"))
    one.wait_reason("WaitingForJob", seconds=SOON)
    two = submit(name="circle-two", **starting_from("circle-one"))
    one.wait_phase("Failed", SOON)
    two.wait_phase("Failed", SOON)
    # Whichever is looked at first sees the circle; the other one sees that, or that the first has failed.
    told = {job.condition("Failed")["reason"]: job.condition("Failed")["message"] for job in (two, one)}
    assert "waits for this job: jobs that wait for each other never begin" in told.pop("BadSpec")
    assert set(told) <= {"DependencyFailed"}
