"""What memory the operator needs for many live jobs: each with a running pod whose progress page is read.

    .venv/bin/python benchmarks/operator_memory.py [--jobs 5000] [--sweep-seconds 120]

Nodes and pods are played; all pods have one progress page, served here. Resident memory (RSS) is read when every job
is seen to run, and once more after a sweep has looked at each of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from pathlib import Path
from time import perf_counter

from aiohttp import ClientSession
from fleet import Running, bring_to_life, new_namespace, operator, progress_page

from cluster.control_plane import ControlPlane, free_port
from finetune_operator.cluster import connect
from integration.kubelet import install_definition


async def figures(running: Running) -> dict[str, float]:
    """What the operator's metrics say, by their names."""
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{running.port}/metrics") as answer:
        lines = re.findall(r"^(\w+) (\S+)$", await answer.text(), re.MULTILINE)
    return {name: float(value) for name, value in lines}


async def until_quiet(running: Running, looks: float = 0) -> float:
    """Wait until so many passes were made in all and nothing waits for one; returns how many they are by then."""
    while True:
        said = await figures(running)
        if (done := said["finetune_reconcile_duration_seconds_count"]) >= looks and not said["finetune_queue_depth"]:
            return done
        await asyncio.sleep(1)


async def measure(jobs: int, sweep_seconds: float, kubeconfig: Path) -> None:
    cluster, port, start = await connect(), free_port(), perf_counter()
    namespace, page = await new_namespace(cluster, "live"), await progress_page(port)
    flags = ("--sweep-seconds", str(sweep_seconds), "--trainer-port", str(port))

    async with operator(namespace, kubeconfig, *flags) as running:
        at_rest = running.resident
        await bring_to_life(cluster, namespace, jobs)
        # A pass for the new job, another for its running pod.
        passes = await until_quiet(running, 2 * jobs)
        print(f"{jobs} pods run after {perf_counter() - start:.0f} s", file=sys.stderr)
        live = running.resident
        await until_quiet(running, passes + jobs)
        swept, peak = running.resident, running.peak
    await page.cleanup()
    await cluster.close()
    print("| live jobs | operator at rest | all seen to run | after a sweep | peak |\n|---|---|---|---|---|")
    print(f"| {jobs:,} | " + " | ".join(f"{one / 1e6:.0f} MB" for one in (at_rest, live, swept, peak)) + " |")
    print(f"{perf_counter() - start:.0f} s in all", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--sweep-seconds", type=float, default=120, help="the operator's default is 300")
    options = parser.parse_args()
    with ControlPlane() as plane:
        install_definition(plane)
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        asyncio.run(measure(options.jobs, options.sweep_seconds, plane.kubeconfig))


if __name__ == "__main__":
    main()
