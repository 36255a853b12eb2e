"""The two images of this repository, built from their Dockerfiles and handed to the running cluster.

Decides names and tags. Knows nothing of what is in the images.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request

from cluster import node
from cluster.base_image import base_image
from cluster.buildah import STORE, buildah
from cluster.dependency_image import dependency_image
from cluster.node_settings import CONTAINERD_SOCKET, NODE_ADDRESS, REGISTRY_PORT
from cluster.paths import REPOSITORY, ClusterError, locked

DOCKERFILES = {"operator": "Dockerfile", "trainer": "trainer_image/Dockerfile"}
REGISTRY_NAME = (
    f"localhost:{REGISTRY_PORT}"  # as pods name it; the host reaches the same registry by the node's address
)


def build_and_push(component: str) -> str:
    """Build "operator" or "trainer", push it, pull it into the node; the image's name as pods use it.

    The tag is the content: a change of code is a new name, and what did not change is neither built nor moved again.
    """
    started = time.monotonic()
    with locked(STORE / f"{component}-image"):
        identity = build(component)
    name = f"finetune-{component}:{identity[:12]}"
    if not has_registry(name):
        destination = f"docker://{NODE_ADDRESS}:{REGISTRY_PORT}/{name}"
        buildah("push", "--quiet", "--tls-verify=false", "--disable-compression", identity, destination)
    image = f"{REGISTRY_NAME}/{name}"
    ctr("images", "pull", "--plain-http", image)
    print(f"{component} image in the cluster after {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return image


def build(component: str) -> str:
    """Build the image by its own Dockerfile, on the prepared dependency layer; the image's ID, 64 hex digits."""
    arguments = {"BASE_IMAGE": base_image(), "DEPS_IMAGE": dependency_image(component)}
    flags = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    identity = STORE / f"{component}.id"
    dockerfile = REPOSITORY / DOCKERFILES[component]
    if not dockerfile.exists():
        raise ClusterError(f"{DOCKERFILES[component]} is missing")
    buildah("build", "--layers", f"--iidfile={identity}", f"--file={dockerfile}", *flags, str(REPOSITORY))
    return identity.read_text().strip().removeprefix("sha256:")


def has_registry(name: str) -> bool:
    """Whether the registry has this repository and tag, all layers included."""
    repository, _, tag = name.partition(":")
    url = f"http://{NODE_ADDRESS}:{REGISTRY_PORT}/v2/{repository}/manifests/{tag}"
    accept = "application/vnd.oci.image.manifest.v1+json"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers={"Accept": accept}, method="HEAD"), timeout=5):
            return True
    except urllib.error.HTTPError:
        return False


def load(image: str) -> None:
    """Copy an image of buildah's store into the node, under the same name."""
    archive = STORE / "load.tar"
    archive.unlink(missing_ok=True)
    buildah("push", "--quiet", image, f"docker-archive:{archive}:{image}")
    ctr("images", "import", str(archive))
    archive.unlink()


def ctr(*arguments: str) -> None:
    """containerd's own client, run inside the node."""
    node.run_inside("ctr", f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io", *arguments)
