"""How much time the operator adds to the writes that it has to make: many FineTuneJobs at once, on a real API server.

    .venv/bin/python benchmarks/operator_burst.py [--jobs 1000] [--rounds 3]

A bare client creates the same jobs and writes the same for each (status with the pinned run, ConfigMap, claim, first
Job), as many at a time as the operator has workers. Both are timed from the first job's creation until a watch has seen
every Job and every status, each on a control plane of its own, in turns, so that a noisy machine is noisy for both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from fleet import BareClient, Object, in_parallel, new_namespace, operator, submit, until_pods

from cluster.control_plane import ControlPlane
from finetune_operator.cluster import Cluster, Kind, connect
from finetune_operator.observe import FINETUNE_JOBS, JOBS
from integration.kubelet import install_definition

Result = TypeVar("Result")


async def until_done(cluster: Cluster, namespace: str, count: int) -> None:
    """Return when every Job exists and every FineTuneJob has a phase."""

    async def seen(kind: Kind, counts: Callable[[Object], bool]) -> None:
        names: set[str] = set()
        async for change in cluster.watch(kind, namespace):
            if counts(change.object):
                names.add(change.object["metadata"]["name"])
            if len(names) == count:
                return

    await asyncio.gather(
        seen(JOBS, lambda body: True), seen(FINETUNE_JOBS, lambda body: bool(body.get("status", {}).get("phase")))
    )


async def timed(cluster: Cluster, namespace: str, count: int, work: Callable[[int], Awaitable[None]]) -> float:
    """Seconds from the first `work` until all is seen to be there."""
    done = asyncio.create_task(until_done(cluster, namespace, count))
    start = perf_counter()
    await in_parallel(work, count)
    await done
    seconds = perf_counter() - start
    await until_pods(cluster, namespace, count)
    return seconds


async def bare(cluster: Cluster, count: int, _: Path) -> float:
    """Seconds of the bare client."""
    client = await BareClient.learn(cluster, await new_namespace(cluster, "learn"))
    namespace = await new_namespace(cluster, "bare")

    async def work(number: int) -> None:
        await client.serve(await submit(cluster, namespace, number))

    return await timed(cluster, namespace, count, work)


async def operated(cluster: Cluster, count: int, kubeconfig: Path) -> tuple[float, float, int]:
    """Seconds, the operator's own CPU seconds in them and after them, and its resident bytes."""
    namespace = await new_namespace(cluster, "operated")

    async def work(number: int) -> None:
        await submit(cluster, namespace, number)

    async with operator(namespace, kubeconfig) as running:
        before = running.cpu_seconds
        seconds = await timed(cluster, namespace, count, work)
        return seconds, running.cpu_seconds - before, running.resident


def on_a_fresh_cluster(measure: Callable[[Cluster, int, Path], Awaitable[Result]], count: int) -> Result:
    """A control plane for each run: its controllers go on working at what an earlier one left."""

    async def connected(kubeconfig: Path) -> Result:
        cluster = await connect()
        try:
            return await measure(cluster, count, kubeconfig)
        finally:
            await cluster.close()

    with ControlPlane() as plane:
        install_definition(plane)
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        return asyncio.run(connected(plane.kubeconfig))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| jobs | bare client, s | operator, s | operator ÷ bare | operator's CPU, ms a job | memory (RSS) |")
    print("|---|---|---|---|---|---|")
    for count in options.jobs:
        results = []
        for number in range(options.rounds):
            alone = on_a_fresh_cluster(bare, count) if number % 2 == 0 else None
            served = on_a_fresh_cluster(operated, count)
            results.append((alone or on_a_fresh_cluster(bare, count), *served))
            print(f"round {number + 1}: {results[-1]}", file=sys.stderr)
        client, seconds, cpu, memory = (statistics.median(column) for column in zip(*results, strict=True))
        ratio = statistics.median(one[1] / one[0] for one in results)
        per_job = f"{cpu / count * 1000:.1f} | {memory / 1e6:.0f} MB"
        print(f"| {count:,} | {client:.1f} | {seconds:.1f} | {ratio:.2f} | {per_job} |", flush=True)


if __name__ == "__main__":
    main()
