"""What is read of one job at slightly different moments makes one picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cluster.control_plane import ControlPlane
from finetune_operator.cluster import Kind, connect
from finetune_operator.departed import Departed
from finetune_operator.observe import PODS, observe
from finetune_operator.observed_state import Observed
from integration.kubelet import Api, Job, Object, eventually
from integration.test_life import PREPARED
from integration.test_new_jobs import one_pass

pytestmark = pytest.mark.integration


def observed(plane: ControlPlane, job: Job, pods_before: list[Object]) -> Observed:
    """The job, where its pods were read first, and its Kubernetes Job a moment later."""

    async def scenario() -> Observed:
        cluster = await connect({"KUBECONFIG": str(plane.kubeconfig)})
        early, find = [pods_before], cluster.find

        async def late(kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
            return early.pop() if kind == PODS and early else await find(kind, namespace, labels, fields)

        cluster.find = late  # type: ignore[method-assign]
        try:
            return await observe(cluster, job.body(), Departed())
        finally:
            await cluster.close()

    return asyncio.run(scenario())


def is_complete(job: Job) -> bool:
    conditions = ((job.child_job("prepare") or {}).get("status") or {}).get("conditions") or []
    return any((one["type"], one["status"]) == ("Complete", "True") for one in conditions)


def test_what_has_completed_a_stage_is_seen_with_its_report(
    control_plane: ControlPlane, api: Api, submit_alone: Callable[..., Job]
) -> None:
    """Without it the report would be taken for lost, and the stage be run again."""
    job = submit_alone("tune")
    one_pass(control_plane, job, None)
    pod = job.new_pod("prepare")
    pod.start()
    before = api.items(f"/api/v1/namespaces/{job.namespace}/pods")
    pod.end(0, {"stage": "prepare", **PREPARED})
    eventually(lambda: is_complete(job), "the Kubernetes Job is complete")
    seen = observed(control_plane, job, before)
    assert seen.jobs["prepare"].is_complete
    assert [one.is_over for one in seen.pods] == [True]
    assert seen.pods[0].termination is not None
