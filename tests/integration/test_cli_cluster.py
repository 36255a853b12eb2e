"""`finetune watch`, `describe`, `logs` and `restart` against a real API server: what they show, and how they fail.

There is no operator here: the job's status and its pods are written by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.control_plane import ControlPlane, free_port
from finetune_api import labels
from finetune_cli.cluster import connect
from finetune_cli.main import app

pytestmark = pytest.mark.integration

NAMESPACE = "cli"
JOB = {
    "apiVersion": labels.API_VERSION,
    "kind": labels.KIND,
    "metadata": {"name": "support-bot", "namespace": NAMESPACE},
    "spec": {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
        "output": {"uri": "pvc://models/bot"},
    },
}
Finetune = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    """A namespace with one job."""
    control_plane.kubectl("create", "namespace", NAMESPACE)
    control_plane.kubectl("create", "-f", "-", document=json.dumps(JOB))
    return control_plane


@pytest.fixture
def finetune(plane: ControlPlane) -> Finetune:
    def run(*arguments: str, namespace: str = NAMESPACE) -> tuple[int, str, str]:
        shared = ["--kubeconfig", str(plane.kubeconfig), "--namespace", namespace]
        result = CliRunner().invoke(app, [*arguments, *shared])
        return result.exit_code, result.stdout, result.stderr

    return run


def report(plane: ControlPlane, status: dict[str, Any]) -> None:
    """Write the job's status as the operator would."""
    patch = json.dumps({"status": status})
    plane.kubectl("patch", "ftj", "support-bot", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch)


def a_pod(uid: str, node: str | None) -> dict[str, Any]:
    names = {labels.JOB_LABEL: "support-bot", labels.JOB_UID_LABEL: uid, labels.STAGE_LABEL: "train"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "support-bot-train", "namespace": NAMESPACE, "labels": names},
        "spec": {"containers": [{"name": labels.CONTAINER, "image": "nowhere/nothing:1"}]}
        | ({"nodeName": node} if node else {}),
    }


def test_a_running_job_is_described(plane: ControlPlane, finetune: Finetune) -> None:
    """Spec in short, phase and progress."""
    report(plane, {"phase": "Training", "progress": {"stage": "train", "step": 12, "totalSteps": 120, "percent": 10}})
    code, out, _ = finetune("describe", "support-bot")

    assert code == 0
    assert "Training" in out
    assert "train, 12/120 (10 %)" in out
    assert "sft with lora" in out


def test_watching_a_failed_job_ends_with_the_next_step(plane: ControlPlane, finetune: Finetune) -> None:
    """Exit code 1, the reason, and what to do."""
    condition = {"type": "Failed", "status": "True", "reason": "DatasetInvalid", "message": "a.jsonl:7: not JSON",
                 "lastTransitionTime": "2026-01-02T00:00:00Z"}  # fmt: skip
    report(plane, {"phase": "Failed", "conditions": [condition]})
    code, out, _ = finetune("watch", "support-bot")

    assert code == 1
    assert "support-bot: Failed" in out
    assert "a.jsonl:7: not JSON" in out
    assert "Next: Correct the records" in out


def test_a_restart_raises_the_counter(plane: ControlPlane, finetune: Finetune) -> None:
    """By one each time; of a job that has succeeded the API server refuses it, and says why."""
    report(plane, {"phase": "Failed", "stage": {"name": "train", "tries": 4}})
    assert finetune("restart", "support-bot")[:2] == (
        0,
        "support-bot goes on with stage train, with all its tries. `finetune watch support-bot` follows it.\n",
    )
    assert finetune("restart", "support-bot")[0] == 0
    stored = json.loads(plane.kubectl("get", "ftj", "support-bot", "-n", NAMESPACE, "-o", "json"))
    assert stored["spec"]["restarts"] == 2

    report(plane, {"phase": "Succeeded"})
    code, out, err = finetune("restart", "support-bot")
    assert (code, out) == (1, "")
    assert "a job that has succeeded is not run again: apply it under a new name" in err
    assert len(err.splitlines()) == 1


def test_changes_are_watched_not_asked_for(plane: ControlPlane) -> None:
    """One list, then each change as it happens: of that job, until it is deleted."""
    report(plane, {"phase": "Preparing"})
    plane.kubectl(
        "create", "-f", "-", document=json.dumps({**JOB, "metadata": {"name": "other", "namespace": NAMESPACE}})
    )
    cluster = connect(str(plane.kubeconfig), None)
    one, every = cluster.changes(NAMESPACE, "other"), cluster.changes(NAMESPACE, None)

    assert [body["metadata"]["name"] for body in next(one)] == ["other"]
    assert {body["metadata"]["name"] for body in next(every)} == {"other", "support-bot"}
    report(plane, {"phase": "Training"})
    assert {body["metadata"]["name"]: body.get("status", {}).get("phase") for body in next(every)} == {
        "other": None, "support-bot": "Training"}  # fmt: skip
    plane.kubectl("delete", "ftj", "other", "-n", NAMESPACE)
    assert next(one) == []
    assert [body["metadata"]["name"] for body in next(every)] == ["support-bot"]


def test_a_watch_that_the_server_ends_goes_on(plane: ControlPlane) -> None:
    """From the last version that was seen: what happened in between is told, and nothing is listed again."""
    cluster = connect(str(plane.kubeconfig), None, watch_seconds=1)
    report(plane, {"phase": "Preparing"})
    states = cluster.changes(NAMESPACE, "support-bot")
    next(states)

    for phase in ("Training", "Publishing"):
        report(plane, {"phase": phase})
        assert [body["status"]["phase"] for body in next(states)] == [phase]


def test_watching_a_finished_job_ends_well(plane: ControlPlane, finetune: Finetune) -> None:
    """Exit code 0."""
    report(plane, {"phase": "Succeeded", "conditions": []})

    assert finetune("watch", "support-bot")[:2] == (0, "support-bot: Succeeded\n")


@pytest.mark.parametrize("verb", ["describe", "status", "watch", "logs"])
def test_a_wrong_name_is_told_of_near_ones(finetune: Finetune, verb: str) -> None:
    """One line on standard error, exit code 1."""
    code, out, err = finetune(verb, "suport-bot")

    assert (code, out) == (1, "")
    assert err == "no FineTuneJob suport-bot in namespace cli: did you mean support-bot?\n"


def test_another_namespace_is_suggested_where_there_is_no_job(finetune: Finetune) -> None:
    """A namespace without jobs says so."""
    assert "in namespace default: " in finetune("describe", "support-bot", namespace="default")[2]


def test_logs_without_a_pod_name_the_phase(plane: ControlPlane, finetune: Finetune) -> None:
    """Nothing has started, and why may be read from the phase."""
    report(plane, {"phase": "Queued"})

    assert finetune("logs", "support-bot") == (1, "", "no pod of support-bot has started (Queued)\n")
    assert "no pod of stage publish of support-bot" in finetune("logs", "support-bot", "--stage", "publish")[2]


def test_a_node_that_does_not_answer_is_a_clear_error(plane: ControlPlane, finetune: Finetune) -> None:
    """A pod whose node is gone has a log that nobody can read: the API server's words, no traceback."""
    uid = json.loads(plane.kubectl("get", "ftj", "support-bot", "-n", NAMESPACE, "-o", "json"))["metadata"]["uid"]
    plane.kubectl("create", "-f", "-", document=json.dumps(a_pod(uid, "gone")))
    running = {"name": labels.CONTAINER, "image": "x", "imageID": "x", "ready": True, "restartCount": 0,
               "state": {"running": {"startedAt": "2026-01-02T00:00:00Z"}}}  # fmt: skip
    patch = json.dumps({"status": {"containerStatuses": [running]}})
    plane.kubectl("patch", "pod", "support-bot-train", "-n", NAMESPACE, "--subresource=status", "-p", patch)
    code, out, err = finetune("logs", "support-bot")

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1


def test_a_cluster_without_the_crd_is_told_apart(tmp_path: Path) -> None:
    """The operator is not installed: the message says so."""
    with ControlPlane(controller_manager=False) as bare:
        result = CliRunner().invoke(app, ["describe", "bot", "--kubeconfig", str(bare.kubeconfig)])

    assert result.exit_code == 1
    assert "knows no FineTuneJobs: install the operator's chart" in result.stderr


def test_a_cluster_that_is_down_is_a_clear_error(plane: ControlPlane, tmp_path: Path) -> None:
    """The address and the cause, within seconds."""
    kubeconfig = tmp_path / "config"
    here = plane.url.rpartition(":")[0]
    kubeconfig.write_text(plane.kubeconfig.read_text().replace(plane.url, f"{here}:{free_port()}"))
    result = CliRunner().invoke(app, ["watch", "--kubeconfig", str(kubeconfig)])

    assert result.exit_code == 1
    assert "cannot reach the cluster at https://" in result.stderr
    assert "refused" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--kubeconfig", "/nowhere/config"], "no cluster to ask"), (["--context", "nowhere"], "nowhere")],
)
def test_a_kubeconfig_that_is_not_there_is_a_clear_error(
    plane: ControlPlane, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong file, wrong context: one line that names it."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    result = CliRunner().invoke(app, ["watch", *arguments])

    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
