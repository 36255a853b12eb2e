"""An edit takes effect or is refused: every field of the spec is tried, with a value that the schema takes.

Generated from the schema: a field that comes later is tried without a line here. What the API server refuses, it
refuses with a message that says what to do; what it takes must change a Kubernetes Job, or what is decided in some
situation.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.control_plane import ControlPlane
from finetune_api.crd import job_schema
from finetune_api.reasons import Reason
from finetune_api.spec.job_spec import FROZEN, STEERING, FineTuneJobSpec
from finetune_api.stages import STAGES
from finetune_api.status import FineTuneJobStatus, Limits, StageStatus
from finetune_operator import manifests
from finetune_operator.plan import Plan, plan
from finetune_operator.status import brought_back
from integration.kubelet import JOBS, Api
from unit.observed import METADATA, NOW, SETTINGS, ended, observed, pinned, running, stage_job

pytestmark = pytest.mark.integration

Object = dict[str, Any]
Path = tuple[str, ...]
SPEC: Object = {
    "model": {"uri": "hf://org/model"},
    "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
    "output": {"uri": "pvc://out/a"},
    "deadlineSeconds": 600,
    "ttlSecondsAfterFinished": 600,
}
CANDIDATES = (
    True, False, 0, 1, 2, 3, 7, 16, 700, 0.5, "2", "3Gi", "never", "always", "auto", "a-name", "hf://org/other", "pvc://c/other",
    [], ["a-name"], [{"uri": "pvc://c/other"}], [{"key": "k", "operator": "Exists"}], {}, {"a": "b"}, {"fraction": 0.1},
)  # fmt: skip
"""Values of which one suits most fields."""
SPECIAL: dict[str, list[Any]] = {
    "volumes": [[{"name": "extra", "emptyDir": {}}]],
    "volumeMounts": [[]],
    "env": [[{"name": "MY_VARIABLE", "value": "x"}]],
    "imagePullSecrets": [[{"name": "registry"}]],
    "topologySpreadConstraints": [[{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]],
    "nodeSelectorTerms": [[{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]],
    "preferredDuringSchedulingIgnoredDuringExecution": [
        [{"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}}],
        [{"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}}],
    ],
    "requiredDuringSchedulingIgnoredDuringExecution": [[{"topologyKey": "zone"}]],
    "accessModes": [["ReadWriteMany"]],
    "labels": [["a", "b"], {"a": "b"}],
    "rankPattern": [{"q_proj": 4}],
    "layers": [[0]],
    "gpuResource": ["amd.com/gpu"],
    "combination": ["linear", "svd"],
    "supplementalGroups": [[7]],
}
"""For fields that none of them suits."""
BESIDE: dict[Path, Object] = {
    ("model", "auth"): {"secretName": "hub"},
    ("method", "lora", "startFrom"): {"adapters": [{"uri": "pvc://c/other"}], "combination": "dareTiesSvd"},
}
"""What has to stand beside a field."""


def leaves(schema: Object, path: Path = ()) -> Iterator[tuple[Path, Object]]:
    """Every field that holds a value of its own: scalars, lists and maps."""
    for name, field in schema["properties"].items():
        if "properties" in field:
            yield from leaves(field, (*path, name))
        else:
            yield (*path, name), field


def changed(path: Path, field: Object) -> Iterator[Object]:
    """Specs that differ from the smallest one in this field, as far as pydantic takes them."""
    values = [*field.get("enum", ()), *SPECIAL.get(path[-1], ()), *CANDIDATES]
    before = FineTuneJobSpec.model_validate(SPEC)
    for value in values:
        spec = copy.deepcopy(SPEC)
        if path[0] == "method":
            spec["method"] = {}
        if path[0] == "objective":
            spec["objective"] = {}
        if path[:2] in (("dataset", "validation"), ("dataset", "test")):
            spec["dataset"][path[1]] = {}
        at = spec
        for depth, name in enumerate(path[:-1], 1):
            at = at.setdefault(name, copy.deepcopy(BESIDE.get(path[:depth], {})))
        at[path[-1]] = value
        try:
            after = FineTuneJobSpec.model_validate(spec)
        except ValidationError:
            continue
        if after != before:
            yield spec


def situations(spec: FineTuneJobSpec) -> Iterator[Plan]:
    """What is decided about a job with this spec, at moments of its life at which fields may count."""
    begun = FineTuneJobStatus(
        run=pinned(FineTuneJobSpec.model_validate(SPEC)), limits=Limits(deadline_seconds=600, retry_limit=3)
    )
    done = observed(stage_job("publish", is_complete=True), spec=spec, status=begun)
    report = json.dumps({"stage": "publish", "artifact": {"uri": "pvc://out/a", "digest": "sha256:abc"}})
    trained = [stage_job(stage, is_complete=True) for stage in STAGES]
    seen = {
        "runs": observed(stage_job("prepare"), running("prepare"), spec=spec, status=begun),
        "late": observed(stage_job("prepare"), running("prepare", since=-650), spec=spec, status=begun),
        "tried": observed(
            stage_job("prepare"),
            ended("prepare", 70),
            spec=spec,
            status=begun.model_copy(update={"stage": StageStatus(name="prepare", tries=2)}),
        ),
        "published": observed(*trained, ended("publish", 0, message=report), spec=spec, status=begun),
        "broken": observed(
            stage_job("prepare", failure="PodFailurePolicy"), ended("prepare", 65), spec=spec, status=begun
        ),
    }
    for found in seen.values():
        decided = plan(found, SETTINGS, NOW)
        yield replace(decided, status=decided.status and decided.status.model_copy(update={"limits": None}))
    over = plan(seen["published"], SETTINGS, NOW).status
    assert over is not None
    yield plan(replace(done, status=over), SETTINGS, NOW + timedelta(seconds=650))
    failed = plan(seen["broken"], SETTINGS, NOW).status
    assert failed is not None
    limits = Limits(deadline_seconds=600, retry_limit=3)
    for reason in (Reason.DATASET_INVALID, Reason.DEADLINE_EXCEEDED, Reason.OUT_OF_MEMORY):
        told = [one.model_copy(update={"reason": reason}) if one.type == "Failed" else one for one in failed.conditions]
        ended_so = failed.model_copy(update={"conditions": told, "limits": limits})
        yield Plan(expire=brought_back(spec, ended_so) is not None)


def effects(spec: FineTuneJobSpec) -> list[Any]:
    """All that an edit may change."""
    pin = pinned(FineTuneJobSpec.model_validate(SPEC))
    at = StageStatus(name="train")
    return [
        *(manifests.stage_job(METADATA, spec.resolved(), stage, at, pin, SETTINGS) for stage in STAGES),
        *situations(spec),
    ]


FIELDS = list(leaves(job_schema()["properties"]["spec"]))


def test_every_stanza_is_frozen_or_steers() -> None:
    """And none is both."""
    fields = {field.alias or name for name, field in FineTuneJobSpec.model_fields.items()}
    assert set(FROZEN) | set(STEERING) == fields
    assert not set(FROZEN) & set(STEERING)


def test_every_edit_is_refused_or_has_an_effect(control_plane: ControlPlane) -> None:
    """Each field of the spec, edited on a stored job."""
    api = Api(control_plane)
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "edited"}, "spec": SPEC}
    path = JOBS.format("default")
    created = api.create(path, body)
    before = effects(FineTuneJobSpec.model_validate(created["spec"]))
    idle, untried = [], []
    for field, schema in FIELDS:
        assessment = untried
        for spec in changed(field, schema):
            status, answer = edited(api, path, created, spec)
            is_refused = "cannot be changed" in str(answer.get("message"))
            if is_refused or (status == 200 and effects(FineTuneJobSpec.model_validate(answer["spec"])) != before):
                break
            assessment = idle if status == 200 else assessment
        else:
            assessment.append(".".join(field))
    api.delete(f"{path}/edited")
    assert (idle, untried) == ([], [])


def edited(api: Api, path: str, created: Object, spec: Object) -> tuple[int, Object]:
    """The job with another spec, tried on the server and not stored."""
    body = {"apiVersion": created["apiVersion"], "kind": created["kind"], "spec": spec}
    metadata = {"name": "edited", "resourceVersion": created["metadata"]["resourceVersion"]}
    return api.request("PUT", f"{path}/edited?dryRun=All", {**body, "metadata": metadata})
