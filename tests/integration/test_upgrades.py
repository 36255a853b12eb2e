"""Operator and definition change at different moments, and objects outlive both: no job is hurt by it.

The definition of the next release is this one with a field more, defaulted where it can be, in every object of it. What
earlier releases stored lies in tests/contract/stored; a real API server fills the new defaults in.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control_plane import ControlPlane
from contract.store import failed, live, suspended, training
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed_state import digest
from integration.kubelet import DEFINITION, Api, Job, eventually, install_definition
from integration.operators import Operator, create_job, new_namespace
from integration.test_life import ARTIFACT, PREPARED, TRAINED
from integration.test_new_jobs import first_status_only, one_pass

pytestmark = pytest.mark.integration

Object = dict[str, Any]
STORED = Path(__file__).parents[1] / "contract" / "stored"


def with_a_field_more(schema: Any, has_defaults: bool) -> Any:
    """The schema with another field in each of its objects, list items included."""
    if isinstance(schema, list):
        return [with_a_field_more(part, has_defaults) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: with_a_field_more(part, has_defaults) for key, part in schema.items()}
    if found.get("type") == "object" and isinstance(found.get("properties"), dict):
        field = {"type": "integer", **({"default": 7} if has_defaults else {})}
        found["properties"] = {**found["properties"], "addedLater": field}
    return found


def without_the_field(part: Any) -> Any:
    """As a stream tells an object that was opened under the definition of before."""
    if isinstance(part, list):
        return [without_the_field(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {name: without_the_field(one) for name, one in part.items() if name != "addedLater"}


def next_definition() -> Object:
    definition: Object = yaml.safe_load(DEFINITION.read_text())
    properties = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    properties["spec"] = with_a_field_more(properties["spec"], has_defaults=True)
    properties["status"] = with_a_field_more(properties["status"], has_defaults=False)
    properties["spec"]["properties"]["training"]["properties"]["optimizer"]["enum"].append("lion")
    return definition


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane of these tests' own: its definition changes."""
    with ControlPlane() as plane:
        install_definition(plane)
        Api(plane).create("/api/v1/nodes", {"metadata": {"name": "played"}})
        yield plane


@pytest.fixture
def api(plane: ControlPlane) -> Api:
    """It, with the definition of this release."""
    api = Api(plane)
    apply(api, yaml.safe_load(DEFINITION.read_text()))
    return api


@pytest.fixture
def namespace(api: Api) -> str:
    return new_namespace(api)


@pytest.fixture
def operate(plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Callable[[], Operator]]:
    started: list[Operator] = []

    def start() -> Operator:
        started.append(Operator(plane, namespace, tmp_path / f"log-{len(started)}").wait_ready())
        return started[-1]

    yield start
    for operator in started:
        operator.kill()
        unexpected = [line for line in operator.log.read_text().splitlines() if "Traceback" in line]
        assert not unexpected, unexpected[0][-1500:]


def apply(api: Api, definition: Object) -> None:
    """The definition in the API server; when it is in force, reads show."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
    current = api.get(path)
    assert current is not None
    status, answer = api.request("PUT", path, {**current, "spec": definition["spec"]})
    assert status == 200, answer


def is_in_force(job: Job) -> bool:
    """The API server fills the next definition's defaults in when it reads."""
    return "addedLater" in job.body()["spec"]


def test_a_definition_newer_than_the_operator_hurts_no_job(
    api: Api, namespace: str, operate: Callable[[], Operator]
) -> None:
    """As in `helm upgrade`, which installs the definition first: whatever state a job is in, it stays and goes on."""
    operate()
    jobs = {name: create_job(api, namespace, name) for name in ("trains", "waits", "failed", "done")}
    for name, life in (("trains", training), ("waits", suspended), ("failed", failed), ("done", live)):
        life(jobs[name])
    jobs["done"].wait_phase("Succeeded")
    before = {name: job.status() for name, job in jobs.items()}
    apply(api, next_definition())
    eventually(lambda: all(is_in_force(job) for job in jobs.values()), "the new defaults are read")
    fresh = create_job(api, namespace, "fresh", training={"epochs": 1})
    live(fresh)
    fresh.wait_phase("Succeeded")
    assert "spec.model.addedLater" in fresh.condition("Accepted")["message"]
    assert {name: job.status() for name, job in jobs.items()} == before
    pod = jobs["trains"].pods("train")[-1]
    pod.end(0, {"stage": "train", **TRAINED})
    jobs["trains"].run_stage("publish", **ARTIFACT)
    jobs["trains"].wait_phase("Succeeded")
    jobs["waits"].edit(suspend=False)
    jobs["waits"].new_pod("train").start()
    jobs["waits"].wait_reason("Training")


def test_what_is_not_used_is_told_by_the_next_operator(plane: ControlPlane, api: Api, namespace: str) -> None:
    """The one before ended after its first status, of a job that it was told without the new fields."""
    apply(api, next_definition())
    job = create_job(api, namespace, "halfway")
    eventually(lambda: is_in_force(job), "the new defaults are read")
    first_status_only(plane, without_the_field(job.body()))
    assert "addedLater" not in job.condition("Accepted")["message"]
    one_pass(plane, job, None)
    assert "spec.model.addedLater" in job.condition("Accepted")["message"]


def test_what_a_newer_operator_wrote_stays(api: Api, namespace: str, operate: Callable[[], Operator]) -> None:
    """After a rollback: fields and conditions that this release does not know survive what it writes."""
    apply(api, next_definition())
    operator = operate()
    job = create_job(api, namespace, "rolled-back")
    training(job)
    operator.kill()
    status = job.status()
    novel = {
        "type": "Novel",
        "status": "True",
        "reason": "New",
        "lastTransitionTime": status["startedAt"],
        "addedLater": 1,
    }
    status["conditions"].append(novel)
    for part in (status, status["plan"], status["stage"], status["attempts"][0], status["conditions"][0]):
        part["addedLater"] = 1
    api.merge(f"{job.path}/status", {"status": status})
    operate()
    job.pods("train")[-1].end(0, {"stage": "train", **TRAINED})
    job.run_stage("publish", **ARTIFACT)
    status = job.wait_phase("Succeeded")
    kept = [one for one in status["conditions"] if one["type"] == "Novel"]
    assert kept == [{"message": "", **novel, "addedLater": 1}]
    for part in (status, status["plan"], status["attempts"][0], status["conditions"][0]):
        assert part["addedLater"] == 1


def test_what_cannot_be_read_is_a_condition_and_no_end(
    api: Api, namespace: str, operate: Callable[[], Operator]
) -> None:
    """A value of a later release: a new job waits and says so; one that runs goes on by its frozen run."""
    apply(api, next_definition())
    operator = operate()
    begun = create_job(api, namespace, "begun")
    training(begun)
    operator.kill()
    unknown = {"optimizer": "lion"}
    job = eventually(lambda: _accepted(api, namespace, unknown), "the next definition is in force")
    operate()
    message = job.wait_reason("Unreadable")["message"]
    assert "spec.training.optimizer" in message
    assert job.status()["phase"] == "Waiting"
    assert job.child_jobs() == []
    begun.pods("train")[-1].end(0, {"stage": "train", **TRAINED})
    begun.new_pod("publish")


def _accepted(api: Api, namespace: str, training: Object) -> Job | None:
    try:
        return create_job(api, namespace, "novel", training=training)
    except AssertionError:
        return None


def test_a_definition_older_than_the_operator_is_told(
    api: Api, namespace: str, operate: Callable[[], Operator]
) -> None:
    """Where the definition is not the chart's to upgrade: nothing new starts, as the run could not be pinned; the new
    definition heals it."""
    apply(api, yaml.safe_load((STORED / "0.1.0" / "finetunejobs.yaml").read_text()))
    operate()
    job = create_job(api, namespace, "early")
    job.wait_reason("DefinitionOutdated")
    assert job.child_jobs() == []
    apply(api, yaml.safe_load(DEFINITION.read_text()))
    job.new_pod("prepare", 60)
    live(job)
    job.wait_phase("Succeeded")


RELEASES = sorted(path for path in STORED.glob("*/*.json"))


def test_objects_of_every_release_go_on(api: Api, namespace: str, operate: Callable[[], Operator]) -> None:
    """Each stored job, put back with its status and run, its Kubernetes Jobs long cleaned up: what was finished stays
    as it is, to the second, but for what kstatus asks for; what was not goes on with the same stage and image."""
    jobs = {f"{path.parent.name}-{path.stem}".replace(".", "-"): _restored(api, namespace, path) for path in RELEASES}
    before = {name: job.status() for name, job in jobs.items()}
    operate()
    for name, job in jobs.items():
        phase = before[name]["phase"]
        if phase in ("Succeeded", "Failed"):
            continue
        if phase == "Suspended":
            job.edit(suspend=False)
        stage = {"Preparing": "prepare", "Publishing": "publish"}.get(phase, "train")
        child = eventually(lambda job=job, stage=stage: job.child_job(stage), f"{name} goes on with {stage}")  # type: ignore[misc]
        assert child["spec"]["template"]["spec"]["containers"][0]["image"] == "trainer:1"
        assert len(job.child_jobs()) == 1
    for name, job in jobs.items():
        if before[name]["phase"] in ("Succeeded", "Failed"):
            eventually(lambda job=job: job.condition("Ready"), f"{name} has what kstatus asks for")  # type: ignore[misc]
            status = job.status()
            status["conditions"] = [one for one in status["conditions"] if one["type"] not in ("Ready", "Stalled")]
            assert FineTuneJobStatus.read(status) == FineTuneJobStatus.read(before[name]), name
            assert job.child_jobs() == []


def _restored(api: Api, namespace: str, path: Path) -> Job:
    stored = json.loads(path.read_text())
    name = f"{path.parent.name}-{path.stem}".replace(".", "-")
    body, old = copy.deepcopy(stored["job"]), stored["job"]["metadata"]
    body["metadata"] = {"name": name, "namespace": namespace}
    status = body.pop("status")
    job = Job(api, namespace, name)
    api.create(job.path.rpartition("/")[0], body)
    text = (stored["run"] or "").replace(old["uid"], job.uid).replace(f'"{old["name"]}"', f'"{name}"')
    if "run" in status:
        status["run"]["digest"] = digest(text)
    owner = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "name": name,
        "uid": job.uid,
        "controller": True,
    }
    metadata = {"namespace": namespace, "ownerReferences": [owner]}
    prefix = f"{name}-{job.uid[:5]}"
    api.create(
        f"/api/v1/namespaces/{namespace}/configmaps",
        {"metadata": {**metadata, "name": f"{prefix}-run"}, "data": {"run.json": text}},
    )
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    api.create(
        f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
        {"metadata": {**metadata, "name": f"{prefix}-workspace"}, "spec": claim},
    )
    api.merge(f"{job.path}/status", {"status": status})
    return job


def test_a_run_is_prepared_once(operate: Callable[[], Operator], api: Api, namespace: str) -> None:
    """A status of which a part cannot be read keeps all the rest: nothing that is done is done again."""
    operator = operate()
    job = create_job(api, namespace, "partly")
    job.run_stage("prepare", **PREPARED)
    job.new_pod("train")
    operator.kill()
    conditions = job.status()["conditions"]
    assert any(one["type"] == "Prepared" for one in conditions)
    operate()
    job.run_stage("train", **TRAINED)
    assert len(job.pods("prepare")) == 1
