"""The figures behind the progress display: time of arrival, and how often pages are read and progress is written."""

from __future__ import annotations

import pytest

from finetune_api.events import ProgressReport
from finetune_operator.progress import eta, read_interval, write_interval
from finetune_operator.status import progress_of


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
