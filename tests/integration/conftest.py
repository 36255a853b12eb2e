"""The operator as a subprocess against the real API server, and FineTuneJobs in namespaces of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from integration.kubelet import Api, Job
from integration.operators import Operator, create_job, new_namespace


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    api = Api(control_plane)
    api.create("/api/v1/nodes", {"metadata": {"name": "played"}})
    return api


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
