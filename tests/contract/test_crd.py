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
from finetune_api.spec.job_spec import FROZEN, FineTuneJobSpec
from finetune_api.spec.pod_template import IDS
from finetune_api.status import PinnedRun, StageStatus
from finetune_operator.manifests import stage_job
from integration.kubelet import JOBS, Api
from unit.observed import METADATA, SETTINGS

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


SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["d"]}]}
NODE_TERM = {
    "matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}],
    "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node"]}],
}
POD_TERM = {
    "topologyKey": "zone",
    "labelSelector": SELECTOR,
    "namespaces": ["a"],
    "namespaceSelector": {},
    "matchLabelKeys": ["e"],
    "mismatchLabelKeys": ["f"],
}
NEAR = {"topologyKey": "zone"}
SPREAD = {
    "maxSkew": 1,
    "topologyKey": "zone",
    "whenUnsatisfiable": "DoNotSchedule",
    "labelSelector": {"matchLabels": {"a": "b"}},
    "minDomains": 1,
    "nodeAffinityPolicy": "Honor",
    "nodeTaintsPolicy": "Honor",
    "matchLabelKeys": ["e"],
}
TOLERATION = {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5}
IDS_OF_PODS = {
    "runAsUser": 1,
    "runAsGroup": 1,
    "fsGroup": 1,
    "fsGroupChangePolicy": "Always",
    "supplementalGroups": [1],
}
SELINUX = {"user": "a", "role": "a", "type": "a", "level": "a"}
KEY = {"name": "a", "key": "b", "optional": True}
FILES = {"items": [{"key": "a", "path": "b"}], "optional": True}
REQUIRED, PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))
POD_FIELDS: list[dict[str, Any]] = [
    {"scheduling": {"queue": "a", "priorityClassName": "a", "nodeSelector": {"a": "b"}, "tolerations": []}},
    {"podTemplate": {"metadata": {"labels": {"a": "b"}, "annotations": {"a": "b"}}}},
    {
        "podTemplate": {
            "serviceAccountName": "a",
            "imagePullSecrets": [{"name": "a"}],
            "terminationGracePeriodSeconds": 1,
        }
    },
    {"podTemplate": {"runtimeClassName": "a", "schedulerName": "a", "nodeSelector": {"a": "b"}}},
    {"podTemplate": {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [NODE_TERM]}}}}},
    {"podTemplate": {"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": {}}]}}}},
    {"podTemplate": {"affinity": {"podAffinity": {REQUIRED: [POD_TERM]}}}},
    {"podTemplate": {"affinity": {"podAntiAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": NEAR}]}}}},
    {"podTemplate": {"topologySpreadConstraints": [SPREAD]}},
    {"podTemplate": {"tolerations": [TOLERATION]}},
    {"podTemplate": {"securityContext": {**IDS_OF_PODS, "seLinuxOptions": SELINUX}}},
    {"podTemplate": {"securityContext": {"unset": ["fsGroup"], "supplementalGroupsPolicy": "Merge"}}},
    {"podTemplate": {"env": [{"name": "A", "value": "a"}, {"name": "B", "valueFrom": {"secretKeyRef": KEY}}]}},
    {"podTemplate": {"env": [{"name": "C", "valueFrom": {"configMapKeyRef": KEY}}]}},
    {"podTemplate": {"ephemeralStorage": {"request": "1Gi", "limit": "2Gi"}}},
    *(
        {"podTemplate": {"volumes": [{"name": "a", **volume}], "volumeMounts": [{"name": "a", "mountPath": "/mnt/a"}]}}
        for volume in (
            {"configMap": {"name": "a", **FILES}},
            {"secret": {"secretName": "a", **FILES}},
            {"persistentVolumeClaim": {"claimName": "a", "readOnly": True}},
            {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        )
    ),
    {
        "podTemplate": {
            "volumes": [{"name": "a", "emptyDir": {}}],
            "volumeMounts": [{"name": "a", "mountPath": "/mnt/a", "subPath": "a", "readOnly": True}],
        }
    },
]
"""Each field that a pod is made from, in groups of what belongs together; `stages` has the same."""
WORDS = (
    *("", ".", "..", "..a", "a..b", "-a", "a-", "a.", "A", "a b", "a/b", "/a", "a/", "a/b/c", "A/b", "a..b/c", "-/a"),
    *("a" * 63, "a" * 64, "a" * 254, f"{'a' * 260}/b", "1", "0", "100P", "1.5m", "c", "e", "f"),
    *("container.apparmor.security.beta.kubernetes.io/trainer", "controller.kubernetes.io/pod-deletion-cost"),
)
NUMBERS = (-1, 0, 100, 101, 2**31 - 1, 2**31, 2**63 - 1)


def variants(value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """`value` with one thing at a time left out, emptied, renamed, or in a word that may be taken or not."""
    if isinstance(value, dict):
        for key, below in value.items():
            rest = {name: one for name, one in value.items() if name != key}
            yield rest
            if "additionalProperties" in schema:
                yield from ({**rest, word: below} for word in WORDS)
            inner = schema.get("properties", {}).get(key) or schema["additionalProperties"]
            yield from ({**rest, key: other} for other in variants(below, inner))
    elif isinstance(value, list):
        yield []
        for number, item in enumerate(value):
            others = variants(item, schema["items"])
            yield from ([*value[:number], other, *value[number + 1 :]] for other in others)
    elif isinstance(value, str):
        yield from (*WORDS, *schema.get("enum", ()))
    elif not isinstance(value, bool):
        yield from NUMBERS


SPEC_SCHEMA = job_schema()["properties"]["spec"]


def test_every_field_of_a_pod_is_tried() -> None:
    """A new field needs a value above."""

    def listed(schema: dict[str, Any]) -> Iterator[str]:
        for name, below in schema.get("items", schema).get("properties", {}).items():
            yield from [] if name == "stages" else [name, *listed(below)]

    schemas = [SPEC_SCHEMA["properties"][stanza] for stanza in ("scheduling", "podTemplate")]
    text = json.dumps(POD_FIELDS)
    assert [name for schema in schemas for name in listed(schema) if f'"{name}": ' not in text] == []


@pytest.mark.parametrize("group", POD_FIELDS, ids=lambda group: "+".join(*group.values()))
def test_what_the_definition_takes_makes_a_pod_that_the_api_server_takes(
    control_plane: ControlPlane, group: dict[str, Any]
) -> None:
    """What would be refused as a Job is refused at `kubectl apply`, not when a run is under way."""
    api, taken = Api(control_plane), []
    for said in (group, *variants(group, SPEC_SCHEMA)):
        job = {**MINIMAL, "metadata": {"name": "tried"}, "spec": {**MINIMAL["spec"], **said}}
        status, _ = api.request("POST", f"{JOBS.format('default')}?dryRun=All", job)
        taken += [said] if status == 201 else []

    assert taken[0] == group
    for said in taken:
        wanted = FineTuneJobSpec.model_validate({**MINIMAL["spec"], **said})
        made = stage_job(METADATA, wanted, "train", StageStatus(name="train"), PinnedRun(image="trainer"), SETTINGS)
        made["metadata"]["namespace"] = "default"
        status, answer = api.request("POST", "/apis/batch/v1/namespaces/default/jobs?dryRun=All", made)
        assert status == 201, (said, answer.get("message"))
