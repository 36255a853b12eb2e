"""What is done about a job: pure decisions, first one by one, then as laws that hold in a random world.

The world below holds what an API server, the Job controller and a kubelet would. A state machine does to it what people
and clusters do, lets the planner decide, and checks after each decision the laws that keep runs safe.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from finetune_api import status as api
from finetune_api.labels import stage_job_name
from finetune_api.reasons import ConditionType, Phase, Reason
from finetune_api.run import Run
from finetune_api.spec.job_spec import read_spec
from finetune_api.stages import STAGES, StageName
from finetune_api.status import Artifact, Attempt, Condition, Dependency, FineTuneJobStatus, Usage
from finetune_operator.observed_state import (
    Claim,
    NamedJob,
    Observed,
    Pod,
    RunFile,
    StageJob,
    Termination,
    digest,
    named_job,
    timestamp,
)
from finetune_operator.plan import Plan, plan
from finetune_operator.status import KSTATUS, brought_back, condition, is_final, present_stage
from unit.observed import METADATA, NOW, SETTINGS, UID, at, ended, observed, pod, running, spec, stage_job

ARTIFACT = json.dumps({"stage": "publish", "artifact": {"uri": "pvc://models/support-bot", "digest": "sha256:abc"}})


def decide(seen: Observed, seconds: float = 0) -> Plan:
    return plan(seen, SETTINGS, NOW + timedelta(seconds=seconds))


def after(seen: Observed, seconds: float = 0) -> FineTuneJobStatus:
    """The status that is decided upon."""
    status = decide(seen, seconds).status
    assert status is not None
    return status


def kinds(decided: Plan) -> list[str]:
    return [f"{one['kind']} {one['metadata']['name']}" for one in decided.create]


def reason(status: FineTuneJobStatus) -> str:
    return next(one.reason for one in status.conditions if one.type == "Progressing")


def test_a_new_job_gets_its_run_its_workspace_and_its_first_job() -> None:
    """In this order: what a pod needs is there before the pod."""
    decided = decide(observed(started=False))
    prefix = "support-bot-0a1b2"
    assert kinds(decided) == [
        f"ConfigMap {prefix}-run",
        f"PersistentVolumeClaim {prefix}-workspace",
        f"Job {prefix}-prepare",
    ]
    assert decided.status is not None
    assert decided.status.phase == Phase.PREPARING


START = {"lora": {"startFrom": {"adapters": [{"uri": "job://first", "weight": 0.5}, {"uri": "job://second"}]}}}
MODEL = Artifact(uri="pvc://models/second", digest="sha256:abc", kind="model")
DONE = Artifact(uri="pvc://models/first", digest="sha256:abc", kind="adapter")


def with_jobs(*jobs: NamedJob) -> Observed:
    """A new job that starts from what `first` and `second` publish, and what is known of other jobs."""
    return observed(started=False, spec=spec(method=START), named_jobs={job.name: job for job in jobs})


def test_a_job_makes_nothing_until_all_that_it_names_have_succeeded() -> None:
    """It says which one it waits for, and whether that exists."""
    for jobs, told in (
        ([NamedJob("first"), NamedJob("second")], "waiting for the FineTuneJob first."),
        ([NamedJob("first", True, artifact=DONE)], "waiting for the FineTuneJob second, which does not exist yet."),
    ):
        decided = decide(with_jobs(*jobs))
        assert decided.create == ()
        assert decided.status is not None
        assert decided.status.phase == Phase.WAITING
        assert reason(decided.status) == Reason.WAITING_FOR_JOB
        assert told in decided.status.conditions[-1].message
        assert [(event.type, event.reason) for event in decided.events] == [("Normal", Reason.WAITING_FOR_JOB)]


def test_the_frozen_run_names_artifacts_and_is_never_asked_again() -> None:
    """Once frozen, it does not matter what becomes of the other jobs."""
    other = Artifact(uri="pvc://other/second", digest="sha256:def", kind="adapter")
    seen = with_jobs(NamedJob("first", True, artifact=DONE), NamedJob("second", True, artifact=other))
    first = decide(seen)
    text = first.create[0]["data"]["run.json"]
    run = Run.model_validate_json(text)
    assert [adapter.uri for adapter in run.spec.method.options.adapters] == ["pvc://models/first", "pvc://other/second"]
    assert {"pvc://models", "pvc://other"} <= set(run.mounts)
    assert first.status is not None
    later = replace(seen, status=first.status, run=RunFile(digest(text)), named_jobs={})
    later = replace(later, workspace=Claim("workspace", "uid"))
    assert reason(after(later)) == Reason.PREPARING


def test_what_a_named_job_has_published_is_pinned_when_it_is_first_seen_complete() -> None:
    """Its time to live may end while the other one is still waited for; a later one of that name is another."""
    waiting = after(with_jobs(NamedJob("first", True, artifact=DONE), NamedJob("second")))
    (pin,) = waiting.dependencies
    assert (pin.name, pin.uri, pin.digest) == ("first", DONE.uri, DONE.digest)
    other = Artifact(uri="pvc://other/second", digest="sha256:def", kind="adapter")
    seen = replace(with_jobs(NamedJob("second", True, artifact=other)), status=waiting)
    run = Run.model_validate_json(decide(seen).create[0]["data"]["run.json"])
    assert [adapter.uri for adapter in run.spec.method.options.adapters] == ["pvc://models/first", "pvc://other/second"]


def test_only_a_uri_names_a_job() -> None:
    """The same words in a prompt, or as the value of a variable, are somebody's text: nothing is waited for."""
    words = {"prompts": ["job://other", "job://"]}
    env = [{"name": "A", "value": "job://"}]
    decided = decide(observed(started=False, spec=spec(evaluation=words, podTemplate={"env": env})))
    assert kinds(decided)[-1].startswith("Job ")


@pytest.mark.parametrize("uri", ["pvc://payroll/q3", "no URI", "job://", None])
def test_a_named_jobs_artifact_is_where_its_own_spec_says(uri: str | None) -> None:
    """What its status says comes from a pod; a claim that its author never named is not mounted for another job."""
    conditions = [Condition(type=ConditionType.COMPLETE, status="True", reason="", last_transition_time=at(0))]
    told = FineTuneJobStatus(
        phase="Succeeded", conditions=conditions, artifact=Artifact(uri=uri, digest="sha256:abc", kind="adapter")
    )
    honest = told.model_copy(update={"artifact": DONE})
    other = spec(output={"uri": DONE.uri})
    trusted = named_job("second", other, honest)
    assert decide(with_jobs(trusted, named_job("first", other, honest))).create != ()

    status = after(with_jobs(trusted, named_job("first", other, told)))

    assert (status.phase, reason(status)) == (Phase.FAILED, Reason.BAD_SPEC)
    assert "job://first: that job published nothing" in status.conditions[-1].message


def test_a_named_job_whose_spec_cannot_be_read_is_waited_for() -> None:
    """Where it publishes stands there and nowhere else."""
    conditions = [Condition(type=ConditionType.COMPLETE, status="True", reason="", last_transition_time=at(0))]
    other = named_job("first", None, FineTuneJobStatus(phase="Succeeded", conditions=conditions, artifact=DONE))
    assert reason(after(with_jobs(other))) == Reason.WAITING_FOR_JOB


def test_a_pin_that_is_no_uri_is_made_anew() -> None:
    """It comes from a status that another release wrote."""
    strange = FineTuneJobStatus(dependencies=[Dependency(name="first", uri="no URI")])
    seen = with_jobs(*(NamedJob(name, True, artifact=DONE) for name in ("first", "second")))
    assert [one.uri for one in after(replace(seen, status=strange)).dependencies] == [DONE.uri] * 2


@pytest.mark.parametrize("uri", ["pvc://payroll/q3", "no URI", None])
def test_a_pod_that_names_another_place_has_published_nothing(uri: str | None) -> None:
    """The artifact is at spec.output.uri, or there is none: other jobs mount what stands in the status."""
    word = json.dumps({"stage": "publish", "artifact": {"uri": uri, "digest": "sha256:abc"}})
    jobs = [stage_job(stage, is_complete=True) for stage in STAGES]
    status = after(observed(*jobs, ended("publish", 0, message=word)))
    assert (status.phase, reason(status)) == (Phase.FAILED, Reason.ARTIFACT_INVALID)
    assert status.artifact is None
    assert "without a digest of pvc://models/support-bot" in status.conditions[-1].message


@pytest.mark.parametrize(
    ("jobs", "why", "told"),
    [
        ([NamedJob("second", failure="Diverged: the loss")], Reason.DEPENDENCY_FAILED, "second failed: Diverged: the"),
        (
            [NamedJob("second", True, artifact=Artifact(uri="pvc://a/b", kind="model"))],
            Reason.BAD_SPEC,
            "a model, where",
        ),
        ([NamedJob("first", True)], Reason.BAD_SPEC, "job://first: that job published nothing"),
        ([NamedJob("second", waits_for=("support-bot",))], Reason.BAD_SPEC, "second waits for this job"),
        (
            [NamedJob("second", waits_for=("third",)), NamedJob("third", waits_for=("third", "support-bot"))],
            Reason.BAD_SPEC,
            "second waits for this job",
        ),
    ],
    ids=["failed", "whole-model", "nothing", "circle", "longer-circle"],
)
def test_what_will_never_be_there_is_not_waited_for(jobs: list[NamedJob], why: Reason, told: str) -> None:
    """Whichever of the named jobs it is, and although another one has not come yet."""
    status = after(with_jobs(*jobs))
    assert (status.phase, reason(status)) == (Phase.FAILED, why)
    assert told in status.conditions[-1].message


def test_only_an_adapter_is_pinned() -> None:
    """A job that is brought back would start from whatever else the other one has published."""
    assert after(with_jobs(NamedJob("second", True, artifact=MODEL))).dependencies == []


def test_a_frozen_run_is_what_later_jobs_are_made_of() -> None:
    """Another operator image or default does not reach a run that has begun."""
    seen = observed(stage_job("prepare", is_complete=True), ended("prepare", 0))
    assert seen.status.run is not None
    pin = seen.status.run.model_copy(update={"image": "old:1"})
    (train,) = decide(replace(seen, status=seen.status.model_copy(update={"run": pin}))).create
    assert train["spec"]["template"]["spec"]["containers"][0]["image"] == "old:1"


def test_nothing_is_made_while_an_old_pod_is_alive() -> None:
    """Two pods never share a workspace."""
    leftover = running("train", is_deleting=True)
    seen = observed(leftover, status=FineTuneJobStatus(phase="Training"))
    assert decide(seen).create == ()
    assert f"waiting for {leftover.name}" in next(
        one.message for one in after(seen).conditions if one.type == "Progressing"
    )


def test_a_suspended_job_loses_its_kubernetes_job_and_waits_for_the_pod() -> None:
    """First Suspending, then Suspended: only then is the GPU free."""
    seen = observed(stage_job("prepare"), running("prepare"), spec=spec(suspend=True))
    assert [job.stage for job in decide(seen).delete] == ["prepare"]
    assert reason(after(seen)) == Reason.SUSPENDING
    gone = observed(spec=spec(suspend=True), status=after(seen))
    assert decide(gone).delete == ()
    assert reason(after(gone)) == Reason.SUSPENDED


def test_a_stage_that_is_complete_is_not_deleted_by_a_suspension() -> None:
    """Its result counts; the next stage waits for the resume."""
    seen = observed(stage_job("prepare", is_complete=True), ended("prepare", 0), spec=spec(suspend=True))
    assert (decide(seen).delete, decide(seen).create) == ((), ())
    assert present_stage(after(seen)) == ("train", 1)


def test_the_deadline_adds_up_attempts() -> None:
    """60 s of an earlier attempt and 30 s of this one are 90."""
    earlier = Attempt(number=1, pod="old", started_at=at(-500), finished_at=at(-440))
    old = FineTuneJobStatus(phase="Training", attempts=[earlier], usage=Usage(active_seconds=60))
    seen = observed(stage_job("train"), running("train", since=0), status=old, spec=spec(deadlineSeconds=100))
    seen = replace(seen, status=after(replace(seen, jobs={"prepare": stage_job("prepare", is_complete=True)})))
    assert after(seen, 30).phase != Phase.FAILED
    assert decide(seen, 30).requeue_after == 10.1
    failed = decide(seen, 41)
    assert failed.status is not None
    assert (failed.status.phase, reason(failed.status)) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
    assert [job.stage for job in failed.delete] == ["train"]


def test_a_publish_whose_report_is_lost_runs_again_whatever_failed_before_it() -> None:
    """A first try that failed says nothing about the digest of the second, whose pod is gone."""
    jobs = [stage_job("prepare", is_complete=True), stage_job("train", is_complete=True)]
    decided = decide(observed(*jobs, stage_job("publish", is_complete=True), ended("publish", 73)))
    assert [job.stage for job in decided.delete] == ["publish"]
    assert decided.status is not None
    assert reason(decided.status) == Reason.RETRYING


def test_a_publish_whose_pod_seems_to_run_is_not_repeated() -> None:
    """The pods were read before the Kubernetes Job, and its report is on the way."""
    jobs = [stage_job("prepare", is_complete=True), stage_job("train", is_complete=True)]
    decided = decide(observed(*jobs, stage_job("publish", is_complete=True), running("publish")))
    assert decided.delete == ()
    assert decided.status is not None
    assert reason(decided.status) == Reason.PUBLISHING


@pytest.mark.parametrize(
    ("best", "message"), [(None, "24 steps"), (24, "24 steps"), (12, "the weights of step 12 of 24 are kept")]
)
def test_trained_says_which_weights_are_kept(best: int | None, message: str) -> None:
    """A run that stopped early has not made all its steps, and its last report is gone: no number is claimed."""
    wanted, evaluation = api.Plan(total_steps=24), api.EvaluationResult(best_step=best)
    trained = Condition(type="Trained", status="True", reason="Trained", last_transition_time=at(0))
    seen = observed(
        status=FineTuneJobStatus(conditions=[trained], plan=wanted, evaluation=evaluation, phase="Publishing")
    )
    assert condition(after(seen), ConditionType.TRAINED).message == message


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"method": {"novel": {}}}, "spec.method"),
        ({"objective": {"novel": {}}}, "spec.objective"),
        ({"dataset": {"train": [{"uri": "pvc://a/b"}], "validation": {"novel": 1}}}, "spec.dataset.validation"),
        ({"training": {"optimizer": "novel"}}, "spec.training.optimizer"),
    ],
)
def test_a_spec_whose_choice_is_not_known_is_not_read_as_another(changes: dict[str, Any], place: str) -> None:
    """A member of a union, or a value, of a later release: nothing takes its place."""
    found, problem = read_spec(spec().to_wire() | changes)
    assert found is None
    assert place in problem


def test_a_job_that_kubernetes_fails_anyway_keeps_its_pods() -> None:
    """The container has ended and the pod not quite: deleted now, the Job would take the log along."""
    failing = replace(ended("train", 70), phase="Running")
    seen = observed(stage_job("prepare", is_complete=True), stage_job("train"), failing, spec=spec(retry={"limit": 0}))
    assert (decide(seen).delete, after(seen).phase) == ((), Phase.TRAINING)
    failed = replace(seen, jobs={**seen.jobs, "train": stage_job("train", failure="BackoffLimitExceeded")})
    assert (decide(failed).delete, after(failed).phase) == ((), Phase.FAILED)


def test_an_init_container_that_fails_each_time_ends_the_job_by_its_name() -> None:
    """Its Kubernetes Job is left to fail by itself, with the pods and their logs."""
    failed = {"phase": "Failed", "failures": (("vault-init", Termination(1, "Error", "no token")),)}
    pods = [pod("train", number, changed_at=at(number), **failed) for number in (1, 2)]
    jobs = {"prepare": stage_job("prepare", is_complete=True), "train": stage_job("train", limit=1)}
    seen = observed(*jobs.values(), *pods, spec=spec(retry={"limit": 1}))
    assert (decide(seen).delete, reason(after(seen))) == ((), Reason.POD_NOT_STARTING)
    status = after(replace(seen, jobs={**jobs, "train": stage_job("train", failure="BackoffLimitExceeded")}))
    assert (status.phase, reason(status)) == (Phase.FAILED, Reason.POD_NOT_STARTING)
    assert "container vault-init ended with exit code 1: no token (after 2 tries)" in status.conditions[-1].message


def test_an_edit_of_a_finished_job_is_acknowledged() -> None:
    """Tools compare generations: one that is never observed looks like work that never ends."""
    publish = [stage_job("publish", is_complete=True), ended("publish", 0, message=ARTIFACT)]
    done = after(observed(*publish, stage_job("prepare", is_complete=True), stage_job("train", is_complete=True)))
    seen = replace(observed(status=done), metadata=METADATA.model_copy(update={"generation": 5}))
    status = decide(seen).status
    assert status is not None
    assert status.observed_generation == 5
    assert decide(replace(seen, status=status)) == Plan()


@pytest.mark.parametrize("fails", [True, False])
def test_a_job_that_an_older_operator_ended_gets_the_conditions_of_kstatus(fails: bool) -> None:
    """Once: Flux and Argo CD would wait for it for ever."""
    jobs = [stage_job("prepare", is_complete=True), stage_job("train", is_complete=True)]
    publish = [stage_job("publish", is_complete=True), ended("publish", 0, message=ARTIFACT)]
    failed = [stage_job("publish", failure="BackoffLimitExceeded"), ended("publish", 65)]
    new = after(observed(*jobs, *(failed if fails else publish)))
    assert new.phase == (Phase.FAILED if fails else Phase.SUCCEEDED)
    old = new.model_copy(update={"conditions": [one for one in new.conditions if one.type not in KSTATUS]})
    seen = observed(status=old)
    status = after(seen)
    assert {(one.type, one.status) for one in status.conditions} == {(one.type, one.status) for one in new.conditions}
    assert decide(replace(seen, status=status)).status is None


def test_the_time_to_live_counts_from_the_end() -> None:
    """Before it the job is looked at again in time, after it the job goes; nothing else happens to a finished job."""
    publish = [stage_job("publish", is_complete=True), ended("publish", 0, message=ARTIFACT)]
    done = after(observed(*publish, stage_job("prepare", is_complete=True), stage_job("train", is_complete=True)))
    assert done.phase == Phase.SUCCEEDED
    seen = observed(status=done, spec=spec(ttlSecondsAfterFinished=60))
    assert decide(seen, 20).requeue_after == 40
    assert decide(seen, 60).expire
    assert decide(observed(status=done), 1e6) == Plan()


def test_a_kubernetes_job_that_waits_for_admission_is_queued() -> None:
    """Nothing is deleted, nothing is made: its `suspend` is Kueue's."""
    seen = observed(
        stage_job("prepare", is_complete=True),
        stage_job("train", is_suspended=True),
        spec=spec(scheduling={"queue": "q"}),
    )
    decided = decide(seen)
    assert (decided.create, decided.delete) == ((), ())
    assert after(seen).phase == Phase.QUEUED


def test_a_next_pod_that_is_refused_is_told_as_the_first_one_would_be() -> None:
    """The quota filled up, or a webhook went down, while the pod before it ran. It is looked at again and again."""
    words = "FailedCreate: Error creating: pods is forbidden: exceeded quota: team, requested: cpu=4"
    jobs = [stage_job("prepare", is_complete=True), stage_job("train", complaints=(words,), complained_at=at(62))]
    seen = observed(*jobs, ended("train", 70, end=60))
    assert (after(seen, 63).phase, reason(after(seen, 63))) == (Phase.WAITING, Reason.QUOTA_EXCEEDED)
    assert decide(seen, 63).requeue_after == 5.1
    assert decide(seen, 360).requeue_after == 60.1


def test_what_held_up_a_pod_that_was_made_then_is_over() -> None:
    """Its Job's Events stay for an hour, and say nothing about the pod after it."""
    words = "FailedCreate: Error creating: pods is forbidden: exceeded quota: team, requested: cpu=4"
    jobs = [stage_job("prepare", is_complete=True), stage_job("train", complaints=(words,), complained_at=at(-5))]
    assert reason(after(observed(*jobs, ended("train", 70, end=60)), 63)) == Reason.RETRYING


def test_an_event_is_told_once() -> None:
    """The same state seen again tells nothing."""
    seen = observed(stage_job("prepare", failure="PodFailurePolicy"), ended("prepare", 65))
    first = decide(seen)
    assert [event.reason for event in first.events] == [Reason.DATASET_INVALID]
    assert decide(replace(seen, status=after(seen))).events == ()


def test_lost_steps_and_wasted_gpu_time_are_counted() -> None:
    """Of 100 steps in 100 s, 25 were done again: a quarter of the GPU time was wasted."""
    killed = json.dumps({"stage": "train", "progress": {"stage": "train", "step": 100, "checkpointStep": 75}})
    resumed = json.dumps({"stage": "train", "progress": {"stage": "train", "resumedFromStep": 75, "step": 200}})
    seen = observed(
        stage_job("prepare", is_complete=True),
        stage_job("train", is_complete=True),
        ended("train", 75, 1, 0, 100, message=killed, disruption="drained"),
        ended("train", 0, 2, 150, 300, message=resumed),
    )
    status = after(seen)
    assert status.recovery is not None
    assert status.usage is not None
    assert (status.recovery.restarts, status.recovery.steps_lost) == (1, 25)
    assert (status.usage.gpu_seconds, status.usage.wasted_gpu_seconds) == (250, 25)


class World(RuleBasedStateMachine):
    """A cluster in which things happen in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.spec = spec(retry={"limit": 2})
        self.status = FineTuneJobStatus()
        self.run: RunFile | None = None
        self.workspace: Claim | None = None
        self.jobs: dict[str, StageJob] = {}
        self.pods: list[Pod] = []
        self.numbers = 0

    def observe(self) -> Observed:
        """As the operator reads it: by the names that the status tells."""
        status = brought_back(self.spec, self.status)
        seen = status or self.status
        stage, number = present_stage(seen)
        job = self.jobs.get(stage_job_name(METADATA.name, UID, stage, number))
        before = self.jobs.get(stage_job_name(METADATA.name, UID, stage, number - 1)) if number > 1 else None
        return Observed(
            METADATA,
            self.spec,
            seen,
            stored=self.status if status else None,
            run=self.run,
            workspace=self.workspace,
            jobs={stage: job} if job else {},
            replaced=before,
            pods=tuple(self.pods),
        )

    def act(self) -> None:
        """One reconcile: decide, and do what was decided. An end stays one, unless a limit was raised."""
        has_ended = is_final(self.status) and brought_back(self.spec, self.status) is None
        decided = plan(self.observe(), SETTINGS, self.now)
        if has_ended:
            assert (decided.delete, decided.create, decided.status) == ((), (), None)
        for job in decided.delete:
            assert self.jobs[job.name].uid == job.uid
            self.remove(job)
        if decided.workspace is not None:
            assert self.workspace is not None
            self.workspace = None if decided.workspace == "delete" else replace(self.workspace, is_owned=False)
        for manifest in decided.create:
            self.create(manifest)
        if decided.status is not None:
            self.status = decided.status

    def remove(self, job: StageJob) -> None:
        """A deleted Kubernetes Job takes its pods along: at once, or when their containers have ended."""
        del self.jobs[job.name]
        self.pods = [replace(one, is_deleting=True) if one.owner == job.uid else one for one in self.pods]
        self.pods = [one for one in self.pods if not (one.is_deleting and (one.is_over or not one.running_since))]

    def create(self, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap":
            assert self.run is None
            self.run = RunFile(digest(manifest["data"]["run.json"]))
        elif manifest["kind"] == "PersistentVolumeClaim":
            assert self.workspace is None
            self.workspace = Claim(name, "uid")
        else:
            stage = manifest["metadata"]["labels"]["finetune.dev/stage"]
            assert all(one.stage != stage or one.is_finished for one in self.jobs.values()), "two Jobs of one stage"
            assert all(one.is_over for one in self.pods), "a Job beside a living pod"
            self.numbers += 1
            made = replace(stage_job(stage), name=name, uid=f"job-{self.numbers}", started_at=timestamp(self.now))
            self.jobs[name] = made

    def change(self, old: Pod, new: Pod) -> None:
        self.pods = [new if one is old else one for one in self.pods]

    def living(self) -> Pod | None:
        return next((one for one in self.pods if not one.is_over), None)

    @rule()
    def reconcile(self) -> None:
        self.act()

    @rule(steps=st.integers(1, 2))
    def go_on(self, steps: int) -> None:
        """For a while everything goes well: without it, chance would never reach the later stages."""
        for _ in range(steps):
            self.make_pod()
            self.start_pod()
            self.act()
            self.now += timedelta(seconds=1)
            self.end_pod(0)
            self.judge_jobs()
            self.act()

    @rule()
    def make_pod(self) -> None:
        """The Job controller makes the pod that an unfinished Job lacks."""
        for job in self.jobs.values():
            alive = [one for one in self.pods if one.owner == job.uid and not one.is_over]
            if not job.is_finished and not alive:
                self.numbers += 1
                made = pod(job.stage, self.numbers, is_scheduled=True)
                self.pods.append(replace(made, owner=job.uid, created_at=timestamp(self.now)))

    @rule()
    def start_pod(self) -> None:
        one = self.living()
        if one is not None and not one.running_since and not one.is_deleting:
            self.change(one, replace(one, phase="Running", running_since=timestamp(self.now)))

    @rule()
    def evict_pod(self) -> None:
        """Somebody wants the node: the pod is told to stop."""
        one = self.living()
        if one is not None:
            self.change(one, replace(one, disruption="drained", is_deleting=True))
            if not one.running_since:
                self.pods = [left for left in self.pods if left.name != one.name]

    @rule(code=st.sampled_from([0, 0, 0, 1, 65, 75, 137]))
    def end_pod(self, code: int) -> None:
        """The container ends; a pod that is being deleted then goes."""
        one = self.living()
        if one is None or not one.running_since:
            return
        message = ARTIFACT if one.stage == "publish" and code == 0 else ""
        termination = Termination(code, "", message, one.running_since, timestamp(self.now))
        over = replace(one, phase="Failed" if code else "Succeeded", termination=termination, running_since="")
        self.change(one, over)
        if one.is_deleting:
            self.pods = [left for left in self.pods if left is not over]

    @rule()
    def judge_jobs(self) -> None:
        """The Job controller sees how pods ended."""
        for name, job in self.jobs.items():
            codes = [one.termination.exit_code for one in self.pods if one.owner == job.uid and one.termination]
            if 0 in codes:
                self.jobs[name] = replace(job, is_complete=True)
            elif 65 in codes:
                self.jobs[name] = replace(job, failure="PodFailurePolicy")
            elif len([code for code in codes if code != 75]) > 2:
                self.jobs[name] = replace(job, failure="BackoffLimitExceeded")

    @rule(suspend=st.sampled_from([False, False, True]))
    def set_suspend(self, suspend: bool) -> None:
        self.spec = self.spec.model_copy(update={"suspend": suspend})

    @rule(deadline=st.sampled_from([None, 30, 3600]))
    def set_deadline(self, deadline: int | None) -> None:
        self.spec = self.spec.model_copy(update={"deadline_seconds": deadline})

    @rule(limit=st.sampled_from([0, 2]), zone=st.sampled_from(["a", "b"]))
    def edit(self, limit: int, zone: str) -> None:
        self.spec = spec(retry={"limit": limit}, scheduling={"nodeSelector": {"zone": zone}}).model_copy(
            update={name: getattr(self.spec, name) for name in ("suspend", "deadline_seconds", "restarts")}
        )

    @precondition(lambda self: self.status.phase == Phase.FAILED)
    @rule()
    def restart(self) -> None:
        """Somebody has mended what was wrong, and wants another try."""
        self.spec = self.spec.model_copy(update={"restarts": (self.spec.restarts or 0) + 1})

    @rule(seconds=st.integers(1, 20))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(stage=st.sampled_from(STAGES))
    def delete_a_child_by_hand(self, stage: StageName) -> None:
        for job in [one for one in self.jobs.values() if one.stage == stage]:
            self.remove(job)

    @precondition(lambda self: self.status.phase is not None)
    @invariant()
    def deciding_again_changes_nothing(self) -> None:
        """A few looks settle what one look set off; the next, with nothing new, does and writes nothing."""
        before = self.observe()
        again = World.__new__(World)
        again.__dict__ = {**self.__dict__, "jobs": dict(self.jobs), "pods": list(self.pods)}
        for _ in range(4):
            again.act()
        decided = plan(again.observe(), SETTINGS, self.now)
        assert (decided.create, decided.delete, decided.events) == ((), (), ())
        assert decided.status in (None, again.status)
        assert self.observe() == before

    @invariant()
    def an_end_says_what_it_is(self) -> None:
        """It has its time, and Succeeded has a digest."""
        if is_final(self.status):
            assert self.status.finished_at is not None
        if self.status.phase == Phase.SUCCEEDED:
            assert self.status.artifact is not None
            assert self.status.artifact.digest

    @invariant()
    def attempts_are_numbered_and_one_runs_at_most(self) -> None:
        numbers = [attempt.number for attempt in self.status.attempts]
        assert numbers == list(range(1, len(numbers) + 1))
        assert sum(attempt.finished_at is None for attempt in self.status.attempts) <= 1


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=60, deadline=None, derandomize=True)
