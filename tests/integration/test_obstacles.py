"""Whatever holds a job is said at once, in the words of who holds it, and heals by itself when it is lifted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from finetune_api.labels import JOB_LABEL
from integration.kubelet import Api, Job, eventually, warn
from integration.operators import Operator
from integration.test_life import ARTIFACT, PREPARED, TRAINED

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Submit = Callable[..., Job]
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


@pytest.fixture
def put(api: Api) -> Iterator[Callable[[str, dict[str, Any]], str]]:
    """Creates objects of the cluster, and removes them with the test, if it has not done so itself."""
    made: list[str] = []

    def create(path: str, body: dict[str, Any]) -> str:
        api.create(path, body)
        made.append(f"{path}/{body['metadata']['name']}")
        return made[-1]

    yield create
    for path in made:
        api.delete(path)


def deny(
    put: Callable[[str, dict[str, Any]], str], namespace: str, group: str, resource: str, operation: str, words: str
) -> str:
    """A policy of the namespace, as a policy engine would say it; the path of what lifts it."""
    rules = [{"apiGroups": [group], "apiVersions": ["v1"], "operations": [operation], "resources": [resource]}]
    validations = [{"expression": "false", "message": words}]
    spec = {"matchConstraints": {"resourceRules": rules}, "validations": validations}
    name = f"deny-{operation}-{resource}-{namespace}".lower()
    put(POLICIES, {"metadata": {"name": name}, "spec": spec})
    selector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": selector}
    return put(BINDINGS, {"metadata": {"name": name}, "spec": binding})


def in_force(api: Api, namespace: str) -> bool:
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}
    job = {"metadata": {"name": "probe"}, "spec": {"suspend": True, "template": pod}}
    status, _ = api.request("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs?dryRun=All", job)
    return status != 201


def test_a_policy_that_denies_is_waited_for(
    api: Api, namespace: str, start_operator: Callable[..., Operator], submit_alone: Submit, put: Any
) -> None:
    """A ValidatingAdmissionPolicy answers 422, as a bad spec would: it is no field of ours that it blames."""
    lift = deny(put, namespace, "batch", "jobs", "CREATE", "label team is missing")
    eventually(lambda: in_force(api, namespace), "the policy is in force")
    start_operator()
    job = submit_alone()
    told = job.wait_reason("PolicyDenied", seconds=30)
    assert "label team is missing" in told["message"]
    assert job.status()["phase"] == "Waiting"
    assert job.condition("Failed") == {}
    api.delete(lift)
    job.new_pod("prepare", 60)


def test_what_may_not_be_deleted_is_told(api: Api, submit: Submit, put: Any) -> None:
    """A job does not end while a pod of it may still hold a GPU; it ends without its workspace being deleted."""
    job = submit()
    job.run_stage("prepare", **PREPARED)
    lift = deny(put, job.namespace, "batch", "jobs", "DELETE", "Jobs stay")
    deny(put, job.namespace, "", "persistentvolumeclaims", "DELETE", "disks stay")
    pod = job.new_pod("train")
    pod.start()
    job.wait_reason("Training")
    stem, where = f"{job.name}-{job.uid[:5]}", job.namespace
    for path in (
        f"/apis/batch/v1/namespaces/{where}/jobs/{stem}-train",
        f"/api/v1/namespaces/{where}/persistentvolumeclaims/{stem}-workspace",
    ):
        eventually(lambda path=path: api.request("DELETE", f"{path}?dryRun=All")[0] == 422, "the policy is in force")
    job.edit(suspend=True)
    assert "Jobs stay" in job.wait_reason("PolicyDenied")["message"]
    api.delete(lift)
    eventually(lambda: pod.reload().is_deleting(), "the pod is told to end", 30)
    pod.end(75)
    job.wait_phase("Suspended")
    job.edit(suspend=False)
    job.run_stage("train", **TRAINED)
    job.run_stage("publish", **ARTIFACT)
    job.wait_phase("Succeeded")
    assert "disks stay" in job.condition("Complete")["message"]


def test_a_pod_that_only_wears_our_label_stops_nothing(api: Api, submit: Submit) -> None:
    job = submit()
    container = {"name": "a", "image": "a"}
    api.create(
        f"/api/v1/namespaces/{job.namespace}/pods",
        {
            "metadata": {"name": "tool", "labels": {"finetune.dev/job-uid": job.uid}},
            "spec": {"containers": [container]},
        },
    )
    job.run_stage("prepare", **PREPARED)
    job.new_pod("train")


def test_a_webhook_that_is_down_is_told_within_half_a_minute(
    api: Api, namespace: str, start_operator: Callable[..., Operator], submit_alone: Submit, put: Any
) -> None:
    """The server answers 500 for as long; the condition has its words, and goes when it is back."""
    webhook = {
        "name": "validate.policy.example",
        "clientConfig": {"url": "https://127.0.0.1:1/validate"},
        "rules": [{"apiGroups": ["batch"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["jobs"]}],
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 5,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
    }
    lift = put(WEBHOOKS, {"metadata": {"name": f"down-{namespace}"}, "webhooks": [webhook]})
    eventually(lambda: in_force(api, namespace), "the webhook is asked")
    start_operator()
    job = submit_alone()
    assert "validate.policy.example" in job.wait_reason("ServerUnavailable", seconds=30)["message"]
    api.delete(lift)
    job.new_pod("prepare", 90)


def test_jobs_that_a_webhook_holds_up_hold_up_no_others(
    namespace: str, start_operator: Callable[..., Operator], submit_alone: Submit, put: Any
) -> None:
    """One that never answers: as many jobs wait for it as there are workers, and the next job goes on all the same."""
    held = [submit_alone() for _ in range(2)]
    names = ", ".join(f"'{job.name}'" for job in held)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        webhook = {
            "name": "silent.policy.example",
            "clientConfig": {"url": f"https://127.0.0.1:{silent.getsockname()[1]}/validate"},
            "rules": [{"apiGroups": ["batch"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["jobs"]}],
            "matchConditions": [{"name": "held", "expression": f"object.metadata.labels['{JOB_LABEL}'] in [{names}]"}],
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 30,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        }
        put(WEBHOOKS, {"metadata": {"name": f"silent-{namespace}"}, "webhooks": [webhook]})
        start_operator("--workers", "2")
        eventually(lambda: all(job.status() for job in held), "both are at work")
        submit_alone().new_pod("prepare", 9)  # the API server waits for 10 s
        for job in held:
            assert "silent.policy.example" in job.wait_reason("ServerUnavailable", seconds=30)["message"]


@pytest.mark.parametrize(
    ("hard", "reason"),
    [
        ({"requests.storage": "1Gi"}, "QuotaExceeded"),
        ({"count/jobs.batch": "0"}, "JobQuotaExceeded"),
        ({"persistentvolumeclaims": "0"}, "QuotaExceeded"),
    ],
    ids=["storage", "jobs", "claims"],
)
def test_a_quota_of_objects(
    api: Api, namespace: str, start_operator: Callable[..., Operator], submit_alone: Submit, hard: Any, reason: str
) -> None:
    """Each has its own reason and advice; raised, the job goes on."""
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.create(path, {"metadata": {"name": "team"}, "spec": {"hard": hard}})
    eventually(lambda: (api.get(f"{path}/team") or {}).get("status", {}).get("hard"), "the quota holds")
    start_operator()
    job = submit_alone()
    assert "exceeded quota" in job.wait_reason(reason, seconds=30)["message"]
    api.delete(f"{path}/team")
    job.new_pod("prepare", 60)


def test_a_quota_that_is_full_when_the_stage_is_tried_again(
    api: Api, namespace: str, start_operator: Callable[..., Operator], submit_alone: Submit
) -> None:
    """The Job controller waits for its back-off, is refused, and tells it in Events alone."""
    start_operator()
    job = submit_alone()
    pod = job.new_pod("prepare", 60)
    pod.start()
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.create(path, {"metadata": {"name": "team"}, "spec": {"hard": {"count/pods": "1"}}})
    eventually(lambda: (api.get(f"{path}/team") or {}).get("status", {}).get("used"), "the quota holds")
    pod.end(70)
    assert "exceeded quota" in job.wait_reason("QuotaExceeded", seconds=45)["message"]
    api.delete(f"{path}/team")
    job.new_pod("prepare", 90)


def test_a_limit_range(api: Api, namespace: str, start_operator: Callable[..., Operator], submit_alone: Submit) -> None:
    """Pods are refused that the Job controller wants to make; its Events tell, and an edit heals."""
    limits = [{"type": "Container", "max": {"memory": "1Gi"}}]
    api.create(
        f"/api/v1/namespaces/{namespace}/limitranges", {"metadata": {"name": "team"}, "spec": {"limits": limits}}
    )
    start_operator()
    job = submit_alone()
    assert "maximum memory usage" in job.wait_reason("LimitRange", seconds=30)["message"]
    job.edit(resources={"memory": "1Gi"})
    job.new_pod("prepare", 60)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("FailedCreatePodSandBox", "PodNotStarting"),
        ("NetworkNotReady", "PodNotStarting"),
        ("FailedAttachVolume", "VolumeNotReady"),
        ("UnexpectedAdmissionError", "PodNotStarting"),
    ],
)
def test_what_only_events_tell(submit: Submit, event: str, reason: str) -> None:
    """Whatever keeps a pod that has a node from starting: its text, and the node."""
    job = submit()
    job.new_pod("prepare").complain("no runtime for field-nvidia is configured", event)
    told = job.wait_reason(reason, seconds=15)["message"]
    assert "no runtime for field-nvidia is configured" in told
    assert "node played" in told


def test_another_container_of_the_pod_may_be_what_waits(submit: Submit) -> None:
    """An injected init container whose image cannot be pulled, by its name."""
    job = submit()
    job.new_pod("prepare").wait("ImagePullBackOff", "manifest unknown", init="istio-init")
    assert "container istio-init: ImagePullBackOff" in job.wait_reason("ImagePullFailed", seconds=10)["message"]


def test_control_characters_reach_nobody(api: Api, submit: Submit) -> None:
    """Neither a pod's report nor an Event's text acts on the terminal that shows it."""
    job = submit()
    pod = job.new_pod("prepare")
    pod.start()
    pod.end(65, {"stage": "prepare", "reason": "DatasetInvalid", "message": "line 3: \x1b]0;owned\x07\x9b2J"})
    message = job.wait_reason("DatasetInvalid", "Failed")["message"]
    assert "\\x1b]0;owned\\x07\\x9b2J" in message
    other = submit()
    waiting = other.new_pod("prepare")
    waiting.wait("ContainerCreating")
    warn(api, waiting.body, "Pod", "FailedMount", "\x1b[2J gone")
    assert "\\x1b[2J gone" in other.wait_reason("VolumeNotReady", seconds=15)["message"]


def test_a_container_that_outlives_the_trainer(start_operator: Callable[..., Operator], submit_alone: Submit) -> None:
    """A sidecar that does not end: the trainer's end counts, the other one is named, and the pod is ended."""
    start_operator("--container-grace", "3")
    job = submit_alone()
    pod = job.new_pod("prepare")
    pod.start()
    pod.outlive("istio-proxy", 0, {"stage": "prepare", **PREPARED})
    assert "container istio-proxy keeps the pod alive" in job.wait_reason("ContainerLeftRunning", seconds=10)["message"]
    assert job.condition("Prepared")["status"] == "True"
    assert job.child_job("train") is None
    eventually(lambda: pod.reload().is_deleting(), "the pod is ended")
    pod.finalise()
    train = job.new_pod("train")
    train.start()
    train.outlive("istio-proxy", 70)
    eventually(lambda: train.reload().is_deleting(), "the pod is ended")
    train.finalise()
    job.run_stage("train", **TRAINED)
    publish = job.new_pod("publish")
    publish.start()
    publish.outlive("istio-proxy", 0, {"stage": "publish", **ARTIFACT})
    job.wait_phase("Succeeded", 15)
    eventually(lambda: publish.reload().is_deleting(), "the last pod is ended")


def test_a_node_that_is_lost(control_plane: ControlPlane, api: Api, submit: Submit) -> None:
    """Past the time at which the pod should be gone: which node, and what to do about it, also while suspending."""
    job = submit()
    pod = job.new_pod("prepare")
    pod.start()
    job.wait_reason("Preparing")
    api.delete(f"/api/v1/namespaces/{job.namespace}/pods/{pod.name}", gracePeriodSeconds=1)
    began = time.monotonic()
    told = job.wait_reason("NodeLost", seconds=40)["message"]
    assert time.monotonic() - began > 10
    assert "kubectl taint node played node.kubernetes.io/out-of-service" in told
    job.edit(suspend=True)
    eventually(lambda: job.status()["observedGeneration"] == 2, "the edit is seen")
    assert job.condition("Progressing")["reason"] == "NodeLost"
    pod.end(143)
    job.wait_reason("Suspended", "Suspended")
