"""The generated CRD in a real API server: accepted, with our defaults, keeping a run frozen, and explaining itself."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.paths import ClusterError
from finetune_api.crd import job_schema
from finetune_api.job import FineTuneJob
from finetune_api.pods import IDS
from finetune_api.spec import FROZEN

pytestmark = pytest.mark.integration

RIGHT = sorted(file for file in (Path(__file__).parent / "right").glob("*.yaml") if file.stem != "generated-name")
"""All that can be applied."""

MINIMAL = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "minimal"},
    "spec": {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
        "output": {"uri": "pvc://out/a"},
    },
}
OTHER = {
    "model": {"uri": "hf://org/other"},
    "dataset": {"train": [{"uri": "pvc://data/b.jsonl"}]},
    "objective": {"classification": {}},
    "method": {"full": {}},
    "training": {"epochs": 1},
    "checkpoint": {"everySteps": 7},
    "evaluation": {"everySteps": 7},
    "output": {"uri": "pvc://out/b"},
    "resources": {"gpus": 0},
}


@pytest.fixture(scope="module")
def minimal(control_plane: ControlPlane) -> dict:
    """The smallest job, as the API server stored it."""
    control_plane.kubectl("apply", "--server-side", "-f", "-", document=json.dumps(MINIMAL))
    return json.loads(control_plane.kubectl("get", "ftj", "minimal", "-o", "json"))


def test_the_api_server_fills_in_the_same_defaults_as_pydantic(minimal: dict) -> None:
    """What is stored equals what the operator and the trainer would assume; items of lists stay as they are written."""
    assumed = FineTuneJob.model_validate(MINIMAL).spec.to_wire()
    assumed["dataset"]["train"] = MINIMAL["spec"]["dataset"]["train"]

    assert minimal["spec"] == assumed


def defaults_in_lists(schema: Any, path: str = "", in_list: bool = False) -> Iterator[str]:
    """Where an item of a list has a default."""
    if in_list and "default" in schema:
        yield path
    for name, below in schema.get("properties", {}).items():
        yield from defaults_in_lists(below, f"{path}.{name}", in_list)
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from defaults_in_lists(schema[keyword], f"{path}[]", in_list or keyword == "items")


def test_items_of_lists_have_no_defaults() -> None:
    """`kubectl apply` sends lists whole: what the server filled into an item would differ from the file each time."""
    assert list(defaults_in_lists(job_schema())) == []


@pytest.fixture(scope="module")
def applied(control_plane: ControlPlane) -> Callable[[Path], str]:
    """What `kubectl apply` of a file says, in a namespace of its own."""
    control_plane.kubectl("create", "namespace", "applied")
    return lambda file: control_plane.kubectl("-n", "applied", "apply", "-f", str(file)).split()[-1]


@pytest.mark.parametrize("file", RIGHT, ids=lambda file: file.stem)
def test_applying_the_same_file_again_changes_nothing(applied: Callable[[Path], str], file: Path) -> None:
    """GitOps tools and people read `configured` as a change."""
    assert (applied(file), applied(file)) == ("created", "unchanged")


STORED_BY_AN_EARLIER_RELEASE = {
    "dataset": {
        "train": [{"uri": "pvc://data/a.jsonl", "format": "auto", "columns": {}}],
        "validation": {"sources": [{"uri": "pvc://data/b.jsonl", "format": "auto", "columns": {"text": "body"}}]},
    },
    "method": {"lora": {"startFrom": {"adapters": [{"uri": "pvc://adapters/a", "weight": 1}]}}},
}
"""With the defaults that it filled into items of lists."""
AS_WRITTEN = {
    "dataset": {
        "train": [{"uri": "pvc://data/a.jsonl"}],
        "validation": {"sources": [{"uri": "pvc://data/b.jsonl", "columns": {"text": "body"}}]},
    },
    "method": {"lora": {"startFrom": {"adapters": [{"uri": "pvc://adapters/a"}]}}},
}


def test_what_an_earlier_release_filled_in_is_no_change(control_plane: ControlPlane) -> None:
    """The file of a running job can be applied again after the upgrade; a real change is still refused."""
    job = {**MINIMAL, "metadata": {"name": "older"}, "spec": MINIMAL["spec"] | STORED_BY_AN_EARLIER_RELEASE}
    control_plane.kubectl("create", "-f", "-", document=json.dumps(job))

    control_plane.kubectl("patch", "ftj", "older", "--type=merge", "-p", json.dumps({"spec": AS_WRITTEN}))

    stored = json.loads(control_plane.kubectl("get", "ftj", "older", "-o", "json"))["spec"]
    assert stored["dataset"]["train"] == AS_WRITTEN["dataset"]["train"]
    for changed, field in (
        ({"dataset": {"train": [{"uri": "pvc://data/a.jsonl", "format": "csv"}]}}, "dataset"),
        ({"dataset": {"train": [{"uri": "pvc://data/a.jsonl"}] * 2}}, "dataset"),
        ({"dataset": {"validation": {"fraction": 0.1, "sources": None}}}, "dataset"),
        ({"method": {"lora": {"startFrom": {"adapters": [{"uri": "pvc://adapters/a", "weight": 2}]}}}}, "method"),
        ({"method": {"lora": {"rank": 4}}}, "method"),
        ({"method": {"lora": None, "full": {}}}, "method"),
    ):
        with pytest.raises(ClusterError, match=f"{field} defines the run and cannot be changed"):
            control_plane.kubectl("patch", "ftj", "older", "--type=merge", "-p", json.dumps({"spec": changed}))


@pytest.mark.parametrize(
    ("options", "context", "left_out"),
    [
        (["--server-side"], {"runAsUser": None, "fsGroup": None}, ["runAsUser", "fsGroup"]),
        ([], dict.fromkeys(IDS), list(IDS)),  # kubectl drops the nulls, and what arrives is empty
        ([], {"unset": ["runAsUser"]}, ["runAsUser"]),
        ([], {}, list(IDS)),
    ],
    ids=["null", "nulls-by-kubectl", "unset", "empty"],
)
def test_ids_that_are_left_to_the_platform_survive_the_api_server(
    control_plane: ControlPlane, options: list[str], context: dict, left_out: list[str]
) -> None:
    """What a person writes is stored, at creation and in an edit, and the operator reads it as it was meant."""
    name = f"ids-{time.monotonic_ns()}"
    plain = {**MINIMAL, "metadata": {"name": name}}
    shaped = {**plain, "spec": {**MINIMAL["spec"], "podTemplate": {"securityContext": context}}}
    for steps in ([shaped], [plain, shaped], [plain, shaped, shaped]):
        for step in steps:
            control_plane.kubectl("apply", *options, "-f", "-", document=json.dumps(step))
        stored = FineTuneJob.model_validate(json.loads(control_plane.kubectl("get", "ftj", name, "-o", "json")))
        control_plane.kubectl("delete", "ftj", name)
        assert stored.spec.pod_template is not None
        assert stored.spec.pod_template.security_context is not None
        assert stored.spec.pod_template.security_context.left_out == left_out


@pytest.mark.parametrize("stanza", FROZEN)
def test_what_defines_the_run_cannot_change(control_plane: ControlPlane, minimal: dict, stanza: str) -> None:
    """Every frozen stanza is refused with a message that names it."""
    patch = json.dumps([{"op": "replace", "path": f"/spec/{stanza}", "value": OTHER[stanza]}])

    with pytest.raises(ClusterError, match=f"{stanza} defines the run and cannot be changed"):
        control_plane.kubectl("patch", "ftj", "minimal", "--type=json", "-p", patch)


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"deadlineSeconds": 60},
        {"ttlSecondsAfterFinished": 5},
        {"retry": {"limit": 1}},
        {"scheduling": {"nodeSelector": {"zone": "a"}}},
        {"podTemplate": {"nodeSelector": {"zone": "a"}}},
        {"resources": {"workspace": {"reclaim": {"onSuccess": "Retain"}}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_steers_the_run_may_change(control_plane: ControlPlane, minimal: dict, change: dict) -> None:
    """Suspension, deadlines, retries, scheduling, pods and what becomes of the workspace are not frozen."""
    control_plane.kubectl("patch", "ftj", "minimal", "--type=merge", "-p", json.dumps({"spec": change}))


def test_explain_reads_well(control_plane: ControlPlane) -> None:
    """`kubectl explain` shows the docstring of the option model and of its fields."""
    text = " ".join(control_plane.kubectl("explain", "ftj.spec.method.lora").split())

    assert "Low-rank adapters beside frozen linear layers" in text
    assert "The update is scaled by alpha / rank" in text


def test_the_list_shows_the_columns_that_people_look_for(control_plane: ControlPlane, minimal: dict) -> None:
    """Phase, progress, loss, ETA and age; the artifact with `-o wide`."""
    head = control_plane.kubectl("get", "ftj", "-o", "wide").splitlines()[0].split()

    assert head == ["NAME", "PHASE", "REASON", "PROGRESS", "LOSS", "ETA", "ARTIFACT", "AGE"]
