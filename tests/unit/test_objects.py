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

from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec, Metadata
from finetune_operator import objects
from finetune_operator.facts import STAGES, StageName
from unit.observed import METADATA, SETTINGS, spec

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
    "offline-on-cpu": {"model": {"uri": "pvc://models/base"}, "resources": {"gpus": 0}},
}


def run_of(wanted: FineTuneJobSpec) -> Run:
    return objects.frozen_run(METADATA, wanted, SETTINGS)


def manifests(wanted: FineTuneJobSpec) -> list[dict[str, Any]]:
    """All children; the run file, which is one string, opened up for the reader."""
    run = run_of(wanted)
    config = objects.run_config_map(run)
    config["data"] = {name: json.loads(text) for name, text in config["data"].items()}
    jobs = [objects.stage_job(run, stage, SETTINGS) for stage in STAGES]
    return [config, objects.workspace_claim(run), *jobs]


def container(job: dict[str, Any]) -> dict[str, Any]:
    return dict(job["spec"]["template"]["spec"]["containers"][0])


@pytest.mark.parametrize("name", SPECS)
def test_the_manifests_are_those_that_were_reviewed(name: str) -> None:
    """What a job makes is the golden file, to the letter."""
    rendered = yaml.safe_dump_all(manifests(spec(**SPECS[name])), sort_keys=False, width=120)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(rendered)
    assert rendered == file.read_text()


def test_only_training_holds_gpus() -> None:
    """prepare and publish ask for none."""
    run = run_of(spec(resources={"gpus": 1}))
    held = [container(objects.stage_job(run, stage, SETTINGS))["resources"]["limits"] for stage in STAGES]
    assert ["nvidia.com/gpu" in limits for limits in held] == [False, True, False]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SPECS)
def test_every_pod_is_fit_for_a_restricted_namespace(name: str, stage: StageName) -> None:
    """No root, no capability, no writable root file system, no token of the API server."""
    job = objects.stage_job(run_of(spec(**SPECS[name])), stage, SETTINGS)
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container(job)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_claim_that_is_input_and_output_is_mounted_once(stage: StageName) -> None:
    """A volume can be mounted at one place only; where the stage writes, it is writable."""
    wanted = spec(model={"uri": "pvc://models/base"}, output={"uri": "pvc://models/tuned"})
    mounts = container(objects.stage_job(run_of(wanted), stage, SETTINGS))["volumeMounts"]
    (mount,) = [mount for mount in mounts if mount["mountPath"] == "/volumes/models"]
    assert mount.get("readOnly", False) == (stage == "train")


def test_credentials_and_data_are_mounted_in_prepare_alone() -> None:
    """What trains, and what publishes, never sees a token."""
    run = run_of(spec(**SPECS["everything"]))
    paths = {
        stage: {mount["mountPath"] for mount in container(objects.stage_job(run, stage, SETTINGS))["volumeMounts"]}
        for stage in STAGES
    }
    assert {"/secrets/hub", "/volumes/datasets", "/configmaps/extra"} <= paths["prepare"]
    for stage in ("train", "publish"):
        assert not {path for path in paths[stage] if path.startswith(("/secrets", "/configmaps", "/volumes/datasets"))}


def test_the_run_file_says_where_everything_is_mounted() -> None:
    """The trainer finds by URI exactly what the pod mounts."""
    run = run_of(spec(**SPECS["everything"]))
    mounted = {mount["mountPath"] for mount in container(objects.stage_job(run, "prepare", SETTINGS))["volumeMounts"]}
    assert set(run.mounts.values()) <= mounted
    assert str(run.locate("configmap://extra/more.jsonl")) == "/configmaps/extra/more.jsonl"
    assert str(run.secret("hub")) == "/secrets/hub/token"


def test_the_hub_is_off_only_when_nothing_is_on_it() -> None:
    """An offline run never waits for a network that is not there."""
    names = [
        {one["name"] for one in container(objects.stage_job(run_of(spec(**SPECS[name])), "prepare", SETTINGS))["env"]}
        for name in ("minimal", "offline-on-cpu")
    ]
    assert ["HF_HUB_OFFLINE" in one for one in names] == [False, True]


@pytest.mark.parametrize(("cpu", "threads"), [("500m", "1"), ("2", "2"), ("3500m", "4"), (4, "4")])
def test_arithmetic_uses_as_many_threads_as_there_are_cores(cpu: object, threads: str) -> None:
    """Libraries would count the node's cores."""
    job = objects.stage_job(run_of(spec(resources={"cpu": cpu})), "train", SETTINGS)
    assert {"name": "OMP_NUM_THREADS", "value": threads} in container(job)["env"]


def test_names_fit_into_a_label() -> None:
    """The longest name allowed, with uid, stage and the Job controller's suffix, has at most 63 characters."""
    run = run_of(spec()).model_copy(update={"name": "a" * 40})
    assert max(len(objects.stage_job(run, stage, SETTINGS)["metadata"]["name"]) + 6 for stage in STAGES) <= 63


def test_two_steps_of_one_second_are_two_events() -> None:
    """A second attempt may begin in the second in which the first did: only what says the same is one Event."""
    metadata, now = Metadata(name="job", uid="12345-6"), datetime(2026, 1, 1, tzinfo=UTC)
    said = [objects.event(metadata, "Normal", "Training", message, now) for message in ("one", "two", "two")]
    names = [event["metadata"]["name"] for event in said]
    assert names[0] != names[1] == names[2]
