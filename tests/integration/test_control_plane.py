"""The API server that every integration test relies on is real, restartable, and leaves nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from cluster.paths import ClusterError

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as running:
        yield running


def eventually(is_true: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def pods_of(plane: ControlPlane, job: str) -> list[str]:
    return plane.kubectl("get", "pods", f"--selector=job-name={job}", "--output=name").split()


def test_the_job_controller_makes_a_pod(plane: ControlPlane) -> None:
    """A Job gets its pod, as on any cluster; no kubelet will ever run it."""
    plane.kubectl("create", "job", "one", "--image=nowhere/nothing:1")
    assert eventually(lambda: len(pods_of(plane, "one")) == 1)


def test_jobs_wait_while_the_controller_manager_is_down(plane: ControlPlane) -> None:
    """Stopping the controller manager stops pods from being made; starting it makes up for what was missed."""
    plane.stop_controller_manager()
    plane.kubectl("create", "job", "late", "--image=nowhere/nothing:1")
    assert pods_of(plane, "late") == []
    plane.start_controller_manager()
    assert eventually(lambda: len(pods_of(plane, "late")) == 1)


def test_data_outlives_a_restart_of_the_api_server(plane: ControlPlane) -> None:
    """A stopped API server refuses connections; started again it knows what it knew, at the same address."""
    plane.kubectl("create", "configmap", "kept", "--from-literal=key=value")
    plane.stop_api_server()
    with pytest.raises(ClusterError, match="refused"):
        plane.kubectl("get", "configmap", "kept")
    plane.start_api_server()
    assert "kept" in plane.kubectl("get", "configmap", "kept", "--output=name")


def test_stopping_leaves_no_process_and_no_folder() -> None:
    """After `stop`, the processes are gone and so is the temporary folder, while another instance goes on."""
    with ControlPlane(controller_manager=False) as other:
        with ControlPlane(controller_manager=False) as plane:
            pids = [process.popen.pid for process in plane.processes.values()]
            assert len(pids) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert not plane.folder.exists()
        assert os.path.isdir(other.folder)
        assert "default" in other.kubectl("get", "namespaces", "--output=name")
