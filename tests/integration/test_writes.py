"""The operator writes seldom: counted by the API server's own audit log."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from integration.kubelet import Api, eventually, install_definition
from integration.operators import Operator, create_job
from integration.test_life import ARTIFACT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, verbs: [create, update, patch, delete]}
- {level: None}
"""


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, Path]]:
    """A control plane of our own that notes each write, and where."""
    folder = tmp_path_factory.mktemp("audit")
    policy, log = folder / "policy.yaml", folder / "log"
    policy.write_text(POLICY)
    flags = (f"--audit-policy-file={policy}", f"--audit-log-path={log}", "--audit-log-mode=blocking")
    with ControlPlane(api_server_flags=flags) as plane:
        install_definition(plane)
        yield plane, log


def writes(log: Path) -> Counter[str]:
    """The operator's writes by verb and resource, progress aside."""
    counted: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        about, is_ours = entry["objectRef"], entry.get("userAgent") == "finetune-operator"
        if is_ours and "fieldManager=finetune-progress" not in entry["requestURI"]:
            counted[f"{entry['verb']} {about['resource']}/{about.get('subresource', '')}"] += 1
    return counted


def test_a_whole_life_takes_few_writes_and_rest_takes_none(audited: tuple[ControlPlane, Path], tmp_path: Path) -> None:
    """At most 15 writes from submission to Succeeded; not one while nothing changes."""
    plane, log = audited
    api = Api(plane)
    api.create("/api/v1/nodes", {"metadata": {"name": "played"}})
    operator = Operator(plane, "default", tmp_path / "log", "--sweep-seconds", "1").wait_ready()
    try:
        job = create_job(api, "default", f"tune-{os.getpid()}")
        job.new_pod("prepare").start()
        time.sleep(1)
        pod = job.pods("prepare")[0]
        pod.end(0, {"stage": "prepare"})
        job.new_pod("train").start()
        job.wait_reason("Training")
        eventually(lambda: "Training" in job.events(), "the Event is told")
        before = sum(writes(log).values())
        time.sleep(4)
        assert sum(writes(log).values()) == before, "writes while a job trains and nothing changes"
        job.pods("train")[0].end(0, {"stage": "train"})
        job.run_stage("publish", **ARTIFACT)
        job.wait_phase("Succeeded")
        time.sleep(3)
        assert sum(writes(log).values()) <= 15, writes(log)
    finally:
        operator.kill()
