"""A network that loses, refuses, delays and resets: the same end as on a good day, and nothing done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from integration.fault_proxy import FAULTS, FaultProxy
from integration.kubelet import Job
from integration.operators import Operator
from integration.test_life import ARTIFACT, PREPARED, TRAINED

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_every_kind_of_fault_is_survived(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, submit_alone: Callable[..., Job]
) -> None:
    """A quarter of all requests fail, also after they took effect: each child exists once, and each job succeeds."""
    proxy = FaultProxy(control_plane, rate=0.25, seed=7)
    kubeconfig = proxy.write_kubeconfig(tmp_path / "kubeconfig")
    operator = Operator(control_plane, namespace, tmp_path / "log", kubeconfig=kubeconfig)
    try:
        jobs = [submit_alone(f"tune-{number}") for number in range(6)]
        for stage, report in (("prepare", PREPARED), ("train", TRAINED), ("publish", ARTIFACT)):
            for job in jobs:
                pod = job.new_pod(stage, 60)
                pod.start()
                pod.end(0, {"stage": stage, **report})
        for job in jobs:
            status = job.wait_phase("Succeeded", 60)
            assert len(job.child_jobs()) == len(job.pods()) == 3
            assert status["artifact"]["digest"] == "sha256:abc"
            assert [attempt["number"] for attempt in status["attempts"]] == [1]
        assert operator.is_alive()
        assert set(proxy.injected) == set(FAULTS)
    finally:
        operator.kill()
        proxy.stop()
