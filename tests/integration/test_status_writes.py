"""The status is written of the very job that was looked at, over whatever somebody else wrote of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.control_plane import ControlPlane
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_operator.cluster import Conflict, NotFound, connect
from finetune_operator.reconcile import StatusWriter
from integration.kubelet import Api, Job

pytestmark = pytest.mark.integration

STATUS = FineTuneJobStatus(phase="Training", observed_generation=1)
PROGRESS = Progress(stage="train", step=3)


def written(plane: ControlPlane, work: Callable[[StatusWriter], Awaitable[object]]) -> None:
    async def scenario() -> None:
        cluster = await connect({"KUBECONFIG": str(plane.kubeconfig)})
        try:
            await work(StatusWriter(cluster))
        finally:
            await cluster.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_made_anew", [False, True], ids=["deleted", "made anew"])
def test_of_a_job_that_is_gone_nothing_is_written(
    control_plane: ControlPlane, submit_alone: Callable[..., Job], is_made_anew: bool
) -> None:
    """The API server does not look at the uid in a status: another job of that name would seem to have ended."""
    job = submit_alone("tune")
    old, key = job.body(), (job.namespace, job.name)
    job.delete()
    if is_made_anew:
        submit_alone("tune")
    with pytest.raises(Conflict if is_made_anew else NotFound):
        written(control_plane, lambda writer: writer.status(key, old, STATUS))
    written(control_plane, lambda writer: writer.progress(key, old["metadata"]["uid"], PROGRESS))
    if is_made_anew:
        assert job.status() == {}


def test_both_halves_of_the_status_are_written_whatever_came_between(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job]
) -> None:
    """An edit, and the other half: neither is undone, neither is in the way."""
    job = submit_alone("tune")
    old, key = job.body(), (job.namespace, job.name)
    api.merge(job.path, {"metadata": {"labels": {"team": "a"}}})
    written(control_plane, lambda writer: writer.progress(key, job.uid, PROGRESS))
    written(control_plane, lambda writer: writer.status(key, old, STATUS))
    assert job.body()["metadata"]["labels"] == {"team": "a"}
    assert (job.status()["phase"], job.status()["progress"]["step"]) == ("Training", 3)
