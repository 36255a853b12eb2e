"""What a kubelet and a scheduler would do, played by the test: no pod runs, but every status is in the real API server.

It decides no outcome: the test says which pod starts, waits, fails or ends, and how.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from cluster.control_plane import ControlPlane

Object = dict[str, Any]
Found = TypeVar("Found")

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/{}/finetunejobs"
DEFINITION = Path(__file__).parents[2] / "crds" / "finetunejobs.yaml"
PODS = "/api/v1/namespaces/{}/pods"


def eventually(look: Callable[[], Found], what: str, seconds: float = 20) -> Found:
    """What `look` returns once it is true; AssertionError naming `what` when it stays false."""
    deadline = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def install_definition(plane: ControlPlane) -> None:
    """Our CRD in the control plane, served. (`kubectl wait` fails when the CRD has no condition at all yet.)"""

    def is_served() -> bool:
        try:
            plane.request("/apis/finetune.dev/v1alpha1/finetunejobs")
        except OSError:
            return False
        return True

    plane.kubectl("apply", "--server-side", "-f", str(DEFINITION))
    plane.wait_for("FineTuneJobs to be served", is_served)


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    """Raw JSON to the control plane, over one connection."""

    def __init__(self, plane: ControlPlane) -> None:
        keys = plane.authority
        context = ssl.create_default_context(cafile=keys.certificate("ca"))
        context.load_cert_chain(keys.certificate("admin"), keys.key("admin"))
        self._connection = HTTPSConnection(plane.address, plane.port, context=context, timeout=10)

    def __del__(self) -> None:
        self._connection.close()

    def request(self, method: str, path: str, body: Object | None = None) -> tuple[int, Object]:
        """The status code and the answer."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, quote(path, safe="/?=&,%"), data, {"Content-Type": kind})
            response = self._connection.getresponse()
        except (HTTPException, OSError):
            # An idle connection was closed, or the API server was restarted.
            self._connection.close()
            self._connection.request(method, quote(path, safe="/?=&,%"), data, {"Content-Type": kind})
            response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def get(self, path: str) -> Object | None:
        status, answer = self.request("GET", path)
        assert status in (200, 404), answer
        return answer if status == 200 else None

    def items(self, path: str) -> list[Object]:
        return list((self.get(path) or {"items": []})["items"])

    def create(self, path: str, body: Object) -> Object:
        status, answer = self.request("POST", path, body)
        assert status == 201, answer
        return answer

    def delete(self, path: str, **options: Any) -> None:
        status, answer = self.request("DELETE", path, options)
        assert status in (200, 202, 404, 409), answer

    def merge(self, path: str, body: Object) -> Object:
        status, answer = self.request("PATCH", path, body)
        assert status == 200, answer
        return answer


@dataclass
class Job:
    """One FineTuneJob in a namespace of its own, and the pods that the cluster makes for it."""

    api: Api
    namespace: str
    name: str

    @property
    def path(self) -> str:
        return f"{JOBS.format(self.namespace)}/{self.name}"

    def body(self) -> Object:
        return eventually(lambda: self.api.get(self.path), f"{self.name} exists", 1)

    @property
    def uid(self) -> str:
        return str(self.body()["metadata"]["uid"])

    def status(self) -> Object:
        return dict(self.body().get("status", {}))

    def condition(self, kind: str) -> Object:
        conditions = self.status().get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def edit(self, **spec: Any) -> None:
        self.api.merge(self.path, {"spec": spec})

    def delete(self) -> None:
        self.api.delete(self.path)

    def wait_phase(self, phase: str, seconds: float = 20) -> Object:
        """The status once the phase is reached."""
        eventually(lambda: self.status().get("phase") == phase, f"{self.name} is {phase}: {self.status()}", seconds)
        return self.status()

    def wait_reason(self, reason: str, kind: str = "Progressing", seconds: float = 20) -> Object:
        """The condition once it has the reason."""
        what = f"{kind} of {self.name} says {reason}"
        return eventually(
            lambda: next((one for one in [self.condition(kind)] if one.get("reason") == reason), None), what, seconds
        )

    def pods(self, stage: str = "") -> list[Pod]:
        """All pods of this job, oldest first."""
        selector = f"finetune.dev/job={self.name}" + (f",finetune.dev/stage={stage}" if stage else "")
        bodies = self.api.items(f"{PODS.format(self.namespace)}?labelSelector={selector}")
        bodies.sort(key=lambda body: (body["metadata"]["creationTimestamp"], body["metadata"]["uid"]))
        return [Pod(self.api, body) for body in bodies]

    def child_jobs(self) -> list[Object]:
        selector = f"finetune.dev/job={self.name}"
        return self.api.items(f"/apis/batch/v1/namespaces/{self.namespace}/jobs?labelSelector={selector}")

    def child_job(self, stage: str) -> Object | None:
        jobs = {job["metadata"]["labels"]["finetune.dev/stage"]: job for job in self.child_jobs()}
        return jobs.get(stage)

    def events(self) -> list[str]:
        """Reasons of the Kubernetes Events about this job, in no order: several may fall into one second."""
        events = self.api.items(f"/api/v1/namespaces/{self.namespace}/events")
        return [event["reason"] for event in events if event["involvedObject"].get("uid") == self.uid]

    def new_pod(self, stage: str, seconds: float = 20) -> Pod:
        """The stage's pod that has neither started nor ended, once there is one."""
        fresh = lambda: next((pod for pod in self.pods(stage) if pod.is_fresh()), None)  # noqa: E731
        return eventually(fresh, f"a new {stage} pod", seconds)

    def run_stage(self, stage: str, **report: Any) -> Pod:
        """Let the stage's pod run, training long enough to be seen, and succeed."""
        pod = self.new_pod(stage)
        pod.start()
        if stage == "train":
            self.wait_reason("Training")
        pod.end(0, {"stage": stage, **report})
        return pod


class Pod:
    """One pod, as its kubelet reports it."""

    def __init__(self, api: Api, body: Object) -> None:
        self._api = api
        self.body = body
        self.name = str(body["metadata"]["name"])
        self.uid = str(body["metadata"]["uid"])
        self._path = f"{PODS.format(body['metadata']['namespace'])}/{self.name}"
        self._started_at = stamp()

    def is_fresh(self) -> bool:
        status = self.body["status"]
        return "containerStatuses" not in status and status["phase"] == "Pending" and not self.is_deleting()

    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.body["metadata"]

    def reload(self) -> Pod:
        self.body = self._api.get(self._path) or {"metadata": {"deletionTimestamp": "gone"}, "status": {}}
        return self

    def schedule(self) -> None:
        if "nodeName" not in self.reload().body.get("spec", {}):
            target = {"apiVersion": "v1", "kind": "Node", "name": "played"}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.name}, "target": target}
            self._api.create(f"{self._path}/binding", binding)

    def refuse(self, message: str) -> None:
        """The scheduler finds no node."""
        self._condition("PodScheduled", "False", "Unschedulable", message)

    def wait(self, reason: str, message: str = "", init: str = "") -> None:
        """The container waits, or an init container of that name."""
        self.schedule()
        waiting = {"waiting": {"reason": reason, "message": message}}
        if not init:
            self._container(waiting)
            return
        blank = {"name": init, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
        self._api.merge(f"{self._path}/status", {"status": {"initContainerStatuses": [blank]}})

    def complain(self, message: str, reason: str = "FailedMount") -> None:
        """The kubelet tells of a trouble that no status tells."""
        self.schedule()
        self._container({"waiting": {"reason": "ContainerCreating"}})
        warn(self._api, self.body, "Pod", reason, message)

    def start(self, address: str = "") -> None:
        """The container runs."""
        self.schedule()
        self._started_at = stamp()
        self._container({"running": {"startedAt": self._started_at}}, phase="Running", address=address)

    def disrupt(self, message: str = "preempted by a pod of higher priority") -> None:
        """Somebody evicts the pod: the condition that the API server, scheduler or taint manager sets."""
        self._condition("DisruptionTarget", "True", "PreemptionByScheduler", message)
        self._api.delete(self._path)

    def end(self, code: int, report: Object | str | None = None, reason: str = "", seconds: float = 0) -> None:
        """The container ends with this exit code, this termination message and the kubelet's reason."""
        self._container({"terminated": self._ended(code, report, reason)}, phase="Succeeded" if code == 0 else "Failed")
        self.finalise()

    def outlive(self, other: str, code: int, report: Object | None = None) -> None:
        """The trainer's container ends, and another one of the pod runs on."""
        ended = {"name": "trainer", "state": {"terminated": self._ended(code, report)}}
        left = {"name": other, "state": {"running": {"startedAt": self._started_at}}}
        blank = {"image": "i", "imageID": "", "ready": False, "restartCount": 0}
        statuses = [blank | ended, blank | left]
        self._api.merge(f"{self._path}/status", {"status": {"phase": "Running", "containerStatuses": statuses}})

    def evict(self, message: str, code: int = 137) -> None:
        """The kubelet evicts the pod for what it used; no DisruptionTarget is set for a limit of its own."""
        phase = {"phase": "Failed", "reason": "Evicted", "message": message}
        self._api.merge(f"{self._path}/status", {"status": phase})
        self._container({"terminated": self._ended(code)}, phase="Failed")

    def _ended(self, code: int, report: Object | str | None = None, reason: str = "") -> Object:
        return {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": report if isinstance(report, str) else json.dumps(report) if report is not None else "",
            "startedAt": self._started_at,
            "finishedAt": stamp(),
        }

    def finalise(self) -> None:
        """A pod that is being deleted goes, once its containers have ended."""
        if self.reload().is_deleting():
            self._api.delete(self._path, gracePeriodSeconds=0)

    def _container(self, state: Object, phase: str = "Pending", address: str = "") -> None:
        container = {
            "name": "trainer",
            "image": "trainer",
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        status: Object = {"phase": phase, "containerStatuses": [container]}
        if address:
            status |= {"podIP": address, "podIPs": [{"ip": address}]}
        self._api.merge(f"{self._path}/status", {"status": status})

    def _condition(self, kind: str, status: str, reason: str, message: str) -> None:
        conditions = [one for one in self.reload().body["status"].get("conditions", []) if one["type"] != kind]
        conditions.append(
            {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": stamp()}
        )
        self._api.merge(f"{self._path}/status", {"status": {"conditions": conditions}})


def warn(api: Api, about: Object, kind: str, reason: str, message: str) -> None:
    """A warning Event about an object."""
    metadata = about["metadata"]
    api.create(
        f"/api/v1/namespaces/{metadata['namespace']}/events",
        {
            "metadata": {"generateName": "played-", "namespace": metadata["namespace"]},
            "involvedObject": {
                "kind": kind,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": stamp(),
        },
    )
