"""How much time the operator adds to the writes that it has to make: many FineTuneJobs at once, on a real API server.

    .venv/bin/python benchmarks/operator_burst.py [--jobs 300 1000] [--rounds 3]

A bare client creates the same jobs and sends the same writes for each (run, workspace, first Job, status), as many at
a time as the operator has workers. Both are timed from the first job's creation until every Job exists and every
status is written, in turns, so that a noisy machine is noisy for both. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "crds", "operator")]

from cluster.control_plane import ControlPlane, free_port  # noqa: E402
from finetune_api import labels  # noqa: E402
from finetune_operator.cluster import Cluster, Kind, connect  # noqa: E402
from finetune_operator.facts import Observed  # noqa: E402
from finetune_operator.observe import FINETUNE_JOBS, JOBS, observe  # noqa: E402
from finetune_operator.plan import plan  # noqa: E402
from finetune_operator.reconcile import KINDS, MANAGER, StatusWriter  # noqa: E402
from finetune_operator.settings import Settings  # noqa: E402
from integration.kubelet import install_definition  # noqa: E402

Object = dict[str, Any]

SETTINGS = Settings(trainer_image="trainer:1")
NAMESPACES = Kind("v1", "namespaces")


def job(namespace: str, number: int) -> Object:
    return {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": f"burst-{number}", "namespace": namespace},
        "spec": {
            "model": {"uri": "pvc://models/base"},
            "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
            "output": {"uri": "pvc://results/tuned"},
        },
    }


async def in_parallel(work: Callable[[int], Awaitable[None]], count: int) -> None:
    """Do `work` for each number, as many at a time as the operator has workers."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(SETTINGS.workers)))


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


async def new_namespace(cluster: Cluster, name: str) -> str:
    await cluster.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    return name


async def bare(cluster: Cluster, namespace: str, count: int) -> float:
    """Seconds in which a client that knows what to write has written it."""
    writer = StatusWriter(cluster)

    async def work(number: int) -> None:
        body = await cluster.create(FINETUNE_JOBS, job(namespace, number), "bench")
        observed: Observed = await observe(cluster, body)  # a new job: reads nothing
        decided = plan(observed, SETTINGS, datetime.now(UTC))
        for manifest in decided.create:
            await cluster.create(KINDS[manifest["kind"]], manifest, MANAGER)
        assert decided.status is not None
        await writer.status((namespace, f"burst-{number}"), observed.metadata.uid, decided.status)

    start = time.perf_counter()
    await in_parallel(work, count)
    return time.perf_counter() - start


async def operated(cluster: Cluster, namespace: str, count: int, kubeconfig: Path) -> tuple[float, int]:
    """Seconds in which the operator has done the same, and its resident bytes afterwards."""
    with tempfile.NamedTemporaryFile("r+") as log:
        command = [sys.executable, "-m", "finetune_operator", "--trainer-image", "trainer:1", "--no-leader-elect"]
        environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        operator = subprocess.Popen(
            [*command, "--namespaces", namespace, "--port", str(free_port())], env=environment, stdout=log, stderr=log
        )
        try:
            while "serving" not in Path(log.name).read_text():
                await asyncio.sleep(0.1)
            await asyncio.sleep(2)
            done = asyncio.create_task(until_done(cluster, namespace, count))
            start = time.perf_counter()

            async def submit(number: int) -> None:
                await cluster.create(FINETUNE_JOBS, job(namespace, number), "bench")

            await in_parallel(submit, count)
            await done
            seconds = time.perf_counter() - start
            await settle(cluster, namespace, count)
            return seconds, resident(operator.pid)
        finally:
            operator.send_signal(signal.SIGTERM)
            operator.wait(timeout=30)


async def settle(cluster: Cluster, namespace: str, count: int) -> None:
    """Wait until the Job controller has made the pods: the next measurement is to find a quiet machine."""
    path = f"/api/v1/namespaces/{namespace}/pods?limit=1"
    while True:
        answer = await cluster.request("GET", path)
        if len(answer["items"]) + answer["metadata"].get("remainingItemCount", 0) >= count:
            await asyncio.sleep(3)
            return
        await asyncio.sleep(1)


def resident(pid: int) -> int:
    """Bytes of physical memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def measure(counts: list[int], rounds: int, kubeconfig: Path) -> None:
    cluster = await connect()
    print("| jobs at once | bare client | operator | ratio (median of rounds) | operator's memory |")
    print("|---|---|---|---|---|")
    for count in counts:
        results = []
        for number in range(rounds):
            namespace = await new_namespace(cluster, f"bare-{count}-{number}")
            alone = await bare(cluster, namespace, count)
            await settle(cluster, namespace, count)
            namespace = await new_namespace(cluster, f"operated-{count}-{number}")
            results.append((alone, *await operated(cluster, namespace, count, kubeconfig)))
            print(f"round {number + 1}: {results[-1]}", file=sys.stderr)
        alone, served, memory = (statistics.median(column) for column in zip(*results, strict=True))
        ratio = statistics.median(one[1] / one[0] for one in results)
        print(f"| {count} | {alone:.1f} s | {served:.1f} s | {ratio:.2f} | {memory / 1e6:.0f} MB |", flush=True)
    await cluster.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ControlPlane() as plane:
        install_definition(plane)
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        asyncio.run(measure(options.jobs, options.rounds, plane.kubeconfig))


if __name__ == "__main__":
    main()
