"""The Debian packages that a node and its images are made with, installed when they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.paths import ClusterError

PACKAGE_OF = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "gcc": "gcc",
    "readelf": "binutils",
}
POLICY = Path("/usr/sbin/policy-rc.d")


def install_missing() -> None:
    """Install what is missing. ClusterError, with the command to run, where we cannot."""
    missing = sorted(package for program, package in PACKAGE_OF.items() if shutil.which(program) is None)
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *missing]
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(f"these are missing: {' '.join(missing)}; as root on Debian: {' '.join(command)}")
    print(f"installing {' '.join(missing)} ...", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with no_services():
        subprocess.run(["apt-get", "update", "--quiet=2"], capture_output=True)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed; run it by hand to see why")


@contextmanager
def no_services() -> Iterator[None]:
    """Debian starts what it installs; this node starts its own containerd, and no other is wanted."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
