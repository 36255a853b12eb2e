"""The operator as a subprocess, and what a test gives it to do."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane, free_port
from integration.kubelet import JOBS, Api, Job, eventually

_numbers = itertools.count(1)


class Operator:
    """One operator, in a namespace of the test's own. `stop` is SIGTERM, `kill` SIGKILL."""

    def __init__(
        self, plane: ControlPlane, namespace: str, log: Path, *flags: str, kubeconfig: Path | None = None
    ) -> None:
        self.namespace = namespace
        self.port = free_port()
        self.log = log
        # A client that is killed leaves the keys of its kubeconfig in TMPDIR.
        environment = os.environ | {"KUBECONFIG": str(kubeconfig or plane.kubeconfig), "TMPDIR": str(log.parent)}
        given = ["--namespaces", namespace, "--port", str(self.port), "--no-leader-elect"]
        command = [sys.executable, "-m", "finetune_operator", "--trainer-image", "trainer:1", *given, *flags]
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def wait_ready(self) -> Operator:
        eventually(lambda: "serving" in self.log.read_text(), f"the operator serves:\n{self.log.read_text()[-2000:]}")
        return self

    def stop(self) -> int:
        """End it as Kubernetes would; returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=20)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def is_alive(self) -> bool:
        return self._process.poll() is None


def new_namespace(api: Api) -> str:
    name = f"test-{os.getpid()}-{next(_numbers)}"
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def create_job(api: Api, namespace: str, name: str = "", **spec: Any) -> Job:
    """A FineTuneJob from a minimal spec and the fields given."""
    name = name or f"tune-{next(_numbers)}"
    minimal = {
        "model": {"uri": "pvc://models/base"},
        "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
        "output": {"uri": "pvc://results/tuned"},
    }
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": minimal | spec,
    }
    api.create(JOBS.format(namespace), body)
    return Job(api, namespace, name)
