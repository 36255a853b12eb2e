"""What stands between a job and its pods on clusters of platform teams: injectors, clean-ups, ids, runtimes, modes.

Each is played by a policy of the API server that changes what we create, on a real node.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tiny
from e2e.courier import Courier
from e2e.jobs import Jobs, condition, has_reason, steps
from e2e.kubectl import Kubectl, Object
from e2e.test_interruptions import RESOURCES, evict, tiny_job

pytestmark = pytest.mark.timeout(900)

FEW_STEPS = {"maxSteps": 4, "batchSize": 4, "maxLength": 64, "precision": "fp32"}
SLEEP = "['python', '-c', 'import time; time.sleep(86400)']"
SECURITY = "securityContext: Object.spec.containers.securityContext{allowPrivilegeEscalation: false, " + (
    "capabilities: Object.spec.containers.securityContext.capabilities{drop: ['ALL']}}"
)


@pytest.fixture(scope="module", autouse=True)
def data(desk: Courier, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("data")
    tiny.jsonl(folder / "few.jsonl", tiny.completions(60))
    tiny.jsonl(folder / "secret.jsonl", tiny.completions(60))
    desk.put(folder, "datasets")
    desk.kubectl("exec", desk.name, "--", "chmod", "000", "/volumes/datasets/secret.jsonl")


Mutate = Callable[[str, str, str], None]


@pytest.fixture
def mutate(kubectl: Kubectl) -> Iterator[Mutate]:
    """Has the API server patch what is created for a job: `mutate(job, "pods", patches)`."""
    made: list[str] = []

    def policy(job: str, resource: str, patches: str) -> None:
        group = "batch" if resource == "jobs" else ""
        label = f"object.metadata.labels['finetune.dev/job'] == '{job}'"
        condition = f"has(object.metadata.labels) && 'finetune.dev/job' in object.metadata.labels && {label}"
        rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
        spec = {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "ours", "expression": condition}],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{patches}]"}}],
        }
        name = f"e2e-{job}"
        api = "admissionregistration.k8s.io/v1"
        kubectl.apply({"apiVersion": api, "kind": "MutatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec})
        binding = {"policyName": name}
        body = {"kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name}, "spec": binding}
        kubectl.apply({"apiVersion": api, **body})
        made.append(name)

    yield policy
    for name in made:
        kubectl("delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", name, "--ignore-not-found")


def few_steps(name: str, model: str, **stanzas: Any) -> Object:
    return tiny_job(name, model, data="few.jsonl", **{"training": FEW_STEPS, **stanzas})


def test_a_sidecar_that_never_ends(jobs: Jobs, tiny_model: str, images: Any, mutate: Mutate) -> None:
    """As a service mesh injects it: every stage is judged by the trainer, and its pod is ended after a grace."""
    sidecar = f"{{name: 'istio-proxy', image: '{images.trainer}', command: {SLEEP}, {SECURITY}}}"
    mutate(
        "meshed", "pods", f"JSONPatch{{op: 'add', path: '/spec/containers/-', value: Object.spec.containers{sidecar}}}"
    )
    name = jobs.apply(few_steps("meshed", tiny_model))
    held = jobs.until(name, lambda job: has_reason(job, "ContainerLeftRunning"), "the container is named")
    assert "istio-proxy" in condition(held, "Progressing")["message"]
    jobs.until_succeeded(name)


def test_a_clean_up_that_is_faster_than_the_operator(jobs: Jobs, tiny_model: str, mutate: Mutate) -> None:
    """A policy gives every Job no time to live: each stage runs once all the same."""
    mutate("cleaned", "jobs", "JSONPatch{op: 'replace', path: '/spec/ttlSecondsAfterFinished', value: 0}")
    name = jobs.apply(few_steps("cleaned", tiny_model))
    job = jobs.until_succeeded(name)
    assert len(job["status"]["attempts"]) == 1
    assert job["status"]["data"]["trainExamples"] > 0
    started = [event for event in events(jobs, name) if event["reason"] == "SuccessfulCreate"]
    assert len(started) == 3


def events(jobs: Jobs, name: str) -> list[Object]:
    """Events about the Kubernetes Jobs of a job."""
    found = json.loads(jobs.kubectl("get", "events", "--output=json"))["items"]
    return [
        one for one in found if one["involvedObject"]["kind"] == "Job" and f"{name}-" in one["involvedObject"]["name"]
    ]


def test_ids_of_the_platform(jobs: Jobs, tiny_model: str, desk: Courier, mutate: Mutate) -> None:
    """A user id that no image knows, in group 0, as OpenShift gives it."""
    ids = {"runAsUser": 1000660000, "runAsGroup": 0, "fsGroup": 10001}
    patches = [
        f"JSONPatch{{op: 'replace', path: '/spec/securityContext/{key}', value: {value}}}" for key, value in ids.items()
    ]
    mutate("any-id", "pods", ", ".join(patches))
    desk.kubectl(
        "exec", desk.name, "--", "sh", "-c", "mkdir -p /volumes/models/shared && chmod 2775 /volumes/models/shared"
    )
    output = {"output": {"uri": "pvc://models/shared/any-id"}}
    jobs.until_succeeded(jobs.apply(few_steps("any-id", tiny_model, **output)))
    assert desk.has("models", "shared/any-id/adapter_model.safetensors")


def test_a_runtime_that_the_node_does_not_have(jobs: Jobs, tiny_model: str, mutate: Mutate) -> None:
    """The pod gets no sandbox: only an Event tells, and the condition has its text and the node."""
    runtime = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "absent"},
        "handler": "absent",
    }
    jobs.kubectl.apply(runtime)
    name = jobs.apply(few_steps("no-sandbox", tiny_model, podTemplate={"runtimeClassName": "absent"}))
    waiting = jobs.until(name, lambda job: has_reason(job, "PodNotStarting"), "PodNotStarting", 60)
    assert "FailedCreatePodSandBox" in condition(waiting, "Progressing")["message"]
    patch = '{"spec": {"podTemplate": null}}'
    jobs.kubectl("patch", "finetunejob", name, "--type=merge", "--patch", patch)
    jobs.until_succeeded(name)
    jobs.kubectl("delete", "runtimeclass", "absent")


def test_data_that_the_pods_user_may_not_read(jobs: Jobs, tiny_model: str) -> None:
    """The reason of the dataset, with uid, gid and mode; mended and restarted, the job succeeds."""
    name = jobs.apply(tiny_job("unreadable", tiny_model, data="secret.jsonl", training=FEW_STEPS, retry={"limit": 0}))
    failed = condition(jobs.until_failed(name), "Failed")
    assert failed["reason"] == "DatasetUnavailable"
    for word in ("secret.jsonl", "uid 10001", "gid 10001", "mode 0"):
        assert word in failed["message"]
    assert "defect" not in failed["message"]


def test_evictions_in_a_row(jobs: Jobs, tiny_model: str) -> None:
    """Each costs seconds; by the Kubernetes Job's own back-off the fourth would wait for 80."""
    name = jobs.apply(tiny_job("hunted", tiny_model, data="few.jsonl", resources=RESOURCES))
    for number in range(1, 5):
        is_far = lambda job, number=number: attempts(job) == number and steps(job) >= 30 * number  # noqa: E731
        job = jobs.until(name, is_far, f"attempt {number} gets further")
        evict(jobs.kubectl, job["status"]["attempts"][-1]["pod"])
    status = jobs.until_succeeded(name)["status"]
    assert status["recovery"]["restarts"] == 4
    names = {pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] for pod in jobs.pods(name, "train")}
    assert {one.partition("-train")[2] for one in names} == {"-5"}


def attempts(job: Object) -> int:
    return len(job.get("status", {}).get("attempts", []))
