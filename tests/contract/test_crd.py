"""The generated CRD in a real API server: accepted, with our defaults, keeping a run frozen, and explaining itself."""

import json

import pytest

from cluster.control_plane import ControlPlane
from cluster.paths import ClusterError
from finetune_api.job import FineTuneJob
from finetune_api.spec import FROZEN

pytestmark = pytest.mark.integration

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
    """What is stored equals what the operator and the trainer would assume."""
    assert minimal["spec"] == FineTuneJob.model_validate(MINIMAL).spec.to_wire()


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
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_steers_the_run_may_change(control_plane: ControlPlane, minimal: dict, change: dict) -> None:
    """Suspension, deadlines, retries and scheduling are not frozen."""
    control_plane.kubectl("patch", "ftj", "minimal", "--type=merge", "-p", json.dumps({"spec": change}))


def test_explain_reads_well(control_plane: ControlPlane) -> None:
    """`kubectl explain` shows the docstring of the option model and of its fields."""
    text = " ".join(control_plane.kubectl("explain", "ftj.spec.method.lora").split())

    assert "Low-rank adapters beside frozen linear layers" in text
    assert "The update is scaled by alpha / rank" in text


def test_the_list_shows_the_columns_that_people_look_for(control_plane: ControlPlane, minimal: dict) -> None:
    """Phase, progress, loss, ETA and age; the artifact with `-o wide`."""
    head = control_plane.kubectl("get", "ftj", "-o", "wide").splitlines()[0].split()

    assert head == ["NAME", "PHASE", "PROGRESS", "LOSS", "ETA", "ARTIFACT", "AGE"]
