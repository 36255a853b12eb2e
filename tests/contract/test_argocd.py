"""Argo CD's health check says what the conditions say: run by a Lua interpreter, on what the operator writes.

Argo CD runs Lua 5.1 with the base library, hands the object in as `obj`, and takes a table with status and message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime

from finetune_api.reasons import Reason
from finetune_operator.plan import plan
from finetune_operator.status import NOT_BY_TRIES
from unit.observed import NOW, SETTINGS, ended, observed, pinned, running, spec, stage_job

CHECK = (Path(__file__).parents[2] / "docs/argocd/health.lua").read_text()


def health(metadata: dict[str, Any], spec: dict[str, Any], status: dict[str, Any]) -> tuple[str, str]:
    """Status and message of the check."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    body = {"metadata": metadata, "spec": spec, "status": status}
    lua.globals().obj = lua.table_from(body, recursive=True)
    found = lua.execute(CHECK)
    return found["status"], found["message"]


def condition(kind: str, reason: str, message: str = "", status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


FAILED = {
    "observedGeneration": 1,
    "conditions": [condition("Failed", "OutOfMemory", "why")],
    "limits": {"retryLimit": 3},
}
LATE = {
    "observedGeneration": 1,
    "conditions": [condition("Failed", "DeadlineExceeded")],
    "limits": {"deadlineSeconds": 60, "restarts": 1},
}
SUSPENDED = {"observedGeneration": 2, "conditions": [condition("Suspended", "Suspended")]}
WAITING = [
    condition("Suspended", "Resumed", status="False"),
    condition("Progressing", "QuotaExceeded", "no room", "False"),
]
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("new", {}, {}, "Progressing", "not seen"),
    ("edited", {}, {**SUSPENDED, "observedGeneration": 1}, "Progressing", "not seen"),
    ("waiting", {}, {"observedGeneration": 2, "conditions": WAITING}, "Progressing", "QuotaExceeded: no room"),
    ("suspended", {"suspend": True}, SUSPENDED, "Suspended", "Suspended"),
    ("failed", {}, FAILED, "Degraded", "OutOfMemory: why"),
    ("restarted", {"restarts": 1}, FAILED, "Progressing", "goes on"),
    ("late", {"restarts": 1, "deadlineSeconds": 60}, LATE, "Degraded", "DeadlineExceeded"),
    ("given more time", {"restarts": 1, "deadlineSeconds": 61}, LATE, "Progressing", "goes on"),
    ("given all time", {"restarts": 1}, LATE, "Progressing", "goes on"),
    ("done", {}, {"conditions": [condition("Complete", "Succeeded")]}, "Healthy", "Succeeded"),
    ("unknown", {}, {"observedGeneration": 2, "phase": "Queued"}, "Progressing", "Queued"),
]


@pytest.mark.parametrize(
    ("spec", "status", "state", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_health_follows_from_conditions_and_generation(
    spec: dict[str, Any], status: dict[str, Any], state: str, said: str
) -> None:
    """Of each kind of job; a message that nobody would understand alone is none."""
    found, message = health({"generation": 2}, spec, status)

    assert found == state
    assert said in message


@pytest.mark.parametrize("reason", [*NOT_BY_TRIES, Reason.OUT_OF_MEMORY])
def test_more_tries_help_where_the_operator_says_so(reason: Reason) -> None:
    """The same failures as the operator's own list."""
    status = {"conditions": [condition("Failed", reason)], "limits": {"retryLimit": 3}}
    found, _ = health({"generation": 2}, {"retry": {"limit": 4}}, status)

    assert found == ("Degraded" if reason in NOT_BY_TRIES else "Progressing")


def test_a_job_that_is_deleted_is_on_its_way() -> None:
    """Whatever it was before."""
    assert health({"deletionTimestamp": "2026-01-02T00:00:00Z"}, {}, FAILED)[0] == "Progressing"


def test_the_check_reads_what_the_operator_writes() -> None:
    """A run, a failure and a success, by the operator's own status."""
    begun = {"spec": spec(), "status": plan(observed(), SETTINGS, NOW).status}
    assert begun["status"] is not None
    begun["status"] = begun["status"].model_copy(update={"run": pinned(spec())})
    runs = plan(observed(stage_job("prepare"), running("prepare"), **begun), SETTINGS, NOW).status
    fails = plan(
        observed(stage_job("prepare", failure="PodFailurePolicy"), ended("prepare", 65), **begun), SETTINGS, NOW
    )

    assert runs is not None
    assert fails.status is not None
    assert health({"generation": 1}, {}, runs.to_wire())[0] == "Progressing"
    assert health({"generation": 1}, {}, fails.status.to_wire())[0] == "Degraded"
