"""A pod that mounts claims, through which the tests put files into volumes and take them out."""

import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from e2e.kubectl import Kubectl, KubectlError, Object

USER = 10001
"""The trainer's own user: jobs may write beside what is put there."""


class Courier:
    """A running pod with each of its claims under /volumes."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self.kubectl, self.name = kubectl, name

    def put(self, folder: Path, claim: str, path: str = ".") -> None:
        """Copy the content of a local folder into a folder of a volume."""
        target = f"/volumes/{claim}/{path}"
        # Whatever tar says, all input is taken: containerd 1.6 never ends an exec whose input nobody reads.
        script = f"mkdir -p {target} && tar -x -m --no-same-owner -C {target}; status=$?; cat >/dev/null; exit $status"
        command = ["exec", "--stdin", self.name, "--", "sh", "-c", script]
        process = self.kubectl.pipe(*command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stderr is not None
        with process.stdin, tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, arcname=path.name, filter=readable)
        words = process.stderr.read().decode()
        if process.wait():
            raise KubectlError(f"{folder} could not be put into {claim}: {words}")

    def take(self, claim: str, path: str, folder: Path) -> Path:
        """Copy a folder of a volume into a new local one."""
        command = ["exec", self.name, "--", "tar", "-c", "-C", f"/volumes/{claim}/{path}", "."]
        process = self.kubectl.pipe(*command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Pythons before 3.11.4 have none
            archive.extractall(folder)
        process.stdout.read()  # the padding behind the archive, else tar dies of a broken pipe
        if process.wait():
            raise KubectlError(f"{path} could not be taken from {claim}")
        return folder

    def has(self, claim: str, path: str) -> bool:
        """Whether a file or folder is there."""
        found = self.kubectl(
            "exec", self.name, "--", "sh", "-c", f"test -e /volumes/{claim}/{path} && echo yes || echo no"
        )
        return found.strip() == "yes"


def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """For everybody: pods read as somebody else than the tests write."""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


@contextmanager
def courier(kubectl: Kubectl, name: str, image: str, claims: Sequence[str]) -> Iterator[Courier]:
    """A courier for some claims, gone when the block ends."""
    kubectl.apply(pod(name, image, claims))
    try:
        kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=180s", seconds=200)
        yield Courier(kubectl, name)
    finally:
        kubectl("delete", "pod", name, "--now", "--wait=true")


def pod(name: str, image: str, claims: Sequence[str]) -> Object:
    mounts = [{"name": f"claim-{number}", "mountPath": f"/volumes/{claim}"} for number, claim in enumerate(claims)]
    volumes = [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, claim in enumerate(claims)
    ]
    container = {
        "name": "courier",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
