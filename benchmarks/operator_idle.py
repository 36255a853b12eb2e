"""What the operator asks of the API server and says while nothing happens: many running FineTuneJobs, for an hour.

    .venv/bin/python benchmarks/operator_idle.py [--jobs 1000] [--minutes 60]

A proxy in front of a real API server counts. The sweep is left out: for each job some GETs, and a list of its pods.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from aiohttp import web

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "crds", "operator")]

from cluster.control_plane import ControlPlane  # noqa: E402
from finetune_api import labels  # noqa: E402
from integration.kubelet import Api, Job, Pod, install_definition  # noqa: E402
from integration.operators import Operator, create_job, new_namespace  # noqa: E402
from integration.watch_proxy import WatchProxy  # noqa: E402

KINDS = ("finetunejobs", "jobs", "pods", "events", "configmaps", "persistentvolumeclaims")


class Counting(WatchProxy):
    """Counts lists beside the sweep's, new streams, and writes."""

    def __init__(self, plane: ControlPlane) -> None:
        self.counted: Counter[str] = Counter()
        super().__init__(plane)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        is_sweep = labels.JOB_UID_LABEL in request.query.get("labelSelector", "")
        if request.method != "GET":
            self.counted["writes"] += 1
        elif "watch" in request.query:
            self.counted["streams"] += 1
        elif request.path.rpartition("/")[2] in KINDS and not is_sweep:
            self.counted["lists"] += 1
        return await super()._handle(request)


def run_all(api: Api, jobs: list[Job]) -> None:
    """Let the pod of each job run."""
    for job in jobs:
        pod: Pod = job.new_pod("prepare", seconds=600)
        pod.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ControlPlane() as plane:
        install_definition(plane)
        api, proxy, log = Api(plane), Counting(plane), Path(folder) / "log"
        api.create("/api/v1/nodes", {"metadata": {"name": "played"}})
        namespace = new_namespace(api)
        kubeconfig = proxy.write_kubeconfig(Path(folder) / "kubeconfig")
        operator = Operator(plane, namespace, log, kubeconfig=kubeconfig).wait_ready()
        try:
            run_all(api, [create_job(api, namespace) for _ in range(options.jobs)])
            time.sleep(60)
            proxy.counted.clear()
            said = len(log.read_text())
            time.sleep(options.minutes * 60)
            warnings = [line for line in log.read_text()[said:].splitlines() if '"level": "info"' not in line]
            counts = [proxy.counted[kind] for kind in ("lists", "writes", "streams")]
        finally:
            operator.kill()
            proxy.stop()
    print("| jobs | minutes | lists beside the sweep | warnings | writes | new streams |\n|---|---|---|---|---|---|")
    print(f"| {options.jobs} | {options.minutes:g} | {counts[0]} | {len(warnings)} | {counts[1]} | {counts[2]} |")
    print("\n".join(warnings))


if __name__ == "__main__":
    main()
