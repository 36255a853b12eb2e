"""A new job is worked on as the watch told it, without being read again: what may have become of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cluster.control_plane import ControlPlane
from finetune_operator.cluster import ApiError, connect
from finetune_operator.departed import Departed
from finetune_operator.places import Places
from finetune_operator.progress import ProgressReader, page_session
from finetune_operator.reconcile import Reconciler, StatusWriter
from finetune_operator.settings import Settings
from integration.kubelet import Api, Job, Object, eventually

pytestmark = pytest.mark.integration

CHILDREN = ("/apis/batch/v1/namespaces/{}/jobs", "/api/v1/namespaces/{}/configmaps?labelSelector=finetune.dev/job")


def one_pass(plane: ControlPlane, job: Job, told: Object | None) -> None:
    """Look at the job once, as a worker of the operator does."""

    async def scenario() -> None:
        cluster = await connect({"KUBECONFIG": str(plane.kubeconfig)})
        settings = Settings(trainer_image="trainer:1")
        try:
            async with page_session() as pages:
                writer = StatusWriter(cluster)
                reader = ProgressReader(pages, settings, writer.progress, lambda _: None)
                look = Reconciler(cluster, settings, reader, writer, Departed(), lambda *_: None, Places(1))
                await look.reconcile((job.namespace, job.name), told)
        finally:
            await cluster.close()

    asyncio.run(scenario())


def children(api: Api, namespace: str) -> list[Object]:
    return [one for path in CHILDREN for one in api.items(path.format(namespace))]


@pytest.mark.parametrize("is_made_anew", [False, True], ids=["deleted", "made anew"])
def test_nothing_is_made_for_a_job_that_is_gone(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job], is_made_anew: bool
) -> None:
    """Nor is anything written of another one that has its name by now. The next pass reads that one."""
    job = submit_alone("tune")
    told = job.body()
    job.delete()
    if is_made_anew:
        submit_alone("tune")
    with pytest.raises(ApiError) as refused:
        one_pass(control_plane, job, told)
    assert refused.value.status == (409 if is_made_anew else 404)
    assert children(api, job.namespace) == []
    one_pass(control_plane, job, None)
    owners = {child["metadata"]["ownerReferences"][0]["uid"] for child in children(api, job.namespace)}
    assert owners == ({job.uid} if is_made_anew else set())


def test_an_edit_that_was_not_told_yet_is_acted_upon_next(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job]
) -> None:
    """Its generation is not the one that the status says was seen; suspended, the job loses what was made."""
    job = submit_alone("tune")
    told = job.body()
    job.edit(suspend=True)
    one_pass(control_plane, job, told)
    assert job.status()["observedGeneration"] == 1

    def is_suspended() -> bool:
        one_pass(control_plane, job, None)
        return job.status()["phase"] == "Suspended"

    eventually(is_suspended, "the job is suspended")
    assert api.items(CHILDREN[0].format(job.namespace)) == []


def test_a_job_that_was_worked_on_meanwhile_keeps_its_run(
    control_plane: ControlPlane, submit_alone: Callable[..., Job]
) -> None:
    """The same is found again: what was pinned stays."""
    job = submit_alone("tune")
    told = job.body()
    one_pass(control_plane, job, told)
    before = job.status()
    one_pass(control_plane, job, told)
    assert {name: job.status()[name] for name in ("run", "stage", "phase")} == {
        name: before[name] for name in ("run", "stage", "phase")
    }
