"""What is written concerns the very object that was looked at, whatever has its name by now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.control_plane import ControlPlane
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_operator.cluster import Cluster, Conflict, NotFound, connect
from finetune_operator.observe import CLAIMS
from finetune_operator.reconcile import StatusWriter
from integration.kubelet import Api, Job

pytestmark = pytest.mark.integration

STATUS = FineTuneJobStatus(phase="Training", observed_generation=1)
PROGRESS = Progress(stage="train", step=3)


def asked(plane: ControlPlane, work: Callable[[Cluster], Awaitable[object]]) -> None:
    async def scenario() -> None:
        cluster = await connect({"KUBECONFIG": str(plane.kubeconfig)})
        try:
            await work(cluster)
        finally:
            await cluster.close()

    asyncio.run(scenario())


def written(plane: ControlPlane, work: Callable[[StatusWriter], Awaitable[object]]) -> None:
    asked(plane, lambda cluster: work(StatusWriter(cluster)))


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


def test_a_claim_that_took_the_name_is_left_alone(control_plane: ControlPlane, api: Api, namespace: str) -> None:
    """Its uid, which nobody can change, is the API server's reason to refuse."""
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = api.create(path, {"metadata": {"name": "work", "annotations": {"team": "a"}}, "spec": spec})
    uids = (claim["metadata"]["uid"], "3a4c7d0e-0000-4000-8000-000000000000")

    def taken_off(uid: str) -> None:
        asked(control_plane, lambda cluster: cluster.merge(CLAIMS, namespace, "work", uid, {"annotations": None}))

    with pytest.raises(Conflict):
        taken_off(uids[1])
    assert (api.get(f"{path}/work") or {})["metadata"]["annotations"] == {"team": "a"}
    taken_off(uids[0])
    assert "annotations" not in (api.get(f"{path}/work") or {})["metadata"]
