"""What people are told: conditions whose times mean something, attempts that become history, and a next step."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.events import ProgressReport
from finetune_api.reasons import NEXT_STEP, ConditionType, Phase, Reason
from finetune_api.status import (
    Attempt,
    Data,
    EvaluationResult,
    FineTuneJobStatus,
    Plan,
    Progress,
    Recovery,
    Usage,
)
from finetune_operator.observed_state import Observed
from finetune_operator.plan import Plan as Decided
from finetune_operator.plan import plan
from finetune_operator.status import condition, with_next_step
from unit.observed import NOW, SETTINGS, at, ended, observed, running, spec, stage_job

PREPARED = stage_job("prepare", is_complete=True)


def decide(seen: Observed, seconds: float = 0) -> Decided:
    return plan(seen, SETTINGS, NOW + timedelta(seconds=seconds))


def summary(seen: Observed, seconds: float = 0) -> FineTuneJobStatus:
    status = decide(seen, seconds).status
    assert status is not None
    return status


def test_a_transition_time_moves_only_with_the_status() -> None:
    """Reason and message may change; the time says since when it holds."""
    first = summary(observed(PREPARED, stage_job("train")))
    later = summary(observed(PREPARED, stage_job("train"), running("train"), status=first), 60)
    assert condition(first, ConditionType.PROGRESSING).reason == Reason.STARTING
    assert condition(later, ConditionType.PROGRESSING).reason == Reason.TRAINING
    assert condition(later, ConditionType.PROGRESSING).last_transition_time == at(0)


def test_nothing_new_gives_the_same_status() -> None:
    """Equal to the last byte, whatever the time: that is why nothing is written at rest."""
    seen = observed(PREPARED, stage_job("train"), running("train"))
    once = summary(seen)
    assert summary(replace(seen, status=once), 3600) == once


def test_an_ended_attempt_is_history() -> None:
    """Its pod may vanish and its figures stay."""
    past = Attempt(number=1, pod="gone", started_at=at(-100), finished_at=at(-50), reason="Preempted", to_step=40)
    old = FineTuneJobStatus(phase="Training", attempts=[past])
    attempts = summary(observed(PREPARED, stage_job("train"), running("train"), status=old)).attempts
    assert attempts[0] == past
    assert (attempts[1].number, attempts[1].finished_at) == (2, None)


def test_a_pod_that_vanished_while_it_ran_has_ended() -> None:
    """Nobody saw how: it counts as preempted, at the last step that it showed, and no second later than that."""
    lost = Attempt(number=1, pod="gone", started_at=at(-7200))
    progress = Progress(stage="train", step=33, updated_at=at(-7000))
    old = FineTuneJobStatus(phase="Training", attempts=[lost], progress=progress)
    status = summary(observed(PREPARED, stage_job("train"), status=old, spec=spec(deadlineSeconds=3600)))
    (attempt,) = status.attempts
    assert (attempt.reason, attempt.finished_at, attempt.to_step) == (Reason.PREEMPTED, at(-7000), 33)
    assert status.usage is not None
    assert status.usage.gpu_seconds == 200
    assert status.phase == Phase.TRAINING


def test_what_was_seen_of_a_deleted_pod_counts() -> None:
    """Deleted by force just after its end, it is in no list any more; the watch told its last words."""
    word = json.dumps({"stage": "train", "progress": {"stage": "train", "step": 50, "checkpointStep": 50}})
    gone = ended("train", 75, start=0, end=30, message=word, gone_at=at(31))
    attempt = summary(observed(PREPARED, stage_job("train"), gone), 900).attempts[0]
    assert (attempt.finished_at, attempt.to_step, attempt.checkpoint_step) == (at(30), 50, 50)


def test_an_attempt_ends_before_the_next_one_starts() -> None:
    """The page that is shown may be the next attempt's already."""
    lost = Attempt(number=1, pod="gone", started_at=at(-500))
    progress = Progress(stage="train", step=33, updated_at=at(-10))
    old = FineTuneJobStatus(phase="Training", attempts=[lost], progress=progress)
    attempts = summary(observed(PREPARED, stage_job("train"), running("train", since=-300), status=old)).attempts
    assert [attempt.finished_at for attempt in attempts] == [at(-300), None]


def test_more_attempts_than_are_listed_change_no_total() -> None:
    """The list forgets; the numbers, the seconds and the restarts go on, and an old pod is not counted again."""
    listed = [
        Attempt(number=n, pod=f"pod-{n}", started_at=at(10 * n), finished_at=at(10 * n + 5), reason="Preempted")
        for n in range(41, 141)
    ]
    usage = Usage(active_seconds=700, stage_seconds=700, gpu_seconds=700)
    old = FineTuneJobStatus(
        phase="Training", attempts=listed, usage=usage, recovery=Recovery(restarts=139, steps_lost=9)
    )
    forgotten = ended("train", 75, 3, start=30, end=35, disruption="drained")
    fresh = ended("train", 75, 141, start=1410, end=1415, disruption="drained")
    status = summary(observed(PREPARED, stage_job("train"), forgotten, fresh, status=old), 1420)
    assert [attempt.number for attempt in status.attempts] == list(range(42, 142))
    assert status.usage is not None
    assert status.usage.gpu_seconds == 705
    assert status.recovery == Recovery(restarts=140, steps_lost=9)


def test_a_second_look_at_an_end_adds_nothing() -> None:
    """What an attempt cost is added up when it ends, and once."""
    killed = ended("train", 137)
    seen = observed(PREPARED, stage_job("train"), killed)
    once = summary(seen)
    assert summary(replace(seen, status=once), 60).usage == once.usage
    assert once.stage is not None
    assert (once.stage.name, once.stage.tries) == ("train", 1)


def test_the_last_page_stands_in_for_a_lost_report() -> None:
    """Killed without a word, the attempt ends at the step that its page showed last."""
    killed = ended("train", 137)
    page = ProgressReport(stage="train", step=71, resumed_from_step=30)
    (attempt,) = summary(observed(PREPARED, stage_job("train"), killed, reports={killed.uid: page})).attempts
    assert (attempt.from_step, attempt.to_step, attempt.reason) == (30, 71, Reason.OUT_OF_MEMORY)


@pytest.mark.parametrize(
    ("page", "wasted"),
    [
        ({"step": 71, "resumed_from_step": 30, "checkpoint_step": 50}, 31),
        ({"step": 71, "resumed_from_step": 31, "checkpoint_step": 31}, 60),
        ({"step": 40, "resumed_from_step": 40}, 60),
        (None, 60),
    ],
    ids=["after the checkpoint", "no checkpoint of its own", "no step", "never heard of"],
)
def test_gpu_time_that_nobody_can_build_on_is_wasted(page: dict[str, int] | None, wasted: int) -> None:
    """Of the minute that a killed attempt held its GPU, the share of its steps that no checkpoint has."""
    killed = ended("train", 137)
    reports = {killed.uid: ProgressReport(stage="train", **page)} if page else {}
    usage = summary(observed(PREPARED, stage_job("train"), killed, reports=reports)).usage
    assert usage is not None
    assert (usage.gpu_seconds, usage.wasted_gpu_seconds) == (60, wasted)


def test_publish_tells_again_what_was_missed() -> None:
    """Pods of prepare and train vanished before they were read: plan, data and evaluation come from publish."""
    told = {"plan": {"totalSteps": 9}, "data": {"tokens": 8}, "evaluation": {"split": "test"}}
    word = json.dumps(
        {"stage": "publish", "artifact": {"uri": "pvc://models/support-bot", "digest": "sha256:c"}, **told}
    )
    jobs = [stage_job(stage, is_complete=True) for stage in ("prepare", "train", "publish")]
    status = summary(observed(*jobs, ended("publish", 0, message=word)))
    assert status.phase == Phase.SUCCEEDED
    assert status.plan == Plan(total_steps=9)
    assert status.data == Data(tokens=8)
    assert status.evaluation == EvaluationResult(split="test")


def test_the_time_of_arrival_goes_when_nothing_runs() -> None:
    """A suspended or queued job arrives at no time that anybody knows."""
    old = FineTuneJobStatus(phase="Training", progress=Progress(stage="train", step=5, eta_seconds=100))
    seen = observed(PREPARED, stage_job("train", is_suspended=True), status=old)
    progress = decide(seen).progress
    assert progress is not None
    assert (progress.step, progress.eta_seconds) == (5, None)


def test_the_trainers_last_word_ends_the_progress() -> None:
    """The page may have been read before the last step; the report was written after it."""
    word = json.dumps({"stage": "train", "progress": {"stage": "train", "step": 100, "totalSteps": 100}})
    old = FineTuneJobStatus(phase="Training", progress=Progress(stage="train", step=97, total_steps=100, percent=97))
    seen = observed(PREPARED, stage_job("train", is_complete=True), ended("train", 0, message=word), status=old)
    progress = decide(seen).progress
    assert progress is not None
    assert progress.percent == 100


def test_a_run_without_steps_is_done_at_its_end() -> None:
    """Composed adapters take no step, and a percentage of no steps is not known before."""
    word = json.dumps({"stage": "publish", "artifact": {"uri": "pvc://models/support-bot", "digest": "sha256:c"}})
    old = FineTuneJobStatus(phase="Publishing", progress=Progress(stage="train", step=0))
    jobs = [stage_job(stage, is_complete=True) for stage in ("prepare", "train", "publish")]
    for ends, percent in [((), None), ((ended("publish", 0, message=word),), 100)]:
        seen = observed(*jobs, *ends, status=old)
        progress = decide(seen).progress
        assert progress is not None
        assert progress.percent == percent


def test_every_failure_says_what_to_do_next() -> None:
    """The next step follows the message, after a full stop."""
    for reason, step in NEXT_STEP.items():
        assert with_next_step(reason, "it broke") == f"it broke. {step}"
    assert with_next_step(Reason.SUCCEEDED, "") == ""


def test_a_failed_job_is_failed_and_not_progressing() -> None:
    """`kubectl wait --for=condition=Failed` returns, with the phase for people."""
    status = summary(observed(stage_job("prepare", failure="PodFailurePolicy"), ended("prepare", 65)))
    assert (status.phase, status.finished_at) == (Phase.FAILED, at(0))
    assert condition(status, ConditionType.FAILED).reason == Reason.DATASET_INVALID
    assert condition(status, ConditionType.PROGRESSING).status == "False"
