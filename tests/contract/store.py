"""Writes FineTuneJobs as this release stores them: `python tests/contract/store.py tests/contract/stored/VERSION`.

Run at each release, so that every later one is tried on what this one left behind: jobs at each point of their lives,
with defaults filled in by the API server, the status as the operator wrote it, and the frozen run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.control_plane import ControlPlane
from integration.kubelet import Api, Job, eventually, install_definition
from integration.operators import Operator, create_job, new_namespace
from integration.test_life import PREPARED, TRAINED, live

Object = dict[str, Any]


def preparing(job: Job) -> None:
    job.new_pod("prepare").start()


def training(job: Job) -> None:
    job.run_stage("prepare", **PREPARED)
    job.new_pod("train").start()
    job.wait_reason("Training")


SAVED = {"stage": "train", "reason": "Preempted", "progress": {"stage": "train", "step": 40, "checkpointStep": 40}}


def preempted(job: Job) -> None:
    """Once, and trains again."""
    training(job)
    pod = job.pods("train")[0]
    pod.disrupt()
    pod.end(
        75, {"stage": "train", "reason": "Preempted", "progress": {"stage": "train", "step": 40, "checkpointStep": 40}}
    )
    job.new_pod("train", 60).start()
    eventually(lambda: len(job.status().get("attempts", [])) == 2, "a second attempt")


def suspended(job: Job) -> None:
    training(job)
    job.edit(suspend=True)
    pod = job.pods("train")[0]
    eventually(lambda: pod.reload().is_deleting(), "the pod is told to end")
    pod.end(
        75, {"stage": "train", "reason": "Preempted", "progress": {"stage": "train", "step": 40, "checkpointStep": 40}}
    )
    job.wait_reason("Suspended", "Suspended")


def publishing(job: Job) -> None:
    job.run_stage("prepare", **PREPARED)
    job.run_stage("train", **TRAINED)
    job.new_pod("publish").start()
    job.wait_phase("Publishing")


def succeeded(job: Job) -> None:
    live(job)
    job.wait_phase("Succeeded")


def failed(job: Job) -> None:
    pod = job.new_pod("prepare")
    pod.start()
    pod.end(65, {"stage": "prepare", "reason": "DatasetInvalid", "message": "spec.dataset.train[0]: line 3 is no JSON"})
    job.wait_phase("Failed")


def queued(job: Job) -> None:
    job.run_stage("prepare", **PREPARED)
    job.wait_phase("Queued")


LIVES: dict[str, tuple[Callable[[Job], None], Object]] = {
    "preparing": (preparing, {}),
    "training": (training, {"dataset": {"train": [{"uri": "pvc://datasets/a.jsonl", "columns": {"prompt": "q"}}]}}),
    "preempted": (preempted, {}),
    "suspended": (suspended, {}),
    "publishing": (publishing, {"deadlineSeconds": 3600, "ttlSecondsAfterFinished": 600}),
    "succeeded": (succeeded, {}),
    "failed": (failed, {}),
    "queued": (queued, {"scheduling": {"queue": "team", "tolerations": [{"key": "gpu", "value": "true"}]}}),
}
"""How a job of that name lives, and the fields of its spec beside the smallest one's."""


def stored(job: Job) -> Object:
    """The job as it lies in etcd, what belongs to one cluster alone left out, and its frozen run."""
    body = job.body()
    for name in ("managedFields", "resourceVersion"):
        body["metadata"].pop(name, None)
    run = job.api.get(f"/api/v1/namespaces/{job.namespace}/configmaps/{job.name}-{job.uid[:5]}-run")
    return {"job": body, "run": run and run["data"]["run.json"]}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with ControlPlane() as plane, tempfile.TemporaryDirectory() as scratch:
        install_definition(plane)
        api = Api(plane)
        api.create("/api/v1/nodes", {"metadata": {"name": "played"}})
        operator = Operator(plane, new_namespace(api), Path(scratch) / "log").wait_ready()
        for name, (life, spec) in LIVES.items():
            job = create_job(api, operator.namespace, name, **spec)
            life(job)
            (folder / f"{name}.json").write_text(json.dumps(stored(job), indent=1, sort_keys=True) + "\n")
        operator.stop()


if __name__ == "__main__":
    main()
