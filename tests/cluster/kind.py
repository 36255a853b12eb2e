"""The same cluster by kind, where a Docker engine answers. Same verbs as node.py.

Not run on the machine that this was written on, which has no Docker engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from cluster.binaries import binary
from cluster.control_plane import SERVICE_RANGE
from cluster.node_settings import POD_SUBNET
from cluster.paths import CLUSTER, REPOSITORY, ClusterError

NAME = "finetune"
NODE = f"{NAME}-control-plane"
KUBECONFIG = CLUSTER / "kind.kubeconfig"


def has_docker() -> bool:
    """Whether an engine answers; the client alone is no use."""
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=10).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def up() -> None:
    if status() == "up":
        print(f"already up: export KUBECONFIG={KUBECONFIG}")
        return
    CLUSTER.mkdir(parents=True, exist_ok=True)
    kind("create", "cluster", "--wait=120s", f"--kubeconfig={KUBECONFIG}")
    route_to_pods()
    print(f"up: export KUBECONFIG={KUBECONFIG}")


def down() -> None:
    """kind removes the container, and with it the routes through it."""
    kind("delete", "cluster")
    KUBECONFIG.unlink(missing_ok=True)
    print("down")


def status() -> str:
    return "up" if NAME in run([str(binary("kind")), "get", "clusters"]).split() else "down"


def route_to_pods() -> None:
    """Tests on the host talk to pods by address. kind gives its first node the first subnet of 10.244.0.0/16."""
    if os.geteuid() != 0:
        print("not root: this machine will not reach pods by their address", file=sys.stderr)
        return
    networks = json.loads(run(["docker", "inspect", "--format={{json .NetworkSettings.Networks}}", NODE]))
    for addresses in (POD_SUBNET, SERVICE_RANGE):
        run(["ip", "route", "replace", addresses, "via", networks["kind"]["IPAddress"]])


def build_and_load(component: str, dockerfile: str) -> str:
    """Build one image as a release would, all dependencies from PyPI; its name as pods use it."""
    identity = run(["docker", "build", "--quiet", f"--file={REPOSITORY / dockerfile}", str(REPOSITORY)])
    image = f"localhost/finetune-{component}:{identity.removeprefix('sha256:')[:12]}"
    run(["docker", "tag", identity, image])
    load(image)
    return image


def load(image: str) -> None:
    kind("load", "docker-image", image)


def kind(*arguments: str) -> None:
    subprocess.run([str(binary("kind")), *arguments, f"--name={NAME}"], check=True, stdout=sys.stderr)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()[-1000:]}")
    return done.stdout.strip()
