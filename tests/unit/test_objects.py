"""The manifests of a job's children. The golden files are reviewed as they are: they are what runs in a cluster.

`UPDATE_GOLDEN=1 .venv/bin/pytest tests/unit/test_objects.py` writes them anew.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.spec.job_spec import FineTuneJobSpec, Metadata
from finetune_api.stages import STAGES, StageName
from finetune_api.status import StageStatus
from finetune_operator import manifests
from unit.observed import METADATA, SETTINGS, pinned, spec

GOLDEN = Path(__file__).parents[1] / "golden" / "operator"
SPECS: dict[str, dict[str, Any]] = {
    "minimal": {},
    "everything": {
        "model": {"uri": "pvc://models/base"},
        "dataset": {
            "train": [
                {"uri": "hf://org/data", "auth": {"secretName": "hub"}},
                {"uri": "configmap://extra/more.jsonl"},
            ],
            "test": {"sources": [{"uri": "pvc://datasets/test.jsonl"}]},
        },
        "output": {"uri": "pvc://models/tuned", "merge": True},
        "resources": {"gpus": 1, "cpu": "1500m", "workspace": {"size": "5Gi", "storageClassName": "fast"}},
        "scheduling": {
            "queue": "team",
            "priorityClassName": "low",
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        },
        "retry": {"limit": 1},
    },
    "starting-from-adapters": {
        "model": {"uri": "pvc://models/base"},
        "method": {
            "lora": {
                "startFrom": {
                    "adapters": [
                        {"uri": "pvc://adapters/one", "weight": 0.5},
                        {"uri": "hf://org/adapter", "weight": 0.5, "auth": {"secretName": "hub"}},
                    ]
                }
            }
        },
        "training": {"maxSteps": 0},
        "resources": {"gpus": 0},
    },
    "shaped": {
        "model": {"uri": "pvc://models/base", "auth": {"secretName": "hub", "key": "api-token"}},
        "scheduling": {
            "nodeSelector": {"zone": "a", "pool": "any"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
        },
        "resources": {"workspace": {"accessModes": ["ReadWriteMany"]}},
        "podTemplate": {
            "metadata": {"labels": {"team": "nlp"}, "annotations": {"sidecar.istio.io/inject": "false"}},
            "serviceAccountName": "trainers",
            "imagePullSecrets": [{"name": "pull"}],
            "runtimeClassName": "gvisor",
            "schedulerName": "volcano",
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
            "securityContext": {"unset": ["runAsUser", "runAsGroup"], "supplementalGroups": [4000]},
            "env": [
                {"name": "NCCL_DEBUG", "value": "INFO"},
                {"name": "PROXY_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "password"}}},
            ],
            "volumes": [
                {"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}},
                {"name": "ca", "configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ],
            "volumeMounts": [{"name": "cache", "mountPath": "/mnt/cache", "subPath": "team"}],
            "ephemeralStorage": {"request": "1Gi", "limit": "10Gi"},
            "stages": {
                "prepare": {"volumeMounts": [{"name": "ca", "mountPath": "/mnt/ca", "readOnly": True}]},
                "train": {
                    "nodeSelector": {"pool": "gpu"},
                    "tolerations": [{"key": "gpu", "operator": "Exists"}],
                    "terminationGracePeriodSeconds": 600,
                    "affinity": {
                        "nodeAffinity": {
                            "requiredDuringSchedulingIgnoredDuringExecution": {
                                "nodeSelectorTerms": [
                                    {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}
                                ]
                            }
                        }
                    },
                },
            },
        },
    },
    "offline-on-cpu": {"model": {"uri": "pvc://models/base"}, "resources": {"gpus": 0}},
}


def job_of(wanted: FineTuneJobSpec, stage: StageName, number: int = 1, owner: Metadata = METADATA) -> dict[str, Any]:
    """A Kubernetes Job of the stage, as it is made for this spec."""
    at = StageStatus(name=stage, number=number)
    return manifests.stage_job(owner, wanted.resolved(), stage, at, pinned(wanted), SETTINGS)


def children_of(wanted: FineTuneJobSpec) -> list[dict[str, Any]]:
    """All children; the run file, which is one string, opened up for the reader."""
    config = manifests.run_config_map(METADATA, manifests.frozen_run(METADATA, wanted, SETTINGS))
    config["data"] = {name: json.loads(text) for name, text in config["data"].items()}
    jobs = [job_of(wanted, stage) for stage in STAGES]
    return [config, manifests.workspace_claim(METADATA, wanted), *jobs]


@pytest.mark.parametrize("name", SPECS)
def test_the_manifests_are_those_that_were_reviewed(name: str) -> None:
    """What a job makes is the golden file, to the letter."""
    rendered = yaml.safe_dump_all(children_of(spec(**SPECS[name])), sort_keys=False, width=120)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(rendered)
    assert rendered == file.read_text()


def test_names_fit_into_a_label() -> None:
    """The longest name allowed, with uid, stage and number, has at most 63 characters: the Job controller labels pods
    with it. With its suffix a first Job's pod has no more either; later ones are cut by the API server."""
    owner = METADATA.model_copy(update={"name": "a" * 40})
    lengths = {n: [len(job_of(spec(), stage, n, owner)["metadata"]["name"]) for stage in STAGES] for n in (1, 9999)}
    assert max(lengths[1]) + 6 <= 63
    assert max(lengths[9999]) <= 63


def test_two_steps_of_one_second_are_two_events() -> None:
    """A second attempt may begin in the second in which the first did: only what says the same is one Event."""
    metadata, now = Metadata(name="job", uid="12345-6"), datetime(2026, 1, 1, tzinfo=UTC)
    said = [manifests.event(metadata, "Normal", "Training", message, now) for message in ("one", "two", "two")]
    names = [event["metadata"]["name"] for event in said]
    assert names[0] != names[1] == names[2]


@pytest.mark.parametrize(
    ("reclaim", "after_success", "after_failure"),
    [
        (None, True, False),
        ({}, True, False),
        ({"onSuccess": "Retain"}, False, False),
        ({"onFailure": "Delete"}, True, True),
    ],
)
def test_a_workspace_goes_with_success_and_stays_with_failure(
    reclaim: dict[str, str] | None, after_success: bool, after_failure: bool
) -> None:
    """The record of a job holds no disk, and a failure loses none, unless the job says otherwise."""
    workspace = spec(resources={"workspace": {"reclaim": reclaim}}).resources.workspace
    assert (workspace.is_deleted_after(True), workspace.is_deleted_after(False)) == (after_success, after_failure)


def test_the_workspace_asks_for_what_the_job_says() -> None:
    """ReadWriteOnce unless it says otherwise."""
    modes = [
        manifests.workspace_claim(METADATA, spec(resources={"workspace": workspace}))["spec"]["accessModes"]
        for workspace in ({}, {"accessModes": ["ReadWriteMany"]})
    ]
    assert modes == [["ReadWriteOnce"], ["ReadWriteMany"]]
