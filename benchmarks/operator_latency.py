"""How long a job that arrives waits for its first Kubernetes Job, while others arrive at a steady rate.

    .venv/bin/python benchmarks/operator_latency.py [--rate 10] [--seconds 60]

Arrivals keep to their schedule whatever becomes of those before them (an open loop). A latency is the time from the API
server's answer to the FineTuneJob's creation until a watch shows its Job. A bare client, told of the job at that very
moment, writes the same on the same schedule. They take turns of ten seconds, so that what else runs on the machine
slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

from fleet import BareClient, Object, new_namespace, operator, submit, until_pods

from cluster.control_plane import ControlPlane
from finetune_api import labels
from finetune_operator.cluster import Cluster, connect
from finetune_operator.observe import JOBS
from finetune_operator.watches import OURS
from integration.kubelet import install_definition

TURN_SECONDS = 10
Work = Callable[[Object], Awaitable[None]]


async def leave_to_the_operator(_: Object) -> None:
    """The operator's watch tells it."""


async def latencies(cluster: Cluster, namespace: str, rate: float, numbers: range, work: Work) -> list[float]:
    """Seconds that each arrival waited, in one turn."""
    due = {f"tune-{number}" for number in numbers}
    answered: dict[str, float] = {}
    seen: dict[str, float] = {}

    async def look() -> None:
        async for change in cluster.watch(JOBS, namespace, OURS):
            seen.setdefault(change.object["metadata"]["labels"][labels.JOB_LABEL], perf_counter())
            if due <= seen.keys():
                return

    async def arrive(number: int) -> None:
        body = await submit(cluster, namespace, number)
        answered[body["metadata"]["name"]] = perf_counter()
        await work(body)

    looking, begun, arrivals = asyncio.create_task(look()), perf_counter(), []
    for place, number in enumerate(numbers):
        await asyncio.sleep(max(0.0, begun + place / rate - perf_counter()))
        arrivals.append(asyncio.create_task(arrive(number)))
    await asyncio.gather(*arrivals, looking)
    await until_pods(cluster, namespace, numbers.stop)
    return [seen[name] - moment for name, moment in answered.items()]


def quantile(values: list[float], share: float) -> float:
    """The least value that so great a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure(rate: float, seconds: float, kubeconfig: Path) -> None:
    cluster, turn = await connect(), round(rate * min(seconds, TURN_SECONDS))
    client = await BareClient.learn(cluster, await new_namespace(cluster, "learn"))
    by_client, by_operator = await new_namespace(cluster, "bare"), await new_namespace(cluster, "operated")
    alone: list[float] = []
    served: list[float] = []
    async with operator(by_operator, kubeconfig):
        while len(alone) < rate * seconds:
            numbers = range(len(alone), len(alone) + turn)
            alone += await latencies(cluster, by_client, rate, numbers, client.serve)
            served += await latencies(cluster, by_operator, rate, numbers, leave_to_the_operator)
    await cluster.close()
    print(f"{rate:g} a second, {len(alone)} jobs each:\n\n| | p50, s | p99, s | longest, s |\n|---|---|---|---|")
    for name, values in (("bare client", alone), ("operator", served)):
        print(f"| {name} | " + " | ".join(f"{quantile(values, share):.3f}" for share in (0.5, 0.99, 1)) + " |")
    shares = [quantile(served, share) / quantile(alone, share) for share in (0.5, 0.99, 1)]
    print("| operator ÷ bare | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=10, help="jobs a second")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with ControlPlane() as plane:
        install_definition(plane)
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        asyncio.run(measure(options.rate, options.seconds, plane.kubeconfig))


if __name__ == "__main__":
    main()
