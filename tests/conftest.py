"""What all tiers share: the real API server, with our CRD in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", TOKENIZERS_PARALLELISM="false")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager on loopback, with the FineTuneJob CRD established."""
    with ControlPlane() as plane:
        plane.kubectl("apply", "--server-side", "-f", str(ROOT / "crds/finetunejobs.yaml"))
        plane.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev", "--timeout=30s")
        yield plane
