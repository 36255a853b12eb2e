"""A new job is begun as the watch told it, not read: whatever became of it meanwhile, what is made is right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from cluster.control_plane import ControlPlane
from finetune_api import labels
from finetune_operator.cluster import connect
from finetune_operator.departed import Departed
from finetune_operator.observe import observe
from finetune_operator.places import Places
from finetune_operator.plan import plan
from finetune_operator.progress import ProgressReader, page_session
from finetune_operator.reconcile import Reconciler, StatusWriter
from finetune_operator.settings import Settings
from integration.kubelet import Api, Job, Object

pytestmark = pytest.mark.integration

CHILDREN = ("/apis/batch/v1/namespaces/{}/jobs", "/api/v1/namespaces/{}/configmaps?labelSelector=finetune.dev/job")
SETTINGS = Settings(trainer_image="trainer:1")


def one_pass(plane: ControlPlane, job: Job, told: Object | None) -> None:
    """Look at the job once, as a worker of the operator does."""

    async def scenario() -> None:
        cluster = await connect({"KUBECONFIG": str(plane.kubeconfig)})
        try:
            async with page_session() as pages:
                writer = StatusWriter(cluster)
                reader = ProgressReader(pages, SETTINGS, writer.progress, lambda _: None)
                look = Reconciler(cluster, SETTINGS, reader, writer, Departed(), lambda *_: None, Places(1))
                await look.reconcile((job.namespace, job.name), told)
        finally:
            await cluster.close()

    asyncio.run(scenario())


def first_status_only(plane: ControlPlane, told: Object) -> None:
    """Write what a pass over the told job writes first, as an operator that ends then."""

    async def scenario() -> None:
        cluster = await connect({"KUBECONFIG": str(plane.kubeconfig)})
        try:
            decided = plan(await observe(cluster, told, Departed()), SETTINGS, datetime.now(UTC))
            assert decided.status is not None
            await StatusWriter(cluster).first_status(told, decided.status)
        finally:
            await cluster.close()

    asyncio.run(scenario())


def children(api: Api, namespace: str) -> list[Object]:
    return [one for path in CHILDREN for one in api.items(path.format(namespace))]


def frozen_epochs(api: Api, job: Job) -> float:
    """Of the run that is frozen, if it is the one that is pinned: then the job's pods run it."""
    [config_map] = api.items(CHILDREN[1].format(job.namespace))
    run = json.loads(config_map["data"][labels.RUN_FILE])
    epochs: float = run["spec"]["training"]["epochs"]
    return epochs


def told_without_epochs(job: Job) -> Object:
    """As a stream tells it that was opened when the definition did not have that field."""
    told = job.body()
    del told["spec"]["training"]["epochs"]
    return told


@pytest.mark.parametrize("is_made_anew", [False, True], ids=["deleted", "made anew"])
def test_nothing_is_made_for_a_job_that_is_gone(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job], is_made_anew: bool
) -> None:
    """Where another one has its name by now, that one is begun."""
    job = submit_alone("tune")
    told = job.body()
    job.delete()
    again = submit_alone("tune", training={"epochs": 7}) if is_made_anew else None
    one_pass(control_plane, job, told)
    owners = {child["metadata"]["ownerReferences"][0]["uid"] for child in children(api, job.namespace)}
    assert owners == ({again.uid} if again else set())
    if again:
        assert frozen_epochs(api, again) == 7


def test_an_edit_that_was_not_told_yet_holds(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job]
) -> None:
    """Of a job that is suspended by then, nothing is made."""
    job = submit_alone("tune")
    told = job.body()
    job.edit(suspend=True)
    one_pass(control_plane, job, told)
    assert job.status()["observedGeneration"] == 2
    assert job.status()["phase"] == "Suspended"
    assert children(api, job.namespace) == []


def test_a_field_that_the_watch_left_out_is_used(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job]
) -> None:
    job = submit_alone("tune", training={"epochs": 7})
    one_pass(control_plane, job, told_without_epochs(job))
    assert frozen_epochs(api, job) == 7


def test_a_field_that_the_watch_left_out_is_used_after_a_restart(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job]
) -> None:
    """The first status, which pins a run without it, was the last that the operator before wrote."""
    job = submit_alone("tune", training={"epochs": 7})
    first_status_only(control_plane, told_without_epochs(job))
    pinned = job.status()["run"]
    one_pass(control_plane, job, None)
    assert frozen_epochs(api, job) == 7
    assert job.status()["run"] != pinned


def test_a_job_that_was_worked_on_meanwhile_keeps_its_run(
    control_plane: ControlPlane, submit_alone: Callable[..., Job]
) -> None:
    job = submit_alone("tune")
    told = job.body()
    one_pass(control_plane, job, told)
    before = job.status()
    one_pass(control_plane, job, told)
    assert job.status() == before
