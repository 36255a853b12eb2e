"""Which cluster this machine can have: kind where a Docker engine answers, else a node in its own namespaces."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from cluster import images, kind, node, node_settings
from cluster import kubectl as client
from cluster.paths import ClusterError


@cache
def uses_kind() -> bool:
    return kind.has_docker()


def up() -> None:
    """Bring a cluster up and print where its kubeconfig is; nothing to do if there is one."""
    (kind if uses_kind() else node).up()


def down() -> None:
    (kind if uses_kind() else node).down()


def status() -> str:
    """One of up, starting, down."""
    return kind.status() if uses_kind() else node.status()


def kubeconfig() -> Path:
    return kind.KUBECONFIG if uses_kind() else node_settings.KUBECONFIG


def node_name() -> str:
    return kind.NODE if uses_kind() else node_settings.NAME


def image(component: str) -> str:
    """Build "operator" or "trainer" and hand it to the cluster; its name as pods use it."""
    if status() != "up":
        raise ClusterError("there is no cluster to take the images: python tests/cluster up")
    if uses_kind():
        return kind.build_and_load(component, images.DOCKERFILES[component])
    return images.build_and_push(component)


def load(name: str) -> None:
    """Copy an image of Docker's or buildah's store into the cluster, under the same name."""
    (kind if uses_kind() else images).load(name)


def fake_gpus(count: int) -> None:
    """Let the node claim `count` GPUs: enough to be scheduled by, and to be counted; nothing can compute on them."""
    quantities = {"nvidia.com/gpu": str(count)}
    patch = json.dumps({"status": {"capacity": quantities, "allocatable": quantities}})
    kubectl("patch", "node", node_name(), "--subresource=status", "--type=merge", f"--patch={patch}")


def kubectl(*arguments: str, document: str | None = None) -> str:
    """What kubectl says as the cluster's admin; `document` is its stdin. ClusterError with its words when it fails."""
    return client.kubectl(kubeconfig(), *arguments, document=document)
