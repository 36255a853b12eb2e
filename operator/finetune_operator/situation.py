"""What a decision about one job rests on, and what is often asked of it.

It decides nothing.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from finetune_api import labels
from finetune_api import status as api
from finetune_api.reasons import ConditionType
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.stages import StageName
from finetune_operator import manifests
from finetune_operator.attempts import History, last_known
from finetune_operator.diagnosis import Ending, ending
from finetune_operator.observed_state import Observed, Pod, StageJob, digest, moment, seconds_between, timestamp
from finetune_operator.pods import kueue_labels
from finetune_operator.settings import Settings
from finetune_operator.stages import TRAITS
from finetune_operator.status import Milestones, dependencies, is_true

Object = dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """All that a assessment rests on."""

    observed: Observed
    spec: FineTuneJobSpec
    reached: Milestones
    past: History
    settings: Settings
    now: datetime

    @property
    def stage(self) -> StageName:
        return self.reached.stage

    @property
    def job(self) -> StageJob | None:
        """The Kubernetes Job of the present stage."""
        return self.observed.jobs.get(self.stage)

    @property
    def newest(self) -> Pod | None:
        """The newest pod of the present stage's Kubernetes Job."""
        tries = self.observed.tries(self.stage)
        return tries[-1] if tries else None

    @cached_property
    def to_freeze(self) -> tuple[Object, api.PinnedRun]:
        """The run file as it would be frozen now, and what is pinned of it."""
        observed = self.observed
        run = manifests.frozen_run(observed.metadata, self.spec, self.settings, dependencies(observed))
        config_map = manifests.run_config_map(observed.metadata, run)
        return config_map, api.PinnedRun(digest=digest(manifests.run_text(config_map)), image=run.trainer_image)


def last_ending(observed: Observed, stage: StageName) -> Ending | None:
    """How the stage's newest pod ended; None while it has not."""
    tries = observed.tries(stage)
    return ending(tries[-1]) if tries else None


def seconds_left(seen: Situation) -> float | None:
    """Until the deadline; None without one. Ended attempts count by the status, so that a resume resets nothing."""
    if seen.spec.deadline_seconds is None:
        return None
    past = seen.past.usage.stage_seconds if seen.past.usage else 0
    present = sum(
        seconds_between(pod.running_since, last_known(pod, seen.observed, seen.now))
        for pod in seen.observed.pods
        if pod.is_running
    )
    return seen.spec.deadline_seconds - past - present


def seconds_held(pod: Pod, seen: Situation) -> float:
    """Seconds until a pod that outlives its trainer is ended; 0 for every other one."""
    if pod.termination is None or pod.is_over or pod.is_deleting:
        return 0
    ended = pod.termination.finished_at or timestamp(seen.now)
    return max(0.0, seen.settings.container_grace - (seen.now - moment(ended)).total_seconds())


def queue_of(seen: Situation) -> str | None:
    """The queue that admits the stage's Kubernetes Job; None: it needs no admission."""
    if seen.job is not None and seen.job.queue:
        return seen.job.queue
    if not TRAITS[seen.stage].is_training:
        return None
    return kueue_labels(seen.observed.metadata, seen.spec).get(labels.KUEUE_QUEUE_LABEL)


def pinned_run(observed: Observed) -> api.PinnedRun | None:
    """The run that stands in the status, or that an operator of before there were pins has begun; None: none has."""
    if observed.status.run is not None and observed.status.run.digest:
        return observed.status.run
    is_at_a_stage = observed.status.phase in {traits.phase for traits in TRAITS.values()}
    has_begun = bool(observed.jobs) or is_at_a_stage or has_run_a_pod(observed)
    if observed.run is None or not has_begun:
        return None
    return api.PinnedRun(digest=observed.run.digest, image=observed.run.image)


def has_run_a_pod(observed: Observed) -> bool:
    """Whether a pod of the job has run, by what nobody but the operator writes."""
    status = observed.status
    return bool(status.started_at or status.attempts or is_true(status, ConditionType.PREPARED))


def is_under_way(observed: Observed) -> bool:
    """Whether anything was made of the frozen run: then its file was there before, as it is made first."""
    return bool(has_run_a_pod(observed) or observed.jobs or observed.replaced or observed.pods or observed.workspace)
