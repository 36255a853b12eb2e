"""What the API server answers when a child is created, and what that means for the job.

The API server is scripted: each request is answered by the next one of a list.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from aiohttp import web

from finetune_api.reasons import Reason
from finetune_operator.cluster import Access, ApiError, Cluster
from finetune_operator.diagnosis import Obstacle
from finetune_operator.places import Places
from finetune_operator.reconcile import EXISTS, create_child

Found = TypeVar("Found")
CLAIM = {"kind": "PersistentVolumeClaim", "metadata": {"namespace": "team", "name": "a"}, "spec": {"accessModes": []}}


def status(code: int, message: str, reason: str = "", field: str = "") -> tuple[int, dict[str, Any]]:
    causes = [{"field": field}] if field else []
    return code, {"code": code, "message": message, "reason": reason, "details": {"causes": causes}}


def answered(answers: list[tuple[int, dict[str, Any]]], ask: Callable[[Cluster], Awaitable[Found]]) -> Found:
    """What `ask` makes of these answers; all of them are asked for."""
    left = list(answers)

    async def handle(_: web.Request) -> web.Response:
        code, body = left.pop(0)
        return web.json_response(body, status=code)

    async def story() -> Found:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        cluster = Cluster(Access(address, ssl.create_default_context(), nobody))
        try:
            return await ask(cluster)
        finally:
            await cluster.close()
            await runner.cleanup()

    try:
        return asyncio.run(story())
    finally:
        assert left == []


async def nobody() -> str:
    return ""


def creation(*answers: tuple[int, dict[str, Any]]) -> Obstacle | None:
    return answered(list(answers), lambda cluster: create_child(cluster, CLAIM, Places(1)))


def test_an_object_of_that_name_is_looked_for() -> None:
    assert creation(status(409, 'persistentvolumeclaims "a" already exists', "AlreadyExists")) is EXISTS


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('admission webhook "v.example" denied the request: in maintenance', Reason.POLICY_DENIED),
        ('Operation cannot be fulfilled on resourcequotas "team": it was modified', Reason.SERVER_UNAVAILABLE),
    ],
)
def test_a_conflict_that_is_no_object_of_that_name_is_told(message: str, reason: Reason) -> None:
    """A webhook may answer 409 as well, and the server where another one was writing."""
    found = creation(status(409, message, "Conflict"))
    assert found is not None
    assert (found.reason, message in found.message) == (reason, True)


@pytest.mark.parametrize(
    ("field", "reason"), [("spec.accessModes", Reason.BAD_SPEC), ("spec.storageClassName", Reason.POLICY_DENIED)]
)
def test_only_a_field_that_was_sent_is_the_specs_fault(field: str, reason: Reason) -> None:
    """What is not in the manifest was added by a policy."""
    found = creation(status(422, "is invalid", "Invalid", field))
    assert found is not None
    assert found.reason is reason


def test_a_failure_that_comes_at_once_is_tried_once_more() -> None:
    assert creation(status(500, "failed calling webhook"), (201, CLAIM)) is None


def test_a_failure_that_took_long_is_not() -> None:
    """It would take as long again, and nobody would be told meanwhile."""
    with pytest.raises(ApiError):
        answered([status(500, "no")], lambda cluster: cluster.request("POST", "/", attempts=2, again_within=0))
