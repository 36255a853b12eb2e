"""What the operator asks of the API server and says while nothing happens: many running FineTuneJobs, for an hour.

    .venv/bin/python benchmarks/operator_idle.py [--jobs 1000] [--minutes 60]

A proxy in front of a real API server counts, from the moment in which the last write is a minute old. Each pod's
progress page is read, and says the same each time. The sweep has a column of its own: it makes some GETs for each job,
and a list of its pods.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

from aiohttp import web
from fleet import bring_to_life, new_namespace, operator, progress_page

from cluster.control_plane import ControlPlane, free_port
from finetune_api import labels
from finetune_operator.cluster import connect
from integration.kubelet import install_definition
from integration.watch_proxy import WatchProxy

KINDS = ("finetunejobs", "jobs", "pods", "events", "configmaps", "persistentvolumeclaims")
QUIET_SECONDS = 60
COUNTED = ("lists", "writes", "streams", "looks of the sweep")


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
        elif request.path.rpartition("/")[2] in KINDS:
            self.counted["looks of the sweep" if is_sweep else "lists"] += 1
        return await super()._handle(request)


async def until_quiet(proxy: Counting) -> None:
    """Return when nothing was written for a minute."""
    writes, since = -1, perf_counter()
    while perf_counter() - since < QUIET_SECONDS:
        if proxy.counted["writes"] != writes:
            writes, since = proxy.counted["writes"], perf_counter()
        await asyncio.sleep(1)


async def measure(proxy: Counting, jobs: int, minutes: float, kubeconfig: Path) -> tuple[list[int], list[str]]:
    """What was counted, and the log but for what it says at level info."""
    cluster, port = await connect(), free_port()
    namespace, page = await new_namespace(cluster, "idle"), await progress_page(port)
    async with operator(namespace, kubeconfig, "--trainer-port", str(port)) as running:
        await bring_to_life(cluster, namespace, jobs)
        await until_quiet(proxy)
        print(f"{jobs} jobs run and nothing is written", file=sys.stderr)
        proxy.counted.clear()
        said = len(running.log.read_text())
        await asyncio.sleep(minutes * 60)
        counts = [proxy.counted[kind] for kind in COUNTED]
        lines = running.log.read_text()[said:].splitlines()
    await page.cleanup()
    await cluster.close()
    return counts, [line for line in lines if '"level": "info"' not in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ControlPlane() as plane:
        install_definition(plane)
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        proxy = Counting(plane)
        try:
            kubeconfig = proxy.write_kubeconfig(Path(folder) / "kubeconfig")
            counts, warnings = asyncio.run(measure(proxy, options.jobs, options.minutes, kubeconfig))
        finally:
            proxy.stop()
    print("| jobs | minutes | lists beside the sweep | warnings | writes | new streams | looks of the sweep |")
    print("|---|---|---|---|---|---|---|")
    lists, writes, streams, looks = counts
    print(f"| {options.jobs:,} | {options.minutes:g} | {lists} | {len(warnings)} | {writes} | {streams} | {looks:,} |")
    print("\n".join(warnings), file=sys.stderr)


if __name__ == "__main__":
    main()
