"""The operator's watches: what breaks is taken up again without a list, and what was missed in a gap is found."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from integration.kubelet import Api, Job, eventually
from integration.operators import Operator
from integration.watch_proxy import WatchProxy, error

pytestmark = pytest.mark.integration

WATCHED = ("finetunejobs", "jobs", "pods")
CHILDREN = "/apis/batch/v1/namespaces/{}/jobs"
HOUR = ("--sweep-seconds", "3600")
"""The sweep finds everything in the end: here it must not."""


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[WatchProxy]:
    running = WatchProxy(control_plane)
    yield running
    running.stop()


@pytest.fixture
def watching(control_plane: ControlPlane, proxy: WatchProxy, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """An operator behind the proxy, whose three watches are open."""
    kubeconfig = proxy.write_kubeconfig(tmp_path / "kubeconfig")
    operator = Operator(control_plane, namespace, tmp_path / "log", *HOUR, kubeconfig=kubeconfig).wait_ready()
    are_open(proxy, 1)
    yield operator
    operator.kill()


def are_open(proxy: WatchProxy, times: int) -> None:
    """Wait until a watch of each kind was opened so often."""
    opened = lambda plural: proxy.opened.count(plural)  # noqa: E731
    eventually(lambda: all(opened(plural) >= times for plural in WATCHED), f"{times} watches of each kind")


def warnings(operator: Operator) -> list[str]:
    return [line for line in operator.log.read_text().splitlines() if "WARNING" in line or "ERROR" in line]


def live(operator: Operator) -> float:
    """How many jobs the operator counts as preparing."""
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=5) as response:
        found = re.search(r'^finetune_jobs{phase="Preparing"} (.*)$', response.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0


def test_no_event_is_watched(watching: Operator, proxy: WatchProxy) -> None:
    """The API server has no cache of them, and so breaks such a stream off for want of news."""
    assert {plural for plural, _ in proxy.watches} == set(WATCHED)


def test_streams_that_are_cut_cost_no_list_and_no_warning(
    watching: Operator, proxy: WatchProxy, submit_alone: Callable[..., Job]
) -> None:
    """Each goes on from where it was: what happens afterwards is seen, nothing is listed again, nobody is alarmed."""
    submit_alone("before").new_pod("prepare").start()
    assert sorted(proxy.lists) == sorted(WATCHED)
    assert proxy.cut() == len(WATCHED)
    are_open(proxy, 2)
    job = submit_alone("after")
    job.new_pod("prepare").start()
    job.wait_phase("Preparing")
    assert sorted(proxy.lists) == sorted(WATCHED)
    assert warnings(watching) == []


@pytest.mark.parametrize(("code", "status"), [(500, 200), (504, 200), (500, 500), (429, 429)])
def test_an_error_of_the_server_costs_no_list(
    watching: Operator, proxy: WatchProxy, submit_alone: Callable[..., Job], code: int, status: int
) -> None:
    """Told in the stream or instead of it."""
    for plural in WATCHED:
        proxy.answer_next(plural, error(code), status)
    proxy.cut()
    are_open(proxy, 2)
    submit_alone("after").new_pod("prepare").start()
    assert sorted(proxy.lists) == sorted(WATCHED)
    assert watching.is_alive()


@pytest.mark.parametrize("line", [b"[1]\n", b'{"type": "ADDED", "obj', b"{}\n", b'{"type": "ADDED", "object": null}\n'])
def test_what_is_no_change_ends_nothing(
    watching: Operator, proxy: WatchProxy, submit_alone: Callable[..., Job], line: bytes
) -> None:
    """Half a line, or one of something else that answers in the server's place."""
    for plural in WATCHED:
        proxy.answer_next(plural, line)
    proxy.cut()
    are_open(proxy, 2)
    submit_alone("after").new_pod("prepare").start()
    assert sorted(proxy.lists) == sorted(WATCHED)
    assert watching.is_alive()


@pytest.mark.parametrize("status", [200, 410])
def test_a_deletion_in_a_gap_that_is_listed_over_is_noticed(
    watching: Operator, proxy: WatchProxy, submit_alone: Callable[..., Job], api: Api, status: int
) -> None:
    """410 makes one list of each kind. What is in none any more was deleted: its job is looked at, not in an hour."""
    gone, kept = submit_alone("gone"), submit_alone("kept")
    for job in (gone, kept):
        job.new_pod("prepare").start()
        job.wait_reason("Preparing")
    child, before = kept.child_job("prepare"), kept.condition("Progressing")
    assert child is not None
    proxy.close()
    gone.delete()
    api.delete(f"{CHILDREN.format(kept.namespace)}/{child['metadata']['name']}", propagationPolicy="Background")
    eventually(lambda: kept.child_job("prepare") is None, "the child is gone")
    for plural in WATCHED:
        proxy.answer_next(plural, error(410), status)
    proxy.open()
    eventually(lambda: kept.condition("Progressing") != before or kept.child_job("prepare"), "the child is missed")
    eventually(lambda: live(watching) == 1, "the job that is gone is not counted any more")
    eventually(lambda: len(proxy.lists) >= 2 * len(WATCHED), "each kind is listed anew")
    assert Counter(proxy.lists) == Counter(WATCHED * 2)
    assert watching.is_alive()
