"""buildah with a store of our own in the cache: it neither sees nor touches other images on this machine."""

from __future__ import annotations

import json
import os
import subprocess

from cluster.binaries import without_addresses
from cluster.paths import CACHE, ClusterError

STORE = CACHE / "images"
# The store mounts itself; in a mount namespace of its own that mount ends with the command.
PRIVATE_MOUNTS = ("unshare", "--mount", "--propagation=private")


def buildah(*arguments: str) -> str:
    """Run one buildah command; what it says on stdout, or ClusterError with the end of what it said."""
    done = subprocess.run([*PRIVATE_MOUNTS, "buildah", *arguments], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"buildah {arguments[0]} failed:\n{without_addresses(done.stdout + done.stderr)[-3000:]}")
    return done.stdout.strip()


def environment() -> dict[str, str]:
    """Chroot isolation: a build step needs no container runtime, and reaches the network as this machine does."""
    STORE.mkdir(parents=True, exist_ok=True)
    settings = STORE / "storage.conf"
    quoted = {name: json.dumps(str(STORE / name)) for name in ("storage", "run")}
    settings.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = {quoted["storage"]}\nrunroot = {quoted["run"]}\n')
    return os.environ | {"CONTAINERS_STORAGE_CONF": str(settings), "BUILDAH_ISOLATION": "chroot"}


def has_image(image: str) -> bool:
    return image in buildah("images", "--format={{.Name}}:{{.Tag}}").split()
