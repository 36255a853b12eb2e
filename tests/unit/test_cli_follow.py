"""Watching ends when the job does; what is not there is explained.

The cluster is a script of answers, handed in through the constructor; the real one is in tests/integration.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from finetune_cli.cluster import ClusterError, NotFoundError
from finetune_cli.commands.follow import TIRED, Follower

Answer = dict[str, Any] | list[dict[str, Any]] | Exception


def a_body(phase: str | None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "bot", "namespace": "team", "uid": "u1", "resourceVersion": "7"},
        "spec": {
            "model": {"uri": "hf://org/model"},
            "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
            "output": {"uri": "pvc://models/bot"},
        },
        "status": status | ({"phase": phase} if phase else {}),
    }


def a_pod(name: str, created: str, started: bool = True) -> dict[str, Any]:
    state = {"running": {}} if started else {"waiting": {"reason": "ContainerCreating"}}
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "status": {"containerStatuses": [{"name": "trainer", "state": state}]},
    }


@dataclass
class Script:
    """Answers in order, the last one for ever."""

    answers: list[Answer]
    pods_found: list[list[dict[str, Any]]] = field(default_factory=lambda: [[]])
    logs: dict[str, list[str]] = field(default_factory=dict)
    selectors: list[str] = field(default_factory=list)
    namespace: str = "team"
    lists: int = 0
    patches: list[dict[str, Any]] = field(default_factory=list)
    has_restarts: bool = True

    def job(self, namespace: str, name: str) -> dict[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def jobs(self, namespace: str | None) -> list[dict[str, Any]]:
        return [a_body("Training")]

    def changes(self, namespace: str | None, name: str | None) -> Iterator[list[dict[str, Any]]]:
        self.lists += 1
        while True:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            yield answer if isinstance(answer, list) else [answer]

    def patch(self, namespace: str, name: str, change: dict[str, Any]) -> dict[str, Any]:
        self.patches.append(change)
        return a_body("Failed") | {"spec": change["spec"] if self.has_restarts else {}}

    def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        self.selectors.append(selector)
        return self.pods_found.pop(0) if len(self.pods_found) > 1 else self.pods_found[0]

    def log(self, namespace: str, pod: str, follow: bool) -> Iterator[str]:
        if pod not in self.logs:
            raise NotFoundError(f'pods "{pod}" not found')
        yield from self.logs[pod]


def a_follower(script: Script, terminal: bool = False) -> tuple[Follower, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=terminal)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return Follower(script, "team", console, wait=lambda: None, now=lambda: now), file


FAILED = {"type": "Failed", "status": "True", "reason": "OutOfMemory", "message": "exit code 137",
          "lastTransitionTime": "2026-01-02T00:00:00Z"}  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1)])
def test_watching_one_job_ends_with_it(terminal: bool, phase: str, code: int) -> None:
    """The exit code is the job's: 0 or 1."""
    script = Script([a_body("Training"), a_body("Training"), a_body(phase, conditions=[FAILED] if code else [])])
    dependent, file = a_follower(script, terminal)

    assert dependent.watch("bot") == code
    assert phase in file.getvalue()
    assert ("microBatchSize" in file.getvalue()) == bool(code)


def test_without_a_terminal_only_changes_are_printed() -> None:
    """The same state twice is one line."""
    dependent, file = a_follower(Script([a_body("Training")] * 4 + [a_body("Succeeded")]))
    dependent.watch("bot")

    assert file.getvalue().splitlines() == ["bot: Training", "bot: Succeeded"]


def test_watching_bears_an_api_server_that_restarts() -> None:
    """A refusal or two in between is not the end; one that lasts is."""
    down = ClusterError("cannot reach the cluster")
    dependent, _ = a_follower(Script([a_body("Training")] * 2 + [down, down, a_body("Succeeded")]))
    assert dependent.watch("bot") == 0

    dependent, _ = a_follower(Script([a_body("Training")] * 2 + [down] * TIRED))
    with pytest.raises(ClusterError, match="cannot reach"):
        dependent.watch("bot")


def test_a_cluster_that_was_never_there_is_not_waited_for() -> None:
    """The first answer of all is an error: watching ends with it."""
    script = Script([ClusterError("cannot reach the cluster")])
    dependent, _ = a_follower(script)

    with pytest.raises(ClusterError, match="cannot reach"):
        dependent.watch(None)
    assert script.lists == 1


def test_watching_goes_on_after_a_restart() -> None:
    """The operator may not have seen it yet: the job is Failed still, and will not be."""
    restarted = a_body("Failed", conditions=[FAILED], limits={"restarts": 0})
    restarted["spec"]["restarts"] = 1
    dependent, file = a_follower(Script([restarted, restarted, a_body("Training"), a_body("Succeeded")]))

    assert dependent.watch("bot") == 0
    assert file.getvalue().splitlines()[1:] == ["bot: Training", "bot: Succeeded"]


def test_a_job_that_is_deleted_ends_the_watch() -> None:
    """There is nothing left to see."""
    dependent, _ = a_follower(Script([a_body("Training"), a_body("Training"), []]))

    with pytest.raises(NotFoundError, match="bot was deleted"):
        dependent.watch("bot")


def test_changes_come_from_one_list() -> None:
    """However often a job changes, the jobs are listed once."""
    script = Script(
        [a_body("Preparing"), a_body("Preparing"), a_body("Training"), a_body("Publishing"), a_body("Succeeded")]
    )
    dependent, _ = a_follower(script)

    assert dependent.watch("bot") == 0
    assert script.lists == 1


def test_a_job_of_a_newer_release_hides_no_other() -> None:
    """What this command does not know is left out, and the other jobs are shown as before."""
    newer = a_body("Training", novel={"a": 1}, conditions=[{"type": "Failed"}, 5])
    newer["spec"] |= {"method": {"novel": {}}, "novel": True}
    newer["metadata"]["name"] = "newer"
    dependent, file = a_follower(
        Script([[newer, a_body("Preparing")], ClusterError("over")] + [ClusterError("over")] * TIRED)
    )

    with pytest.raises(ClusterError, match="over"):
        dependent.watch(None)
    assert file.getvalue().splitlines() == ["newer: Training", "bot: Preparing"]


def test_a_restart_raises_the_counter_and_says_what_follows() -> None:
    """By one, of the very version that was read."""
    attempts = [{"number": 1, "pod": "p", "checkpointStep": 40}]
    failed = a_body("Failed", conditions=[FAILED], stage={"name": "train", "tries": 4}, attempts=attempts)
    failed["spec"]["restarts"] = 2
    script = Script([failed])
    dependent, file = a_follower(script)

    assert dependent.restart("bot") == 0
    assert script.patches == [{"metadata": {"resourceVersion": "7"}, "spec": {"restarts": 3}}]
    assert file.getvalue().startswith("bot goes on from its checkpoint at step 40, with all its tries.")


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("Training", "starts a new attempt of train"),
        ("Suspended", "goes on when spec.suspend is false"),
        (None, "was not seen by an operator"),
    ],
)
def test_a_restart_of_a_job_that_has_not_failed_says_what_it_does(phase: str | None, said: str) -> None:
    """It depends on where the job is."""
    dependent, file = a_follower(Script([a_body(phase, stage={"name": "train"})]))

    assert dependent.restart("bot") == 0
    assert said in file.getvalue()


def test_a_restart_of_a_job_that_is_out_of_time_says_so() -> None:
    """Its seconds stay counted: another try alone would fail at once."""
    late = a_body("Failed", conditions=[FAILED | {"reason": "DeadlineExceeded"}])
    dependent, file = a_follower(Script([late]))

    assert dependent.restart("bot") == 0
    assert "raise spec.deadlineSeconds too" in file.getvalue()


def test_a_definition_without_restarts_is_told() -> None:
    """The API server drops what it does not know without a word."""
    dependent, _ = a_follower(Script([a_body("Failed")], has_restarts=False))

    with pytest.raises(ClusterError, match="upgrade the CRD"):
        dependent.restart("bot")


def test_a_name_that_is_almost_right_is_guessed() -> None:
    """`bott` is told of `bot`."""
    dependent, _ = a_follower(Script([NotFoundError("no")]))

    with pytest.raises(NotFoundError, match="no FineTuneJob bott in namespace team: did you mean bot"):
        dependent.describe("bott")
    with pytest.raises(NotFoundError, match="there are bot"):
        dependent.describe("xyz")


def test_logs_are_those_of_the_newest_pod() -> None:
    """Of this very job (by uid) and of the stage that was asked for."""
    pods = [a_pod("old", "2026-01-01T00:00:00Z"), a_pod("new", "2026-01-01T00:01:00Z")]
    script = Script([a_body("Training")], [pods], {"new": ["one", "[two]"], "old": ["never"]})
    dependent, file = a_follower(script)

    assert dependent.logs("bot", "train", follow=False) == 0
    assert file.getvalue().splitlines() == ["one", "[two]"]
    assert set(script.selectors[0].split(",")) == {
        "finetune.dev/job=bot", "finetune.dev/job-uid=u1", "finetune.dev/stage=train"}  # fmt: skip


def test_logs_of_a_replaced_pod_are_there_until_the_next_one_has_some() -> None:
    """After a Job was replaced its newest pod may not have started: the one before it is shown."""
    pods = [a_pod("old", "2026-01-01T00:00:00Z"), a_pod("new", "2026-01-01T00:01:00Z", started=False)]
    dependent, file = a_follower(Script([a_body("Training")], [pods], {"old": ["one"]}))

    assert dependent.logs("bot", None, follow=False) == 0
    assert file.getvalue().splitlines() == ["one"]


def test_following_logs_goes_on_to_the_pod_of_another_job() -> None:
    """The pods of the Job that was replaced go away with it; nothing is printed twice, nothing older afterwards."""
    old, new = a_pod("bot-u1-train-x", "2026-01-01T00:00:00Z"), a_pod("bot-u1-train-2-x", "2026-01-01T00:01:00Z")
    script = Script(
        [a_body("Training")] * 4 + [a_body("Succeeded")],
        [[old], [], [new], [old, new]],
        {"bot-u1-train-x": ["1"], "bot-u1-train-2-x": ["2"]},
    )
    dependent, file = a_follower(script)

    assert dependent.logs("bot", None, follow=True) == 0
    assert file.getvalue().splitlines() == ["1", "2"]


def test_of_two_pods_of_one_second_the_one_that_runs_is_the_newer_one() -> None:
    """Creation is told in whole seconds; by name the evicted one may be the last."""
    old, new = a_pod("train-z", "2026-01-01T00:00:00Z"), a_pod("train-a", "2026-01-01T00:00:00Z")
    ended = old | {"status": {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 75}}}]}}
    script = Script(
        [a_body("Training")] * 2 + [a_body("Succeeded")], [[old], [ended, new]], {"train-z": ["1"], "train-a": ["2"]}
    )
    dependent, file = a_follower(script)

    assert dependent.logs("bot", None, follow=True) == 0
    assert file.getvalue().splitlines() == ["1", "2"]


def test_following_logs_bears_a_pod_that_goes_away() -> None:
    """Between the list of pods and the question for its log it was deleted."""
    gone, new = a_pod("gone", "2026-01-01T00:00:00Z"), a_pod("new", "2026-01-01T00:01:00Z")
    script = Script([a_body("Training")] * 2 + [a_body("Succeeded")], [[gone], [new]], {"new": ["2"]})
    dependent, file = a_follower(script)

    assert dependent.logs("bot", None, follow=True) == 0
    assert file.getvalue().splitlines() == ["2"]


def test_logs_without_a_pod_say_so() -> None:
    """Exit code 1 and the phase, which tells why."""
    dependent, _ = a_follower(Script([a_body("Queued")]))

    assert dependent.logs("bot", None, follow=False) == 1


def test_following_logs_waits_for_the_pod_and_goes_on_to_the_next_stage() -> None:
    """Until the job has ended and its last pod was printed."""
    first, second = a_pod("prepare", "2026-01-01T00:00:00Z"), a_pod("train", "2026-01-01T00:01:00Z")
    waiting = a_pod("prepare", "2026-01-01T00:00:00Z", started=False)
    script = Script(
        [a_body("Preparing")] * 4 + [a_body("Succeeded")],
        [[], [waiting], [first], [first, second]],
        {"prepare": ["p"], "train": ["t"]},
    )
    dependent, file = a_follower(script)

    assert dependent.logs("bot", None, follow=True) == 0
    assert file.getvalue().splitlines() == ["p", "t"]
