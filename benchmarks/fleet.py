"""What the operator's benchmarks share: many FineTuneJobs, played pods, the operator as a process, and a bare client.

The bare client is the least that could do the operator's work: it knows what to write before the job exists. It sends
the same requests in the same order with the same HTTP library; it reads nothing, decides nothing and watches nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "crds", "operator")]

from aiohttp import web  # noqa: E402

from cluster.control_plane import free_port  # noqa: E402
from finetune_api import labels  # noqa: E402
from finetune_operator.cluster import MERGE, Cluster  # noqa: E402
from finetune_operator.departed import Departed  # noqa: E402
from finetune_operator.observe import FINETUNE_JOBS, PODS, observe  # noqa: E402
from finetune_operator.plan import plan  # noqa: E402
from finetune_operator.reconcile import KINDS, MANAGER  # noqa: E402
from finetune_operator.settings import Settings  # noqa: E402
from finetune_operator.watches import OURS  # noqa: E402
from integration.kubelet import stamp  # noqa: E402

Object = dict[str, Any]

SETTINGS = Settings(trainer_image="trainer:1")
SPECIMEN = "specimen"
AT_ONCE = 16
PAGE = {"stage": "prepare", "activity": "reading", "step": 1000, "totalSteps": 2000}
NODE: Object = {"metadata": {"name": "played"}}
BINDING: Object = {"apiVersion": "v1", "kind": "Binding", "target": {"apiVersion": "v1", "kind": "Node"}}
ALL_PODS = "/api/v1/namespaces/{}/pods?limit=1"


def job(namespace: str, name: str) -> Object:
    return {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "pvc://models/base"},
            "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
            "output": {"uri": "pvc://results/tuned"},
        },
    }


async def submit(cluster: Cluster, namespace: str, number: int) -> Object:
    """Create the FineTuneJob of that number, as a person would."""
    return await cluster.create(FINETUNE_JOBS, job(namespace, f"tune-{number}"), "bench")


async def new_namespace(cluster: Cluster, name: str) -> str:
    await cluster.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    return name


class BareClient:
    """Writes for a FineTuneJob what the operator would. Make it with `learn`."""

    def __init__(self, cluster: Cluster, status: str, children: list[str], uid: str, namespace: str) -> None:
        self._cluster = cluster
        self._status, self._children = status, children
        self._uid, self._namespace = uid, namespace

    @classmethod
    async def learn(cls, cluster: Cluster, namespace: str) -> BareClient:
        """Take what the operator plans for one job as the form of what to write for all others."""
        body = await cluster.create(FINETUNE_JOBS, job(namespace, SPECIMEN), "bench")
        observed = await observe(cluster, body, Departed())  # of a new job nothing is read
        planned = plan(observed, SETTINGS, datetime.now(UTC))
        assert planned.status is not None
        assert planned.status_first
        status = {
            "apiVersion": labels.API_VERSION,
            "kind": labels.KIND,
            "metadata": {"name": SPECIMEN, "namespace": namespace, "uid": observed.metadata.uid},
            "status": planned.status.to_wire(),
        }
        children = [json.dumps(child) for child in planned.create]
        return cls(cluster, json.dumps(status), children, observed.metadata.uid, namespace)

    async def serve(self, body: Object) -> None:
        """Write the status with its pinned run, then the ConfigMap, the claim and the Job."""
        await self._cluster.apply_status(FINETUNE_JOBS, self._of(self._status, body), MANAGER)
        for child in self._children:
            manifest = self._of(child, body)
            await self._cluster.create(KINDS[manifest["kind"]], manifest, MANAGER)

    def _of(self, form: str, body: Object) -> Object:
        metadata = body["metadata"]
        # The uid first: of it, five characters stand alone in the children's names.
        for old, new in (
            (self._uid, metadata["uid"]),
            (f"{SPECIMEN}-{self._uid[:5]}", f"{metadata['name']}-{metadata['uid'][:5]}"),
            (SPECIMEN, metadata["name"]),
            (self._namespace, metadata["namespace"]),
        ):
            form = form.replace(old, new)
        found: Object = json.loads(form)
        return found


@dataclass(frozen=True)
class Running:
    """An operator that serves."""

    pid: int
    port: int
    log: Path

    @property
    def resident(self) -> int:
        """Bytes of physical memory that it holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def peak(self) -> int:
        """The most that it ever held."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def operator(namespace: str, kubeconfig: Path, *flags: str) -> AsyncIterator[Running]:
    """An operator of that namespace, once its watches are open; it is ended with the block."""
    with tempfile.NamedTemporaryFile("r+") as log:
        port = free_port()
        command = [sys.executable, "-m", "finetune_operator", "--trainer-image", "trainer:1", "--no-leader-elect"]
        command += ["--namespaces", namespace, "--port", str(port), *flags]
        environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while "serving" not in Path(log.name).read_text():
                assert process.poll() is None, Path(log.name).read_text()
                await asyncio.sleep(0.1)
            await asyncio.sleep(2)
            yield Running(process.pid, port, Path(log.name))
        finally:
            process.terminate()
            process.wait(timeout=60)


async def in_parallel(work: Callable[[int], Awaitable[None]], count: int, at_once: int = SETTINGS.workers) -> None:
    """Do `work` for each number, unless told otherwise as many at a time as the operator has workers."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def until_pods(cluster: Cluster, namespace: str, count: int) -> None:
    """Wait until the Job controller has made so many pods: it is to disturb no measurement that follows."""
    while True:
        answer = await cluster.request("GET", ALL_PODS.format(namespace))
        if len(answer["items"]) + answer["metadata"].get("remainingItemCount", 0) >= count:
            await asyncio.sleep(3)
            return
        await asyncio.sleep(1)


async def progress_page(port: int) -> web.AppRunner:
    """Serve what each trainer says."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(PAGE)

    runner = web.AppRunner(web.Application(), access_log=None)
    runner.app.router.add_get(labels.PROGRESS_PATH, answer)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


async def run_pods(cluster: Cluster, namespace: str, count: int) -> None:
    """Bind and start each pod as soon as it exists; returns when so many run."""
    fresh: asyncio.Queue[str] = asyncio.Queue()

    async def find() -> None:
        known: set[str] = set()
        async for change in cluster.watch(PODS, namespace, OURS):
            name = change.object["metadata"]["name"]
            if name not in known:
                known.add(name)
                fresh.put_nowait(name)

    async def start(_: int) -> None:
        name = await fresh.get()
        path = PODS.path(namespace, name)
        target = BINDING["target"] | {"name": NODE["metadata"]["name"]}
        await cluster.request("POST", f"{path}/binding", body=BINDING | {"metadata": {"name": name}, "target": target})
        running = {"name": labels.CONTAINER, "image": "i", "imageID": "", "ready": True, "restartCount": 0}
        running |= {"state": {"running": {"startedAt": stamp()}}}
        status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        body = {"status": status | {"containerStatuses": [running]}}
        await cluster.request("PATCH", f"{path}/status", body=body, content=MERGE)

    finding = asyncio.create_task(find())
    await in_parallel(start, count, AT_ONCE)
    finding.cancel()


async def bring_to_life(cluster: Cluster, namespace: str, count: int) -> None:
    """So many FineTuneJobs, each with a pod that runs."""

    async def work(number: int) -> None:
        await submit(cluster, namespace, number)

    await cluster.request("POST", "/api/v1/nodes", body=NODE)
    await asyncio.gather(in_parallel(work, count, AT_ONCE), run_pods(cluster, namespace, count))
