"""What a job may touch follows from its author's spec: whoever writes the objects beside it decides nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from integration.kubelet import Api, Job, eventually
from integration.operators import Operator
from integration.test_life import ARTIFACT, PREPARED, TRAINED

pytestmark = pytest.mark.integration

Submit = Callable[..., Job]
CONFIG_MAPS = "/api/v1/namespaces/{}/configmaps"


def run_path(job: Job) -> str:
    return f"{CONFIG_MAPS.format(job.namespace)}/{job.name}-{job.uid[:5]}-run"


def forge(api: Api, job: Job, **changes: Any) -> None:
    """The run file as somebody else would have it: owned by the job like the real one, which it replaces."""
    real = api.get(run_path(job))
    run = json.loads(real["data"]["run.json"]) if real else {"name": job.name, "uid": job.uid}
    owner = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "name": job.name, "uid": job.uid}
    metadata = {"name": run_path(job).rpartition("/")[2], "ownerReferences": [{**owner, "controller": True}]}
    api.delete(run_path(job))
    text = json.dumps({**run, **changes})
    api.create(CONFIG_MAPS.format(job.namespace), {"metadata": metadata, "data": {"run.json": text}})


EVIL = {"trainerImage": "evil.example/miner:1", "mounts": {"secret://somebody-elses": "/secrets/somebody-elses"}}


def test_a_run_that_is_forged_before_the_job_begins_is_not_used(api: Api, submit: Submit) -> None:
    """Created suspended, its uid is known before its run is frozen. Nothing is made until the forgery is gone."""
    job = submit(suspend=True)
    job.wait_phase("Suspended")
    forge(api, job, **EVIL)
    job.edit(suspend=False)
    assert "was there before the job began" in job.wait_reason("RunChanged")["message"]
    assert job.child_jobs() == []
    api.delete(run_path(job))
    pod = job.new_pod("prepare", 60)
    assert pod.body["spec"]["containers"][0]["image"] == "trainer:1"


def test_a_run_that_is_forged_in_mid_run_starts_no_pod(api: Api, submit: Submit) -> None:
    """The digest in the status, which only the operator writes, tells; what ran before goes on."""
    job = submit()
    pod = job.new_pod("prepare")
    pod.start()
    forge(api, job, **EVIL)
    pod.end(0, {"stage": "prepare", **PREPARED})
    said = "is not the run that was frozen"
    eventually(lambda: said in job.wait_reason("RunChanged")["message"], "it says what is wrong with the run")
    assert job.child_job("train") is None
    assert job.status()["run"]["image"] == "trainer:1"


def test_a_run_that_is_lost_is_told(api: Api, submit: Submit) -> None:
    """It is not frozen anew with today's settings: put back as it was, the job goes on."""
    job = submit()
    pod = job.new_pod("prepare")
    kept = eventually(lambda: api.get(run_path(job)), "the run is frozen")
    api.delete(run_path(job))
    pod.start()
    pod.end(0, {"stage": "prepare", **PREPARED})
    assert "is gone" in job.wait_reason("RunChanged")["message"]
    assert job.child_job("train") is None
    metadata = {name: kept["metadata"][name] for name in ("name", "ownerReferences", "labels")}
    api.create(CONFIG_MAPS.format(job.namespace), {"metadata": metadata, "data": kept["data"]})
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")


def test_a_pod_knows_the_digest_of_its_run(api: Api, submit: Submit) -> None:
    """Between the operator's look and the pod's start the file can be replaced; the pod compares for itself."""
    job = submit()
    environment = {one["name"]: one.get("value") for one in job.new_pod("prepare").body["spec"]["containers"][0]["env"]}
    assert environment["FINETUNE_RUN_DIGEST"] == job.status()["run"]["digest"]


def test_a_pin_outlives_the_operator(api: Api, start_operator: Callable[..., Operator], submit_alone: Submit) -> None:
    """The next operator, with another image, neither pins anew nor believes a forged file."""
    operator = start_operator()
    job = submit_alone()
    pod = job.new_pod("prepare")
    operator.kill()
    pod.start()
    pod.end(0, {"stage": "prepare", **PREPARED})
    forge(api, job, **EVIL)
    start_operator("--trainer-image", "trainer:2")
    job.wait_reason("RunChanged")
    assert job.child_job("train") is None
