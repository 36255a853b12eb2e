"""Which changes of a job's children wake the job: those that can matter, none of those that a burst makes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_api import labels
from finetune_api.spec.job_spec import jobs_named
from finetune_operator.cluster import Change
from finetune_operator.streams import News
from finetune_operator.watches import Dependents, NewJobs, Silence, key_of_job, key_of_pod

KEY = ("team", "support-bot")


def change(type: str, status: dict[str, Any] | None = None, **metadata: Any) -> Change:
    ours = {"namespace": "team", "name": "x", "labels": {labels.JOB_LABEL: "support-bot"}}
    return Change(type, {"metadata": ours | metadata, "status": status or {}})


@pytest.mark.parametrize("type", ["ADDED", "MODIFIED"])
def test_a_kubernetes_job_that_only_counts_pods_wakes_nobody(type: str) -> None:
    """`active: 1` says nothing that the pod does not say."""
    assert key_of_job(change(type, {"active": 1})) is None


@pytest.mark.parametrize(
    "news",
    [
        change("MODIFIED", {"conditions": [{"type": "Complete", "status": "True"}]}),
        change("MODIFIED", deletionTimestamp="2026-01-01T00:00:00Z"),
        change("DELETED"),
        change("LISTED"),
    ],
)
def test_a_kubernetes_job_with_news_wakes_its_job(news: Change) -> None:
    """Ended, going, gone, or found after a gap."""
    assert key_of_job(news) == KEY


def test_a_fresh_pod_wakes_nobody_and_every_other_change_of_a_pod_does() -> None:
    """A pod that was just made has nothing to say yet."""
    assert key_of_pod(change("ADDED", {"phase": "Pending"})) is None
    assert key_of_pod(change("ADDED", {"phase": "Pending", "conditions": [{"type": "PodScheduled"}]})) == KEY
    assert key_of_pod(change("MODIFIED", {"phase": "Pending"})) == KEY
    assert key_of_pod(change("DELETED", {"phase": "Pending"})) == KEY


def told_of(kind: str, type: str, uid: str = "a", **status: Any) -> tuple[str, Change]:
    found = change(type, {"phase": "Pending", **status} if kind == "Pod" else status, uid=uid)
    return kind, Change(type, found.object | {"spec": {}})


@pytest.mark.parametrize(
    ("told", "is_looked_at"),
    [
        ([told_of("Job", "ADDED")], True),
        ([told_of("Job", "ADDED"), told_of("Job", "MODIFIED", startTime="2026-01-01T00:00:00Z")], True),
        ([told_of("Job", "ADDED"), told_of("Job", "MODIFIED", "b", active=1)], True),
        ([told_of("Job", "LISTED"), told_of("Job", "MODIFIED", active=1)], False),
        ([told_of("Job", "ADDED"), told_of("Job", "DELETED")], False),
        ([told_of("Pod", "ADDED")], True),
        ([told_of("Pod", "ADDED"), told_of("Pod", "MODIFIED", conditions=[{"type": "PodScheduled"}])], False),
    ],
)
def test_what_nobody_tells_of_is_looked_at_in_time(told: list[tuple[str, Change]], is_looked_at: bool) -> None:
    """A Kubernetes Job without a pod, a pod that nobody notices; nothing that was heard of meanwhile. Once."""
    looks: list[Any] = []

    async def scenario() -> None:
        silence = Silence(lambda key, _: looks.append(key), {"Job": 0.01, "Pod": 0.01})
        for one in told:
            silence.note(*one)
        await asyncio.sleep(0.05)

    asyncio.run(scenario())
    assert looks == [KEY] * is_looked_at


def test_what_is_silent_by_the_hundred_is_looked_at_one_after_the_other() -> None:
    """A Job controller that does not keep up is not to serve us as well. The first is looked at at once, and so is that
    of another namespace."""
    waits: list[tuple[Any, float]] = []

    async def scenario() -> None:
        silence = Silence(lambda key, seconds: waits.append((key, seconds)), {"Job": 0})
        for number in range(100):
            silence.note(*told_of("Job", "ADDED", str(number)))
        kind, one = told_of("Job", "ADDED", "elsewhere")
        one.object["metadata"]["namespace"] = "elsewhere"
        silence.note(kind, one)
        await asyncio.sleep(0.05)

    asyncio.run(scenario())
    *mine, (other, soon) = waits
    seconds = [wait for _, wait in mine]
    assert len(seconds) == 100
    assert seconds == sorted(seconds)
    assert seconds[0] < 1 < 9 < seconds[-1] < 11
    assert (other, soon < 1) == (("elsewhere", "support-bot"), True)


STARTING = {"method": {"lora": {"startFrom": {"adapters": [{"uri": "job://first"}, {"uri": "pvc://models/a"}]}}}}


def test_jobs_that_wait_for_one_are_found_by_its_name() -> None:
    """In its own namespace, until they have ended."""
    dependents = Dependents()
    dependents.note(KEY, STARTING)
    dependents.note(("team", "other"), {"method": {"lora": {}}})
    assert dependents.of(("team", "first")) == [KEY]
    assert dependents.of(("elsewhere", "first")) == []
    dependents.forget(KEY)
    assert dependents.of(("team", "first")) == []


@pytest.mark.parametrize("spec", [{}, {"method": None}, {"method": {"full": {}}}, {"method": {"lora": None}}])
def test_a_spec_of_any_shape_names_jobs_or_none(spec: dict[str, Any]) -> None:
    """It is read as it is stored, before anything has parsed it."""
    assert jobs_named(spec) == []
    assert jobs_named(STARTING) == ["first"]


def test_only_a_uri_names_a_job() -> None:
    """The same words in a prompt, or as the value of a variable, are somebody's text."""
    words = {"evaluation": {"prompts": ["job://other", "job://"]}, "podTemplate": {"env": [{"value": "job://"}]}}
    assert jobs_named(STARTING | words) == ["first"]


def new_job(uid: str = "a", **fields: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid}} | fields


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        ([("ADDED", new_job())], new_job()),
        ([("ADDED", new_job()), ("MODIFIED", new_job(spec={"suspend": True}))], new_job(spec={"suspend": True})),
        ([("ADDED", new_job()), ("DELETED", new_job())], None),
        ([("ADDED", new_job()), ("MODIFIED", new_job(status={"phase": "Failed"}))], None),
        ([("ADDED", new_job("b")), ("DELETED", new_job())], new_job("b")),
        ([("ADDED", new_job(status={"phase": "Failed"}))], None),
        ([("MODIFIED", new_job())], None),
        ([(None, new_job())], None),
    ],
)
def test_only_a_job_that_was_just_created_need_not_be_read(
    told: list[tuple[str | None, dict[str, Any]]], taken: dict[str, Any] | None
) -> None:
    """As it was told last; of one in a list or with a status, somebody may know more. Once: the pass writes of it."""
    jobs = NewJobs()
    for type, body in told:
        jobs.note(KEY, type, body)
    assert jobs.take(KEY) == taken
    assert jobs.take(KEY) is None


def job_line(type: str = "MODIFIED", uid: str = "a", status: dict[str, Any] | None = None, **metadata: Any) -> Any:
    found = {"metadata": {"uid": uid, "generation": 1} | metadata}
    return {"type": type, "object": found if status is None else found | {"status": status}}


@pytest.mark.parametrize(
    ("line", "is_news"),
    [
        (job_line(status={"phase": "Preparing"}), False),
        (job_line(status={"phase": "Training", "progress": {"step": 3}}), False),
        (job_line(labels={"team": "a"}), False),
        (job_line(generation=2), True),
        (job_line(deletionTimestamp="2026-01-01T00:00:00Z"), True),
        (job_line(status={"phase": "Failed"}), True),
        (job_line(status={"phase": "Succeeded"}), True),
        (job_line("DELETED"), True),
        (job_line("ADDED", uid="b"), True),
        (job_line(uid="b"), True),
    ],
)
def test_of_a_finetunejob_an_edit_an_end_and_a_deletion_are_news(line: Any, is_news: bool) -> None:
    """Not what we write of it ourselves; and of one that was not heard of before, everything."""
    news = News()
    assert news.take(job_line("ADDED"))
    assert news.take(line) is is_news


def test_a_job_that_is_brought_back_is_news_each_time() -> None:
    """It has ended, goes on after an edit, and ends again."""
    news, failed, goes_on = News(), {"phase": "Failed"}, {"phase": "Training"}
    life = [(1, {}), (1, failed), (2, failed), (2, goes_on), (2, goes_on), (2, failed), (2, failed)]
    told = [news.take(job_line(generation=generation, status=status)) for generation, status in life]
    assert told == [True, True, True, True, False, True, False]


def test_after_a_list_everything_is_news_once() -> None:
    """What was told in it went by another way."""
    news = News()
    assert news.take(job_line())
    news.forget()
    assert [news.take(job_line()), news.take(job_line())] == [True, False]
