"""`finetune validate` refuses the metadata that the API server refuses, and in its words where it has some.

Of a wrong type the API server speaks in the words of Go: there only the refusal is compared.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from contract.test_edits import SPEC
from finetune_cli.manifest.document import Document
from finetune_cli.manifest.validation import NOT_ALL_CHECKED, check
from integration.kubelet import JOBS, Api

pytestmark = pytest.mark.integration

OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}
CASES: list[dict[str, Any]] = [
    *({"labels": value} for value in ({}, None, ["a"], "a", 5, {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": {}})),
    *({"labels": {name: "x"}} for name in ("a b", "a/b/c", "A_/b", "A.B/c", "", "/a", "a/", "a" * 63, "a" * 64, "é")),
    *({"labels": {"a": text}} for text in ("", "x y", "y" * 63, "y" * 64, "-", "a_b.c-d", "é")),
    *({"annotations": value} for value in (["a"], {"a": True}, {"a b": "x"}, {"A.B/c": "x"}, {"a": "é" * 140_000})),
    *({"ownerReferences": value} for value in ({}, ["a"], [{}], [OWNER], [None], [OWNER | {"controller": "yes"}])),
    {"ownerReferences": [{name: text for name, text in OWNER.items() if name != "uid"}]},
    {"ownerReferences": [OWNER | {"novel": 1}]},
    {"ownerReferences": [OWNER | {"apiVersion": "a/b/c"}]},
    {"ownerReferences": [OWNER | {"apiVersion": 5}]},
    {"ownerReferences": [OWNER | {"controller": True}]},
    {"ownerReferences": [OWNER | {"controller": True}, OWNER | {"name": "q", "uid": "v", "controller": True}]},
    *({"finalizers": value} for value in ("a", [5], ["a b"], ["example.com/a"])),
    *({name: value} for name in ("generateName", "uid", "resourceVersion", "selfLink") for value in (5, ["x"])),
    *({name: value} for name in ("creationTimestamp", "deletionTimestamp") for value in ("yesterday", 5, "2026-01-02")),
    {"creationTimestamp": "2026-01-02T15:04:05Z"},
    *({name: value} for name in ("generation", "deletionGracePeriodSeconds") for value in ("5", True, 1.5)),
    *({"managedFields": value} for value in ("x", ["x"])),
    {"novel": 1},
    {"name": ["x"]},
    {"name": 5},
]  # fmt: skip


@pytest.mark.parametrize("metadata", CASES, ids=lambda one: json.dumps(one)[:60])
def test_metadata_is_judged_as_the_api_server_does(control_plane: ControlPlane, metadata: dict[str, Any]) -> None:
    """Refused here if refused there, with the same messages where it is the metadata's rules that refuse."""
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "a"} | metadata,
        "spec": SPEC,
    }
    path = f"{JOBS.format('default')}?dryRun=All&fieldValidation=Strict"
    status, answer = Api(control_plane).request("POST", path, body)
    found = [problem for problem in check(Document(body)) if problem.message != NOT_ALL_CHECKED]

    assert bool(found) == (status != 201), answer.get("message")
    if status == 422:
        causes = [f"{one['field']}: {one['message']}" for one in answer["details"]["causes"]]
        told = {re.sub(r"\[\{.*\]: ", "", text) for text in causes}  # a list is not repeated
        assert {str(one) for one in found} == {text for text in told if not text.endswith(NOT_ALL_CHECKED)}
