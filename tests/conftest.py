"""What all tiers share: the real API server, with our CRD in it. Where it cannot be had, its tests are left out loudly.

REQUIRE_API_SERVER=1 (as in CI): then they fail.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.binaries import CONTROL_PLANE, binary
from cluster.control_plane import ControlPlane
from cluster.paths import ClusterError
from integration.kubelet import install_definition

EMPTY = compile("", "", "exec")
NO_API_SERVER = "no API server can be had here"

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", TOKENIZERS_PARALLELISM="false")
# An API server that looks for garbage less often takes less time of two cores that all tests share.
os.environ.setdefault("GOGC", "400")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager on loopback, with the FineTuneJob CRD established."""
    try:
        for name in CONTROL_PLANE:
            binary(name)
    except ClusterError as problem:
        if os.environ.get("REQUIRE_API_SERVER"):
            raise
        pytest.skip(f"{NO_API_SERVER}: {problem}")
    with ControlPlane() as plane:
        install_definition(plane)
        yield plane


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares by a tolerance is `numeric`: `make test-numeric` runs it as other processors would."""
    for item in items:
        names = getattr(getattr(item, "function", None), "__code__", EMPTY).co_names
        if "assert_close" in names or "bound" in names:
            item.add_marker(pytest.mark.numeric)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name what was left out for want of an API server: a green line alone would hide it."""
    reports = [report for report in terminalreporter.stats.get("skipped", []) if NO_API_SERVER in str(report.longrepr)]
    if not reports:
        return
    terminalreporter.section(f"LEFT OUT: {len(reports)} tests, because {NO_API_SERVER}", red=True, bold=True)
    for file, count in sorted(Counter(report.nodeid.partition("::")[0] for report in reports).items()):
        terminalreporter.line(f"{count:5} of {file}", red=True)
    terminalreporter.line(str(reports[0].longrepr[2]).removeprefix("Skipped: "), red=True)
