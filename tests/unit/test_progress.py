"""The figures behind the progress display: time of arrival, and how often pages are read and progress is written."""

from __future__ import annotations

import pytest

from finetune_api import labels
from finetune_api.events import ProgressReport
from finetune_api.reasons import Reason
from finetune_operator import observed_state
from finetune_operator.progress import diagnose, eta, read_interval, write_interval
from finetune_operator.status import progress_of
from unit.observed import SETTINGS

TRAINING = ProgressReport(stage="train", activity="training", step=7)


def test_the_time_of_arrival_counts_steps_since_the_resume() -> None:
    """Resumed at step 5,000 of 6,000 with one step a second, 1,000 s are left, whatever came before."""
    assert eta([(100.0, 5000), (110.0, 5010)], total=6000, now=110.0) == 990


def test_the_time_of_arrival_runs_down_between_two_steps() -> None:
    """With a step every 60 s, half a minute after a step half a minute is gone."""
    assert eta([(0.0, 1), (60.0, 2)], total=4, now=90.0) == 90


@pytest.mark.parametrize("samples", [[], [(0.0, 10)]])
def test_there_is_no_time_of_arrival_before_two_steps(samples: list[tuple[float, int]]) -> None:
    """One point is no rate: nothing is said rather than something wrong."""
    assert eta(samples, total=100, now=5.0) is None


def test_the_time_of_arrival_is_never_negative() -> None:
    """A last step that takes long is due now."""
    assert eta([(0.0, 98), (1.0, 99)], total=100, now=50.0) == 0


def test_pages_are_read_at_a_rate_that_all_jobs_share() -> None:
    """Few jobs are read every two seconds; a thousand together not more than fifty pages a second."""
    assert read_interval(1, 2) == 2
    assert 1000 / read_interval(1000, 2) <= 50


@pytest.mark.parametrize("jobs", [1, 1000, 3000, 5000, 20000])
def test_two_lost_pages_are_no_silence_and_a_limit_is_kept_where_it_can_be(jobs: int) -> None:
    """With many jobs a page is read more rarely than the limit allows: then the limit gives way."""
    interval = read_interval(jobs, SETTINGS.progress_seconds)

    def said(silent_for: float) -> str:
        health = diagnose(TRAINING, silent_for, 0, interval, SETTINGS)
        return health.reason if health else ""

    assert said(min(3 * interval, SETTINGS.silent_after)) == said(2 * interval + 1) == ""
    assert said(max(3 * interval, SETTINGS.silent_after) + 1) == Reason.NO_REPORTS
    assert said(SETTINGS.silent_after + 1) == (Reason.NO_REPORTS if jobs <= 1000 else "")


def test_a_run_stands_still_as_far_as_its_pages_show() -> None:
    """Ten minutes at one step, or three pages that say the same where pages are rarer; only while it trains."""
    assert diagnose(TRAINING, 0, SETTINGS.stalled_after, 2, SETTINGS) is None
    stalled = diagnose(TRAINING, 0, SETTINGS.stalled_after + 1, 2, SETTINGS)
    assert stalled is not None
    assert (stalled.reason, stalled.message) == (Reason.STALLED, "at step 7 for 600 seconds")
    assert diagnose(TRAINING, 0, 1000, 400, SETTINGS) is None
    assert diagnose(TRAINING.model_copy(update={"activity": "saving"}), 0, 7000, 2, SETTINGS) is None


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ([{"name": "progress", "containerPort": 9000}], 9000),
        ([{"name": "other", "containerPort": 1}], 0),
        (None, 0),
    ],
)
def test_the_port_of_the_page_is_what_the_pod_says(ports: list[dict[str, object]] | None, port: int) -> None:
    """Of the trainer's container, whatever else runs beside it."""
    sidecar = {"name": "sidecar", "ports": [{"name": "progress", "containerPort": 1}]}
    trainer = {"name": labels.CONTAINER} | ({"ports": ports} if ports else {})
    metadata = {"name": "a", "uid": "u", "labels": {labels.STAGE_LABEL: "train"}}

    assert observed_state.pod({"metadata": metadata, "spec": {"containers": [sidecar, trainer]}}).port == port


def test_progress_is_written_at_a_rate_that_all_jobs_share() -> None:
    """Few jobs every three seconds; from there every thirty, and never more than twenty writes a second in all."""
    assert write_interval(3) == 3
    assert write_interval(21) == 30
    assert 5000 / write_interval(5000) <= 20


def test_a_page_becomes_the_progress_that_is_shown() -> None:
    """Percent is rounded down: 100 % means done. What only training has is absent elsewhere."""
    train = progress_of(ProgressReport(stage="train", step=999, total_steps=1000, loss=1.23456789), 7, "t")
    assert (train.percent, train.eta_seconds, train.loss, train.checkpoint_step) == (99, 7, 1.2346, 0)
    prepare = progress_of(ProgressReport(stage="prepare", step=5), None, "t")
    assert (prepare.percent, prepare.epoch, prepare.checkpoint_step) == (None, None, None)
