"""Proof that the node does what tests and the demo rely on, and that `down` leaves no trace of it."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import backend, node
from cluster.base_image import base_image
from cluster.node_settings import VOLUMES
from cluster.paths import CLUSTER, ClusterError

NAMESPACE = "finetune-check"
WAIT = "--timeout=60s"
# Counters, which change by themselves.
VOLATILE = (
    "fs.dentry-state",
    "fs.file-nr",
    "fs.inode",
    "fs.quota",
    "kernel.ns_last_pid",
    "kernel.perf_event_max_sample_rate",
    "kernel.pty.nr",
    "kernel.random",
    "net.netfilter.nf_conntrack_count",
)
SCRIPT = """
import os, socket
open("/data/written", "w").write("by the pod")
state = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("uid", os.getuid(), "capabilities", int(state["CapEff"], 16), "seccomp", state["Seccomp"].strip())
print("api", socket.gethostbyname("kubernetes.default.svc.cluster.local"))
print("connected", socket.create_connection(("kubernetes.default.svc", 443), 5).getpeername()[1])
try:
    socket.gethostbyname("example.com")
except OSError:
    print("no outside")
"""


def run() -> None:
    """Check the cluster that is up; or, where none is, bring one up, check it, take it down, and look for traces."""
    if backend.uses_kind():
        raise ClusterError("this check is for the namespaced node; kind has its own tests")
    was_down = node.status() == "down"
    before = traces()
    node.up()
    try:
        check_all()
    finally:
        if was_down:
            node.down()
    if was_down:
        compare(before, traces())
        print("ok: down left no setting, mount, link, route, cgroup or folder behind")


def check_all() -> None:
    image = base_image()
    backend.load(image)
    namespace = {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    create({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace})
    try:
        for check in (check_restricted_job, check_refusal, check_out_of_memory, check_eviction, check_pod_address):
            started = time.monotonic()
            check(image)
            print(f"ok: {check.__doc__} ({time.monotonic() - started:.1f} s)", flush=True)
    finally:
        backend.kubectl("delete", "namespace", NAMESPACE)
    wait_until(lambda: free_volumes() == VOLUMES, "the volume to be offered again")
    print("ok: a deleted claim's volume is emptied and offered again")


def check_restricted_job(image: str) -> None:
    """a restricted, non-root Job writes to its volume, resolves names and reaches the API server"""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim})
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    create(job("restricted", container(image, ["python", "-c", SCRIPT], **mount), volumes=[volume]))
    kubectl("wait", "--for=condition=Complete", "job/restricted", WAIT)
    said = kubectl("logs", "job/restricted").splitlines()
    expect(
        said == ["uid 10001 capabilities 0 seccomp 2", "api 10.96.0.1", "connected 443", "no outside"],
        f"the pod said {said}",
    )


def check_refusal(image: str) -> None:
    """pod security refuses a privileged pod"""
    pod = {**container(image, ["true"]), "securityContext": {"privileged": True}}
    try:
        create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}, "spec": {"containers": [pod]}})
    except ClusterError as refused:
        expect("violates PodSecurity" in str(refused), str(refused))
    else:
        raise ClusterError("a privileged pod was admitted")


def check_out_of_memory(image: str) -> None:
    """a container above its memory limit ends as OOMKilled with exit code 137"""
    limits = {"resources": {"limits": {"memory": "64Mi"}}}
    create(job("greedy", container(image, ["python", "-c", "bytearray(300 << 20)"], **limits)))
    kubectl("wait", "--for=condition=Failed", "job/greedy", WAIT)
    ended = pods("greedy")[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    expect((ended["reason"], ended["exitCode"]) == ("OOMKilled", 137), f"it ended as {ended}")


def check_eviction(image: str) -> None:
    """an evicted pod of a Job is replaced and does not count as a failure"""
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
    create(job("evicted", container(image, ["sleep", "60"]), podFailurePolicy={"rules": rules}))
    kubectl("wait", "--for=condition=Ready", "pod", "--selector=job-name=evicted", WAIT)
    first = pods("evicted")[0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first, "namespace": NAMESPACE}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{first}/eviction"
    backend.kubectl("create", f"--raw={path}", "--filename=-", document=json.dumps(eviction))
    wait_until(lambda: any(pod["metadata"]["name"] != first for pod in pods("evicted")), "the pod to be replaced")
    expect("failed" not in json.loads(kubectl("get", "job/evicted", "--output=json"))["status"], "it was counted")


def check_pod_address(image: str) -> None:
    """the host reaches a pod by its address"""
    create(job("server", container(image, ["python", "-m", "http.server", "8080"])))
    kubectl("wait", "--for=condition=Ready", "pod", "--selector=job-name=server", WAIT)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        try:
            return bool(opener.open(f"http://{pods('server')[0]['status']['podIP']}:8080/", timeout=2).status == 200)
        except OSError:
            return False

    wait_until(answers, "the pod to answer")


def container(image: str, command: list[str], **more: object) -> dict[str, object]:
    rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {"name": "main", "image": image, "command": command, "securityContext": rights, **more}


def job(name: str, main: dict[str, object], *, volumes: list[Any] | None = None, **more: object) -> dict[str, object]:
    """A Job that the restricted pod security standard admits, and that does not retry."""
    identity = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [main], "volumes": volumes or []}
    pod["securityContext"] = {**identity, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"backoffLimit": 0, "podReplacementPolicy": "Failed", "template": {"spec": pod}, **more}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def create(manifest: dict[str, object]) -> None:
    kubectl("create", "--filename=-", document=json.dumps(manifest))


def kubectl(*arguments: str, document: str | None = None) -> str:
    return backend.kubectl(f"--namespace={NAMESPACE}", *arguments, document=document)


def pods(job_name: str) -> list[dict[str, Any]]:
    said = kubectl("get", "pods", f"--selector=job-name={job_name}", "--output=json")
    return list(json.loads(said)["items"])


def free_volumes() -> int:
    volumes = json.loads(backend.kubectl("get", "persistentvolumes", "--output=json"))["items"]
    return sum(volume["status"]["phase"] == "Available" for volume in volumes)


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    node.wait_until(is_true, what, 30)


def expect(is_true: bool, otherwise: str) -> None:
    if not is_true:
        raise ClusterError(otherwise)


def traces() -> dict[str, list[str]]:
    """All that a node could leave on this machine, by kind; mounts only where it makes any, others make some too."""
    settings = subprocess.run(["sysctl", "--all"], capture_output=True, text=True).stdout.splitlines()
    return {
        "settings": [line for line in settings if not line.startswith(VOLATILE)],
        "mounts": [place for place in mount_places() if place.startswith((str(CLUSTER), "/run", *node.MOUNT_POINTS))],
        "links": os.listdir("/sys/class/net"),
        "routes": subprocess.run(["ip", "route"], capture_output=True, text=True).stdout.splitlines(),
        "cgroups": [path for root in node.cgroup_roots() for path, _, _ in os.walk(root)],
        "folders": [folder for folder in node.MOUNT_POINTS if Path(folder).exists()],
    }


def mount_places() -> list[str]:
    return [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]


def compare(before: dict[str, list[str]], after: dict[str, list[str]]) -> None:
    for kind, entries in before.items():
        changed = sorted(set(entries) ^ set(after[kind]))
        expect(not changed, f"{kind} differ after down (or something else changed them meanwhile): {changed[:5]}")
