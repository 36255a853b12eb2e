"""How long a training job stands still after each of many evictions in a row: with the operator, and as a plain Job.

    .venv/bin/python benchmarks/operator_evictions.py [--evictions 10] [--plain 4]

The Job controller is Kubernetes' own, nodes and pods are played. Counted from the moment in which the evicted pod is
gone until the next one is there, which is looked for every 20 ms. The plain Job has the spec that the operator gave
its train stage: its failures are ignored by the same podFailurePolicy, and delay the next pod all the same
(kubernetes/kubernetes#130881).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "crds", "operator")]

from cluster.control_plane import ControlPlane  # noqa: E402
from integration.kubelet import PODS, Api, Job, Pod, install_definition  # noqa: E402
from integration.operators import Operator, create_job, new_namespace  # noqa: E402

PREPARED = {"plan": {"totalSteps": 100}}
PLAIN_JOBS = "/apis/batch/v1/namespaces/{}/jobs"
LONGEST_WAIT = 700.0
"""Seconds: the Job controller's back-off ends at ten minutes."""


def waited(pods: Callable[[], list[Pod]]) -> tuple[float, Pod]:
    """Seconds until there is a pod that has not begun, and that pod."""
    start = time.perf_counter()
    while True:
        fresh = [pod for pod in pods() if pod.is_fresh()]
        if fresh:
            return time.perf_counter() - start, fresh[0]
        assert time.perf_counter() - start < LONGEST_WAIT, "no pod followed"
        time.sleep(0.02)


def evict(pod: Pod, number: int) -> None:
    """The pod trains for a moment, is told to go, saves a checkpoint, and is gone."""
    pod.start()
    time.sleep(1)
    pod.disrupt()
    progress = {"stage": "train", "step": number, "checkpointStep": number, "resumedFromStep": number - 1}
    pod.end(75, {"stage": "train", "reason": "Preempted", "progress": progress})


def in_a_row(pods: Callable[[], list[Pod]], count: int) -> list[float]:
    """Seconds without a pod after each eviction."""
    _, pod = waited(pods)
    gaps = []
    for number in range(1, count + 1):
        evict(pod, number)
        seconds, pod = waited(pods)
        gaps.append(seconds)
        print(f"eviction {number}: {seconds:.2f} s", file=sys.stderr)
    return gaps


def plain_job(api: Api, like: dict[str, Any]) -> Callable[[], list[Pod]]:
    """A Job with that one's spec that no operator looks after; returns what lists its pods."""
    namespace, spec = new_namespace(api), like["spec"]
    for made_by_the_server in ("selector", "manualSelector"):
        spec.pop(made_by_the_server, None)
    spec["template"]["metadata"] = {}
    metadata = {"name": "plain", "namespace": namespace}
    api.create(
        PLAIN_JOBS.format(namespace), {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    )
    return lambda: [Pod(api, body) for body in api.items(PODS.format(namespace))]


def measure(plane: ControlPlane, evictions: int, plain: int, log: Path) -> tuple[list[float], list[float]]:
    api = Api(plane)
    api.create("/api/v1/nodes", {"metadata": {"name": "played"}})
    namespace = new_namespace(api)
    operator = Operator(plane, namespace, log).wait_ready()
    try:
        job: Job = create_job(api, namespace, "tune")
        job.run_stage("prepare", **PREPARED)
        waited(lambda: job.pods("train"))
        like = job.child_job("train")
        assert like is not None
        served = in_a_row(lambda: job.pods("train"), evictions)
    finally:
        operator.kill()
    return served, in_a_row(plain_job(api, like), plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evictions", type=int, default=10)
    parser.add_argument("--plain", type=int, default=4, help="evictions of the plain Job: each doubles its wait")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ControlPlane() as plane:
        install_definition(plane)
        served, alone = measure(plane, options.evictions, options.plain, Path(folder) / "log")
    print("| eviction | operator, s | plain Job, s | operator ÷ plain |\n|---|---|---|---|")
    for number, seconds in enumerate(served):
        beside = f"{alone[number]:.1f} | {seconds / alone[number]:.3f}" if number < len(alone) else "|"
        print(f"| {number + 1} | {seconds:.2f} | {beside} |")
    print(f"| longest | {max(served):.2f} | {max(alone):.1f} | {max(served) / max(alone):.3f} |")


if __name__ == "__main__":
    main()
