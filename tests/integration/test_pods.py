"""How pods look, in the real API server: under a policy that gives its own ids, and with the metadata of their job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from integration.kubelet import PODS, Api, Job, eventually
from integration.operators import Operator, create_job, new_namespace

pytestmark = pytest.mark.integration

FLAGS = ("--pod-template", '{"securityContext": {}}', "--copy-labels=cost-center", "--copy-annotations=karpenter.sh/*")
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
CHOSEN = ("runAsUser", "runAsGroup", "fsGroup")
LABELS = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "prod", "cost-center": "4711"}
ANNOTATIONS = {"karpenter.sh/do-not-disrupt": "true", "note": "stays here"}


@pytest.fixture(scope="module")
def platform(control_plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator as on OpenShift: ids are left to the platform, some metadata is passed on."""
    log = tmp_path_factory.mktemp("platform") / "log"
    running = Operator(control_plane, new_namespace(api), log, *FLAGS).wait_ready()
    yield running
    assert running.stop() == 0


@pytest.fixture
def restricted(api: Api, platform: Operator) -> Iterator[None]:
    """What restricted-v2 asks of the pods of a namespace: no id but the platform's own, and no root."""
    pod = "object.spec.securityContext"
    chosen = " || ".join(f"has({pod}.{name})" for name in CHOSEN)
    rule = f"has({pod}) && {pod}.runAsNonRoot && !({chosen})"
    about: dict[str, Any] = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
    policy = {"matchConstraints": {"resourceRules": [about]}, "validations": [{"expression": rule}]}
    binding: dict[str, Any] = {"policyName": "restricted-v2", "validationActions": ["Deny"]}
    where = {"matchLabels": {"kubernetes.io/metadata.name": platform.namespace}}
    binding["matchResources"] = {"namespaceSelector": where}
    api.create(POLICIES, {"metadata": {"name": "restricted-v2"}, "spec": policy})
    api.create(BINDINGS, {"metadata": {"name": "restricted-v2"}, "spec": binding})
    probe = {
        "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "a", "image": "a"}], "securityContext": {"runAsUser": 10001}},
    }
    dry = f"{PODS.format(platform.namespace)}?dryRun=All"
    eventually(lambda: api.request("POST", dry, probe)[0] == 422, "the policy is in force")
    yield
    api.delete(f"{BINDINGS}/restricted-v2")
    api.delete(f"{POLICIES}/restricted-v2")


@pytest.mark.usefixtures("restricted")
def test_a_platform_that_gives_its_own_ids_admits_every_pod(api: Api, platform: Operator) -> None:
    """No pod of ours names an id, in no stage, and each is still fit for such a namespace."""
    job = create_job(api, platform.namespace)
    job.run_stage("prepare")
    job.run_stage("train")
    job.run_stage("publish", artifact={"uri": "pvc://results/tuned", "digest": "sha256:abc"})
    job.wait_phase("Succeeded")


def test_the_metadata_of_a_job_reaches_its_pods(api: Api, platform: Operator) -> None:
    """By the platform's lists; Kueue's labels reach the train Job, which waits for Kueue."""
    job = labelled(api, platform.namespace)
    metadata = job.new_pod("prepare").body["metadata"]
    assert metadata["labels"]["cost-center"] == "4711"
    assert metadata["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}
    job.run_stage("prepare")
    train = eventually(lambda: job.child_job("train"), "the train Job")
    assert {key: value for key, value in train["metadata"]["labels"].items() if "kueue" in key} == {
        key: value for key, value in LABELS.items() if "kueue" in key
    }
    assert train["spec"]["suspend"]
    message = job.wait_reason("Queued")["message"]
    assert "team-a" in message


def labelled(api: Api, namespace: str) -> Job:
    spec = {
        "model": {"uri": "pvc://models/base"},
        "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
        "output": {"uri": "pvc://results/labelled"},
    }
    metadata = {"name": "labelled", "namespace": namespace, "labels": LABELS, "annotations": ANNOTATIONS}
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": spec}
    api.create(f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs", body)
    return Job(api, namespace, "labelled")


def test_an_edit_of_the_template_reaches_the_next_pod(api: Api, platform: Operator) -> None:
    """While prepare runs, the nodes of training are still a matter of the spec."""
    job = create_job(api, platform.namespace)
    pod = job.new_pod("prepare")
    pod.start()
    job.edit(podTemplate={"stages": {"train": {"nodeSelector": {"pool": "gpu"}}}})
    pod.end(0, {"stage": "prepare"})
    # A look that had begun before the edit may have made one without.
    edited = lambda: any(pod.body["spec"].get("nodeSelector") == {"pool": "gpu"} for pod in job.pods("train"))  # noqa: E731
    eventually(edited, "a pod for the GPU nodes")
