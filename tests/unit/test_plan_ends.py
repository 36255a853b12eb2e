"""How a try ends, what it counts, what brings a job on, and what is left behind: decisions about a job that trains."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.exits import ExitCode
from finetune_api.reasons import Phase, Reason
from finetune_api.status import Attempt, Condition, FineTuneJobStatus, Limits, Progress, StageStatus, Usage
from finetune_operator.observed_state import Claim, Observed, Pod, StageJob, Termination
from finetune_operator.plan import Plan, plan
from finetune_operator.status import brought_back
from unit.observed import NOW, SETTINGS, at, ended, observed, pod, running, spec, stage_job

PREPARED = Condition(type="Prepared", status="True", reason="Prepared", last_transition_time=at(-900))
DISK = "Pod ephemeral local storage usage exceeds the total limit of containers 5Gi. "
SPENT = "BackoffLimitExceeded"


def training(**fields: Any) -> FineTuneJobStatus:
    """The status of a job whose train stage is at work."""
    usual: dict[str, Any] = {
        "conditions": [PREPARED],
        "phase": "Training",
        "started_at": at(-900),
        "stage": StageStatus(name="train"),
        "limits": Limits(retry_limit=3),
    }
    return FineTuneJobStatus(**usual | fields)


def decide(*things: Pod | StageJob, seconds: float = 600, **fields: Any) -> Plan:
    return plan(seen(*things, **fields), SETTINGS, NOW + timedelta(seconds=seconds))


def seen(*things: Pod | StageJob, **fields: Any) -> Observed:
    facts = {name: fields.pop(name) for name in ("stored", "workspace", "replaced", "kept_job") if name in fields}
    fields.setdefault("status", training())
    return replace(observed(*things, **fields), **facts)


def assessment(decided: Plan) -> tuple[str | None, str, str]:
    """Phase, reason and message."""
    assert decided.status is not None
    found = next(one for one in decided.status.conditions if one.type == "Progressing")
    return decided.status.phase, found.reason, found.message


def stage(decided: Plan) -> StageStatus:
    assert decided.status is not None
    assert decided.status.stage is not None
    return decided.status.stage


@pytest.mark.parametrize("code", [ExitCode.STOPPED, ExitCode.TERMINATED])
def test_a_trainer_that_was_told_from_inside_is_followed_at_once(code: int) -> None:
    """Whoever told it: nobody deleted the pod, and the Job would wait for its back-off."""
    decided = decide(stage_job("train"), ended("train", code))
    assert [job.stage for job in decided.delete] == ["train"]
    assert (stage(decided).number, stage(decided).tries) == (2, 0)


@pytest.mark.parametrize(
    "end",
    [
        {"end_reason": "Evicted", "end_message": DISK},
        {"end_reason": "Evicted", "end_message": DISK, "termination": Termination(137, "ContainerStatusUnknown")},
        {"end_reason": "UnexpectedAdmissionError", "end_message": "Allocate failed: no healthy devices"},
        {"termination": Termination(137, "ContainerStatusUnknown")},
    ],
)
def test_a_pod_that_failed_without_a_start_time_counts_as_a_try(end: dict[str, Any]) -> None:
    """The kubelet often tells none: a loop without an end otherwise."""
    failed = pod("train", phase="Failed", changed_at=at(30), **end)
    listed = training(attempts=[Attempt(number=1, pod=failed.name, started_at=at(0))])
    for status in (training(), listed):
        decided = decide(stage_job("train", failure=SPENT), failed, status=status, spec=spec(retry={"limit": 0}))
        assert assessment(decided)[0] == Phase.FAILED
        assert stage(decided).tries == 1
        assert decided.status is not None
        assert decided.status.attempts[0].reason in (Reason.EVICTED, Reason.RETRYING)


def test_a_container_that_the_kubelet_lost_is_not_said_to_be_out_of_memory() -> None:
    failed = pod("train", phase="Failed", termination=Termination(137, "ContainerStatusUnknown"))
    assert "the kubelet lost the train container" in assessment(decide(stage_job("train"), failed))[2]


def test_a_pod_that_was_deleted_before_it_started_is_no_attempt() -> None:
    decided = decide(stage_job("train"), pod("train", gone_at=at(5)))
    assert decided.status is not None
    assert decided.status.attempts == []


def test_a_checkpoint_that_only_the_stored_progress_tells_of_counts() -> None:
    """The operator that read the page has been restarted."""
    page = Progress(stage="train", step=520, checkpoint_step=500, updated_at=at(50))
    status = training(progress=page, attempts=[Attempt(number=1, pod=pod("train").name, started_at=at(0))])
    killed = ended("train", 137, reason="OOMKilled")
    decided = decide(stage_job("train", failure=SPENT), killed, status=status, spec=spec(retry={"limit": 0}))
    assert (stage(decided).checkpoint_step, stage(decided).tries, stage(decided).number) == (500, 0, 2)


def test_an_older_page_is_no_progress_of_a_later_attempt() -> None:
    page = Progress(stage="train", step=520, checkpoint_step=500, updated_at=at(-50))
    decided = decide(stage_job("train"), ended("train", 70), status=training(progress=page))
    assert (stage(decided).checkpoint_step, stage(decided).tries) == (None, 1)


def test_a_page_of_train_is_no_progress_of_publish() -> None:
    """Both may fall into one second."""
    trained = Condition(type="Evaluated", status="True", reason="Evaluated", last_transition_time=at(0))
    page = Progress(stage="train", step=100, checkpoint_step=100, updated_at=at(0))
    status = training(conditions=[PREPARED, trained], stage=StageStatus(name="publish"), progress=page)
    decided = decide(stage_job("publish", failure=SPENT), ended("publish", 73), status=status)
    assert (stage(decided).checkpoint_step, stage(decided).tries) == (None, 1)


def test_hours_on_a_lost_node_are_neither_billed_nor_counted() -> None:
    page = Progress(stage="train", step=5, updated_at=at(-7000))
    lost = running("train", since=-7200, is_deleting=True, due=at(-6600), node="n1")
    status = training(progress=page, attempts=[Attempt(number=1, pod=lost.name, started_at=at(-7200))])
    waiting = decide(stage_job("train"), lost, status=status, spec=spec(deadlineSeconds=3600), seconds=0)
    assert assessment(waiting)[1] == Reason.NODE_LOST
    gone = replace(lost, gone_at=at(0), phase="Failed", disruption="its node is gone")
    after = decide(stage_job("train"), gone, status=status, seconds=0).status
    assert after is not None
    assert after.usage is not None
    assert (after.attempts[0].finished_at, after.usage.active_seconds) == (at(-7000), 200)


@pytest.mark.parametrize(("code", "failure"), [(70, SPENT), (66, "PodFailurePolicy")])
def test_a_restart_that_was_asked_for_before_the_failure_was_seen_is_one(code: int, failure: str) -> None:
    """The operator was down: the Job failed, somebody raised spec.restarts, the operator came back."""
    wanted = spec(retry={"limit": 0}, restarts=1)
    status = training(limits=Limits(retry_limit=0), stage=StageStatus(name="train", tries=1))
    decided = decide(stage_job("train", failure=failure), ended("train", code), status=status, spec=wanted)
    assert assessment(decided)[0] == Phase.TRAINING
    assert (stage(decided).number, stage(decided).tries) == (2, 0)
    assert decided.status is not None
    assert decided.status.limits is not None
    assert decided.status.limits.restarts == 1


def test_a_restart_stays_to_be_asked_for_while_nothing_can_be_made() -> None:
    """And is acted upon when the obstacle is gone."""
    decided = plan(replace(seen(spec=spec(restarts=1)), conflicts=("Job x",)), SETTINGS, NOW)
    assert decided.status is not None
    assert decided.status.limits is not None
    assert decided.status.limits.restarts == 0


def test_a_job_that_fails_although_more_was_asked_for_is_looked_at_again() -> None:
    """And then comes back: once."""
    wanted = spec(restarts=1, deadlineSeconds=10)
    first = decide(stage_job("train"), running("train", since=-60), spec=wanted)
    assert assessment(first)[1] == Reason.DEADLINE_EXCEEDED
    assert first.requeue_after is not None
    assert first.requeue_after < 1
    assert first.status is not None
    back = brought_back(wanted, first.status)
    assert back is not None
    second = decide(running("train", since=-60), spec=wanted, status=back, stored=first.status).status
    assert second is not None
    assert brought_back(wanted, second) is None


def test_lowering_restarts_on_a_failed_job_lets_it_be_raised_again() -> None:
    failed = Condition(type="Failed", status="True", reason="Diverged", last_transition_time=at(0))
    status = training(conditions=[failed], limits=Limits(restarts=5), observed_generation=0)
    lowered = decide(status=status).status
    assert lowered is not None
    assert brought_back(spec(restarts=1), lowered) is not None


def test_an_upgrade_brings_no_failed_job_back() -> None:
    """Before there were limits in the status nobody knows whether one was raised: what was used is always less."""
    for reason in ("DeadlineExceeded", "RetryLimitExceeded"):
        failed = Condition(type="Failed", status="True", reason=reason, last_transition_time=at(0))
        status = training(conditions=[failed], limits=None, usage=Usage(active_seconds=500))
        assert brought_back(spec(deadlineSeconds=600), status) is None
        assert brought_back(spec(deadlineSeconds=600, restarts=1), status) is not None


def test_a_job_whose_numbers_cannot_be_kept_fails_when_its_kubernetes_job_does() -> None:
    """The definition is older than the operator: nothing would ever add up to the limit."""
    status = training(stage=None, limits=None)
    assert assessment(decide(stage_job("train", failure=SPENT), ended("train", 70), status=status))[0] == Phase.FAILED
    assert assessment(decide(stage_job("train", failure=SPENT), ended("train", 70)))[0] == Phase.TRAINING


@pytest.mark.parametrize("queue", [{"scheduling": {"queue": "team"}}, {}])
def test_a_failed_kubernetes_job_without_pods_is_followed(queue: dict[str, Any]) -> None:
    """Its pods were cleaned up while nobody looked; with a queue, too."""
    assert decide(stage_job("train", failure=SPENT), spec=spec(**queue)).delete


def test_a_queue_that_only_the_kubernetes_job_names_keeps_it() -> None:
    """Kueue's own webhook puts its default there."""
    told = ended("train", ExitCode.STOPPED, disruption="drained")
    assert decide(stage_job("train"), told).delete
    assert not decide(stage_job("train", queue="default"), told).delete


def test_a_kubernetes_job_that_was_faster_than_its_replacement_has_done_the_stage() -> None:
    """It completed between the note that it is to be replaced and its deletion."""
    decided = decide(
        replaced=stage_job("train", is_complete=True), status=training(stage=StageStatus(name="train", number=2))
    )
    assert stage(decided).name == "publish"


def test_a_failure_for_good_beside_a_sidecar_is_one() -> None:
    """The Job controller looks at ended pods alone, and would try again what cannot succeed."""
    for code, phase in ((ExitCode.DIVERGED, Phase.FAILED), (70, Phase.TRAINING)):
        beside = replace(ended("train", code, others=("istio-proxy",)), phase="Running")
        assert assessment(decide(stage_job("train"), beside, seconds=61))[0] == phase


def test_a_stage_that_is_done_does_not_go_on_by_another_containers_failure() -> None:
    """The trainer succeeded, its pod failed: its Job would make another pod beside the next stage's."""
    failed = replace(ended("prepare", 0), phase="Failed")
    fresh = training(conditions=[], phase="Preparing", stage=StageStatus(name="prepare"))
    first = decide(stage_job("prepare"), failed, status=fresh)
    assert stage(first).name == "train"
    assert [job.stage for job in first.delete] == ["prepare"]
    assert first.create == ()
    second = decide(replace(running("prepare"), job="support-bot-prepare"))
    assert [job.name for job in second.delete] == ["support-bot-prepare"]


def test_a_pod_that_was_read_before_its_job_completed_is_left_alone() -> None:
    """Two reads are two moments: its logs would go with the Job."""
    decided = decide(stage_job("train", is_complete=True), running("train"))
    assert stage(decided).name == "publish"
    assert decided.delete == ()


def test_a_pod_that_no_job_owns_is_named_and_no_job_deleted_for_it() -> None:
    orphan = replace(ended("train", 0, others=("istio-proxy",)), phase="Running", owner="", job="")
    decided = decide(orphan)
    assert decided.delete == ()
    assert f"kubectl delete pod {orphan.name}" in assessment(decided)[2]


def test_a_pod_of_a_stage_that_is_not_known_here_is_waited_for() -> None:
    """A newer release made it, and it may write to the workspace."""
    other: Any = "distill"
    decided = decide(replace(running("train"), stage=other))
    assert decided.create == ()
    assert decided.delete == ()
    assert "to end" in assessment(decided)[2]


def test_no_end_is_told_while_a_job_may_not_be_deleted() -> None:
    """Its pod may hold a GPU."""
    refused = (Reason.POLICY_DENIED, "deleting the Kubernetes Job x: denied")
    decided = decide(
        stage_job("train"), running("train", since=-60), spec=spec(deadlineSeconds=10), kept_job=refused, seconds=0
    )
    assert assessment(decided)[:2] == (Phase.WAITING, Reason.POLICY_DENIED)
    assert decided.workspace is None
    assert decided.requeue_after is not None
    assert decided.requeue_after >= 5


def test_a_refused_child_is_tried_more_and_more_rarely() -> None:
    waits = []
    for age in (0, 10, 60, 600, 86400):
        since = Condition(type="Progressing", status="False", reason="PolicyDenied", last_transition_time=at(-age))
        refused = replace(seen(status=training(conditions=[PREPARED, since])), refusal=(Reason.POLICY_DENIED, "no"))
        waits.append(round(plan(refused, SETTINGS, NOW).requeue_after or 0))
    assert waits == [5, 5, 15, 60, 60]


@pytest.mark.parametrize("on_failure", ["Delete", "Retain"])
def test_a_failure_says_what_becomes_of_the_workspace(on_failure: str) -> None:
    """No advice to go on from what was deleted; and trying it ends with a word, not with waiting for ever."""
    kept = {"resources": {"workspace": {"reclaim": {"onFailure": on_failure}}}}
    job = seen(stage_job("train"), running("train", since=-60), spec=spec(deadlineSeconds=10, **kept))
    failed = plan(job, SETTINGS, NOW)
    assert ("spec.deadlineSeconds" in assessment(failed)[2]) == (on_failure == "Retain")
    assert ("goes with the failure" in assessment(failed)[2]) == (on_failure == "Delete")
    assert failed.workspace == ("delete" if on_failure == "Delete" else "let go")
    assert failed.status is not None
    raised = spec(deadlineSeconds=1000, **kept)
    back = brought_back(raised, failed.status)
    assert back is not None
    left = replace(job, spec=raised, status=back, stored=failed.status, workspace=None, jobs={}, pods=())
    assert assessment(plan(left, SETTINGS, NOW))[:2] == (Phase.FAILED, Reason.WORKSPACE_LOST)


def test_a_workspace_that_outlives_a_success_is_named() -> None:
    """It was let go by an earlier failure, and does not go with the job."""
    kept = spec(resources={"workspace": {"reclaim": {"onSuccess": "Retain"}}})
    told = '{"stage": "publish", "artifact": {"uri": "pvc://models/support-bot", "digest": "sha256:abc"}}'
    trained = Condition(type="Evaluated", status="True", reason="Evaluated", last_transition_time=at(0))
    status = training(conditions=[PREPARED, trained], stage=StageStatus(name="publish"))
    for is_owned in (True, False):
        decided = decide(
            stage_job("publish", is_complete=True),
            ended("publish", 0, message=told),
            status=status,
            spec=kept,
            workspace=Claim("workspace", "uid", is_owned=is_owned),
        )
        assert assessment(decided)[0] == Phase.SUCCEEDED
        assert ("kubectl delete pvc workspace" in assessment(decided)[2]) is not is_owned


def test_an_edit_of_reclaim_after_the_end_is_acted_upon() -> None:
    complete = Condition(type="Complete", status="True", reason="Succeeded", last_transition_time=at(0))
    status = training(conditions=[complete], phase="Succeeded", observed_generation=0)
    for on_success, fate in (("Delete", "delete"), ("Retain", None)):
        wanted = spec(resources={"workspace": {"reclaim": {"onSuccess": on_success}}})
        assert decide(status=status, spec=wanted).workspace == fate
