"""The operator as a subprocess against the real API server, and FineTuneJobs in namespaces of their own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane, free_port
from integration.kubelet import JOBS, Api, Job, eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
_numbers = itertools.count(1)


class Operator:
    """One operator, in a namespace of the test's own. `stop` is SIGTERM, `kill` SIGKILL."""

    def __init__(self, plane: ControlPlane, namespace: str, log: Path, *flags: str) -> None:
        self.namespace = namespace
        self.port = free_port()
        self.log = log
        environment = os.environ | {"KUBECONFIG": str(plane.kubeconfig)}
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


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    api = Api(control_plane)
    api.create("/api/v1/nodes", {"metadata": {"name": "played"}})
    return api


def new_namespace(api: Api) -> str:
    name = f"test-{os.getpid()}-{next(_numbers)}"
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture(scope="session")
def operator(control_plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator that most tests share, each with a job of its own name."""
    running = Operator(control_plane, new_namespace(api), tmp_path_factory.mktemp("operator") / "log").wait_ready()
    yield running
    assert running.is_alive(), running.log.read_text()[-2000:]
    assert running.stop() == 0


@pytest.fixture
def submit(api: Api, operator: Operator) -> Callable[..., Job]:
    """Submits a job to the shared operator."""
    return partial(create_job, api, operator.namespace)


@pytest.fixture
def namespace(api: Api) -> str:
    """A namespace of this test's own, that nobody serves yet."""
    return new_namespace(api)


@pytest.fixture
def submit_alone(api: Api, namespace: str) -> Callable[..., Job]:
    """Submits a job to the test's own namespace."""
    return partial(create_job, api, namespace)


@pytest.fixture
def start_operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Starts operators that serve the test's own namespace, and ends them with the test."""
    started: list[Operator] = []

    def start(*flags: str, wait: bool = True) -> Operator:
        log = tmp_path / f"operator-{len(started)}.log"
        started.append(Operator(control_plane, namespace, log, *flags))
        return started[-1].wait_ready() if wait else started[-1]

    yield start
    for operator in started:
        operator.kill()


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
