"""The operator may die at any moment and come back with other settings: the runs it finds go on as they were begun."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable

import pytest

from cluster.control_plane import ControlPlane
from integration.kubelet import Api, Job, eventually
from integration.operators import Operator
from integration.test_life import ARTIFACT, PREPARED, TRAINED, live

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Submit = Callable[..., Job]
Start = Callable[..., Operator]


def test_a_run_is_frozen_over_a_restart_with_other_settings(
    api: Api, start_operator: Start, submit_alone: Submit
) -> None:
    """The later stages use the image that the run began with; nothing that runs is restarted."""
    operator = start_operator("--trainer-image", "trainer:1")
    job = submit_alone()
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    pod.start()
    job.wait_reason("Training")
    operator.kill()
    start_operator("--trainer-image", "trainer:2")
    pod.end(0, {"stage": "train", **TRAINED})
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")
    images = {child["spec"]["template"]["spec"]["containers"][0]["image"] for child in job.child_jobs()}
    assert images == {"trainer:1"}
    assert len(job.pods()) == 3
    name = f"{job.name}-{job.uid[:5]}-run"
    config = eventually(lambda: api.get(f"/api/v1/namespaces/{job.namespace}/configmaps/{name}"), "the run exists")
    assert json.loads(config["data"]["run.json"])["trainerImage"] == "trainer:1"


def test_a_job_that_moved_on_while_nobody_looked(start_operator: Start, submit_alone: Submit) -> None:
    """Kubernetes finishes a stage with the operator down; the next operator goes on from there."""
    operator = start_operator()
    job = submit_alone()
    pod = job.new_pod("prepare")
    operator.kill()
    pod.start()
    pod.end(0, {"stage": "prepare", **PREPARED})
    start_operator()
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    assert job.wait_phase("Succeeded")["plan"]["totalSteps"] == 100


def test_kills_at_any_moment_change_nothing_in_the_end(start_operator: Start, submit_alone: Submit) -> None:
    """Killed and started again all through the lives of jobs, the operator makes each child once and loses nothing."""
    over = threading.Event()

    def kill_again_and_again() -> None:
        for pause in (0.05, 0.15, 0.3, 0.5, 0.8, 1.2):
            operator = start_operator()
            time.sleep(pause)
            operator.kill()
        start_operator()
        over.set()

    jobs = [submit_alone(f"tune-{number}") for number in range(4)]
    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    for stage, report in (("prepare", PREPARED), ("train", TRAINED), ("publish", ARTIFACT)):
        for job in jobs:
            pod = job.new_pod(stage, 60)
            pod.start()
            pod.end(0, {"stage": stage, **report})
    killer.join()
    assert over.is_set()
    for job in jobs:
        status = job.wait_phase("Succeeded", 30)
        assert len(job.child_jobs()) == len(job.pods()) == 3
        assert [attempt["number"] for attempt in status["attempts"]] == [1]
        assert status["artifact"]["digest"] == "sha256:abc"


def test_the_operator_outlives_the_api_server(
    control_plane: ControlPlane, start_operator: Start, submit_alone: Submit
) -> None:
    """While the API server is away the process stays; when it is back, work goes on."""
    operator = start_operator()
    begun = submit_alone()
    begun.new_pod("prepare")
    control_plane.stop_api_server()
    time.sleep(5)
    control_plane.start_api_server()
    fresh = submit_alone()
    for job in (begun, fresh):
        # The controller manager was cut off too, and takes its time to come back.
        job.new_pod("prepare", 90)
        live(job)
        job.wait_phase("Succeeded", 60)
    assert operator.is_alive()


def is_up(operator: Operator) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_a_standby_takes_over(start_operator: Start, namespace: str, submit_alone: Submit) -> None:
    """Of three replicas one leads; each ends in order when it is told to, and the leader hands over at once."""
    flags = ("--leader-elect", "--lease-namespace", namespace)
    first = start_operator(*flags)
    second = start_operator(*flags, wait=False)
    third = start_operator(*flags, wait=False)
    eventually(lambda: is_up(second) and is_up(third), "the standbys wait")
    assert third.stop() == 0
    assert "serving" not in second.log.read_text() + third.log.read_text()
    assert first.stop() == 0
    second.wait_ready()
    live(submit_alone())
