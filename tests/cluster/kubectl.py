"""kubectl, the pinned one, with its cache beside the kubeconfig that it is given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cluster.binaries import binary
from cluster.paths import ClusterError


def kubectl(kubeconfig: Path, *arguments: str, document: str | None = None) -> str:
    """What kubectl says on stdout; `document` is its stdin. ClusterError with its words when it fails."""
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": str(kubeconfig.parent / "kubectl")}
    command = [str(binary("kubectl")), *arguments]
    done = subprocess.run(command, input=document, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
