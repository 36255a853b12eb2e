"""A run that is disturbed ends as if it had not been, and a run that cannot end well says why.

Tiny models, many steps. The reference run starts first and is disturbed by nobody; the weights of the disturbed runs
are compared with its own, bit for bit.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache

import pytest

import tiny
from e2e.courier import Courier
from e2e.installation import RELEASE, is_current, local_cluster
from e2e.jobs import Jobs, condition, explanation, has_reason, phase
from e2e.kubectl import Kubectl, Object

pytestmark = pytest.mark.timeout(1200)

STEPS = 1000
MIDDLE = 200
"""Far enough that something would be lost, early enough that most is still to come when the news gets here."""

TRAINING = {"maxSteps": STEPS, "batchSize": 8, "maxLength": 64, "learningRate": 0.001}
RESOURCES = {"gpus": 0, "cpu": "800m", "memory": "2Gi", "workspace": {"size": "1Gi"}}

Digest = Callable[[str], str]


def tiny_job(name: str, model: str, data: str = "tiny.jsonl", **stanzas: object) -> Object:
    """A job of about half a minute; `stanzas` replace those of its spec."""
    spec: Object = {
        "model": {"uri": model},
        "dataset": {"train": [{"uri": f"pvc://datasets/{data}"}]},
        "method": {"lora": {"rank": 8, "dropout": 0.1}},
        "training": TRAINING,
        "checkpoint": {"everySteps": 100},
        "output": {"uri": f"pvc://models/results/{name}"},
        "resources": RESOURCES,
    }
    metadata = {"name": name}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": spec | stanzas}


@pytest.fixture(scope="module", autouse=True)
def data(desk: Courier, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One good file, one with a broken line, one with records so long that a batch of them takes gigabytes."""
    folder = tmp_path_factory.mktemp("data")
    rows = tiny.jsonl(folder / "tiny.jsonl", tiny.completions(400))
    lines = rows.read_text(encoding="utf-8").splitlines()
    lines[70] = lines[70][:-5]
    (folder / "broken.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tiny.jsonl(folder / "long.jsonl", ({"text": f"{word} " * 60} for word in tiny.words(5000)))
    desk.put(folder, "datasets")


@pytest.fixture(scope="module", autouse=True)
def reference(jobs: Jobs, tiny_model: str, data: None) -> str:
    """The name of the run that nobody disturbs; it goes on while other tests run."""
    return jobs.apply(tiny_job("reference", tiny_model))


@pytest.fixture(scope="module")
def weights(desk: Courier, tmp_path_factory: pytest.TempPathFactory) -> Digest:
    """The digest of the weights that a job of some name published."""

    def digest(name: str) -> str:
        folder = desk.take("models", f"results/{name}", tmp_path_factory.mktemp("results") / name)
        return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()

    return digest


@pytest.fixture(scope="module")
def expected_weights(jobs: Jobs, reference: str, weights: Digest) -> Callable[[], str]:
    """The digest of the reference run's weights; waits for it only when asked, so that runs can overlap."""

    @cache
    def digest() -> str:
        jobs.until_succeeded(reference)
        return weights(reference)

    return digest


def test_bad_data(jobs: Jobs, tiny_model: str) -> None:
    """A broken record fails the job with file and line before a train Job exists."""
    name = jobs.apply(tiny_job("broken-data", tiny_model, data="broken.jsonl"))
    failed = condition(jobs.until_failed(name), "Failed")
    assert failed["reason"] == "DatasetInvalid"
    assert "broken.jsonl" in failed["message"]
    assert "71" in failed["message"]
    assert "train" not in jobs.stage_jobs(name)


def test_too_large_a_plan(jobs: Jobs, tiny_model: str) -> None:
    """A job that cannot fit its memory is refused by prepare, with numbers; train never exists."""
    training = {"maxSteps": 5, "batchSize": 4096, "microBatchSize": 4096, "maxLength": 256}
    greedy = {"training": training, "resources": RESOURCES | {"memory": "1200Mi"}}
    name = jobs.apply(tiny_job("greedy", tiny_model, data="long.jsonl", **greedy))
    failed = condition(jobs.until_failed(name), "Failed")
    assert failed["reason"] == "BadSpec"
    assert "spec.resources.memory: lora needs about" in failed["message"]
    assert "at microBatchSize 4096" in failed["message"]
    assert "train" not in jobs.stage_jobs(name)


def test_eviction(jobs: Jobs, tiny_model: str, weights: Digest, expected_weights: Callable[[], str]) -> None:
    """An evicted training pod is replaced; the run goes on from its checkpoint and ends in the same weights."""
    name = jobs.apply(tiny_job("evicted", tiny_model))
    jobs.until_step(name, MIDDLE)
    evict(jobs.kubectl, jobs.pods(name, "train")[0]["metadata"]["name"])
    status = jobs.until_succeeded(name)["status"]
    first, second = status["attempts"]
    assert first["reason"] == "Preempted"
    assert MIDDLE <= second["fromStep"] < STEPS
    assert status["recovery"] == {"restarts": 1, "stepsLost": 0}
    assert weights(name) == expected_weights()


def evict(kubectl: Kubectl, pod: str) -> None:
    """As `kubectl drain` does it."""
    metadata = {"name": pod, "namespace": kubectl.namespace}
    eviction = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "--filename=-", document=eviction)


def test_suspension(jobs: Jobs, tiny_model: str, weights: Digest, expected_weights: Callable[[], str]) -> None:
    """A suspended job holds no pod; resumed, it goes on at its last step and ends in the same weights."""
    name = jobs.apply(tiny_job("suspended", tiny_model))
    jobs.until_step(name, MIDDLE)
    jobs.suspend(name, True)
    jobs.until(name, lambda job: phase(job) == "Suspended", "Suspended")
    assert [pod for pod in jobs.pods(name, "train") if pod["status"]["phase"] in ("Pending", "Running")] == []
    jobs.suspend(name, False)
    status = jobs.until_succeeded(name)["status"]
    first, second = status["attempts"]
    assert MIDDLE <= second["fromStep"] < STEPS
    assert second["fromStep"] == first["toStep"]
    assert status["recovery"]["stepsLost"] == 0
    assert weights(name) == expected_weights()


def test_operator_away(jobs: Jobs, operator: Kubectl, tiny_model: str) -> None:
    """Training ends while the operator is away; back again, it publishes the result, and nothing was done twice."""
    name = jobs.apply(tiny_job("operator-away", tiny_model))
    jobs.until_step(name, MIDDLE)
    with_replicas(operator, 0)
    try:
        train_job = jobs.stage_jobs(name)["train"]["metadata"]["name"]
        jobs.kubectl("wait", f"job/{train_job}", "--for=condition=Complete", "--timeout=180s", seconds=200)
        assert "publish" not in jobs.stage_jobs(name)
    finally:
        with_replicas(operator, 1)
    status = jobs.until_succeeded(name)["status"]
    assert len(jobs.pods(name, "train")) == 1
    assert [attempt["toStep"] for attempt in status["attempts"]] == [STEPS]
    assert status["recovery"].get("restarts", 0) == 0


def with_replicas(operator: Kubectl, count: int) -> None:
    """Returns when as many replicas are there, and no more."""
    operator("scale", "deployment", RELEASE, f"--replicas={count}")
    if count:
        operator("rollout", "status", f"deployment/{RELEASE}", "--timeout=120s", seconds=140)
    else:
        operator("wait", "pod", "--selector=app.kubernetes.io/name=finetune-operator", "--for=delete", "--timeout=60s")


def test_out_of_memory(jobs: Jobs, tiny_model: str) -> None:
    """A training pod killed for its memory fails the job as OutOfMemory, with advice."""
    # Without a checkpoint: a try that got the run further would not be counted.
    limits = {"resources": RESOURCES | {"memory": "1200Mi"}, "retry": {"limit": 0}, "checkpoint": {"everySteps": 5000}}
    name = jobs.apply(tiny_job("crowded", tiny_model, **limits))
    jobs.until_step(name, MIDDLE)
    (pod,) = jobs.pods(name, "train")
    # Something in the container takes more than is left, and asks the kernel to let the trainer go first.
    hog = "open('/proc/1/oom_score_adj', 'w').write('1000'); taken = b'x' * (2 << 30)"
    with contextlib.suppress(AssertionError):  # it dies with the container
        jobs.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", hog, seconds=90)
    job = jobs.until_failed(name)
    failed = condition(job, "Failed")
    assert failed["reason"] == "OutOfMemory"
    assert "microBatchSize" in failed["message"]
    assert [attempt["reason"] for attempt in job["status"]["attempts"]] == ["OutOfMemory"]


@pytest.fixture
def no_gpu_afterwards() -> Iterator[None]:
    if is_current():
        pytest.skip("changes the node: only on the local cluster")
    yield
    local_cluster("fake-gpus", "0")


def test_gpu(jobs: Jobs, tiny_model: str, no_gpu_afterwards: None) -> None:
    """Only `train` asks for a GPU, and waits for one; with one that does not work the job fails."""
    name = jobs.apply(tiny_job("on-gpu", tiny_model, resources=RESOURCES | {"gpus": 1}, retry={"limit": 0}))
    waiting = jobs.until(name, lambda job: is_prepared(job) and has_reason(job, "Unschedulable"), "Unschedulable")
    assert "nvidia.com/gpu" in explanation(waiting)
    local_cluster("fake-gpus", "1")
    failed = condition(jobs.until_failed(name), "Failed")
    assert failed["reason"] == "GpuUnavailable"
    asked = {stage: "nvidia.com/gpu" in limits(job) for stage, job in jobs.stage_jobs(name).items()}
    assert asked == {"prepare": False, "train": True}


def is_prepared(job: Object) -> bool:
    return condition(job, "Prepared").get("status") == "True"


def limits(job: Object) -> Object:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found: Object = container["resources"]["limits"]
    return found


def test_deletion(
    jobs: Jobs, tiny_model: str, reference: str, weights: Digest, expected_weights: Callable[[], str]
) -> None:
    """Deleted in mid-run, a job takes all its children with it; what an earlier run published stays."""
    before = expected_weights()
    jobs.delete(reference)
    jobs.apply(tiny_job(reference, tiny_model))
    jobs.until_step(reference, MIDDLE)
    jobs.delete(reference)
    kinds = "jobs,pods,configmaps,persistentvolumeclaims"
    assert jobs.kubectl("get", kinds, f"--selector=finetune.dev/job={reference}", "--output=name") == ""
    assert weights(reference) == before
