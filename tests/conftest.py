"""What all tiers share: the real API server, with our CRD in it."""

import os
from collections.abc import Iterator

import pytest

from cluster.control_plane import ControlPlane
from integration.kubelet import install_definition

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", TOKENIZERS_PARALLELISM="false")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager on loopback, with the FineTuneJob CRD established."""
    with ControlPlane() as plane:
        install_definition(plane)
        yield plane
