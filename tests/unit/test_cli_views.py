"""What people see of a job: figures, live progress, the summary of a run, the table of jobs, the description of one."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console, RenderableType

from finetune_api.events import ProgressReport
from finetune_api.reasons import NEXT_STEP, Reason
from finetune_api.status import Artifact, Data, EvaluationResult, Plan, Sample
from finetune_cli.stored import StoredJob, stored_job
from finetune_cli.views import formatting, job_table, summary
from finetune_cli.views.description import description as described
from finetune_cli.views.progress_display import Bar, Lines, Pace, description, display

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


def text(*renderables: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(*renderables)
    return console.file.getvalue()  # type: ignore[attr-defined]


def a_body(name: str = "bot", **status: Any) -> dict[str, Any]:
    """An object as the API server returns it."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "team", "uid": "u", "creationTimestamp": "2026-01-02T11:00:00Z"},
        "spec": {
            "model": {"uri": "hf://org/model"},
            "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
            "output": {"uri": "pvc://models/bot"},
        },
        "status": status,
    }


def a_job(name: str = "bot", **status: Any) -> StoredJob:
    return stored_job(a_body(name, **status))


TRAINING = {"stage": "train", "step": 12, "totalSteps": 120, "percent": 10, "loss": 2.3141, "tokensPerSecond": 1234.5,
            "etaSeconds": 80}  # fmt: skip
FAILED = {"type": "Failed", "status": "True", "reason": "DatasetInvalid", "message": "train.jsonl:70001: not JSON",
          "lastTransitionTime": "2026-01-02T11:59:00Z"}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(None, "–"), (-1, "0 s"), (45.4, "45 s"), (200, "3 m 20 s"), (7500, "2 h 05 m"), (273600, "3 d 04 h")],
)
def test_durations_have_two_units(seconds: float | None, written: str) -> None:
    """Precise enough, and never longer than a column."""
    assert formatting.duration(seconds) == written


@pytest.mark.parametrize(
    ("number", "written"),
    [(None, "–"), (0, "0"), (950, "950"), (999.6, "1.0 k"), (12345, "12.3 k"), (134.5e6, "134 M")],
)
def test_counts_are_scaled(number: float | None, written: str) -> None:
    """Three digits and a letter."""
    assert formatting.count(number) == written


def test_bytes_have_their_unit() -> None:
    """Decimal, as storage is sold."""
    assert formatting.size(210_000) == "210 kB"


def test_progress_is_one_line() -> None:
    """Step, losses, rate and time left; the activity where it is not training."""
    report = ProgressReport(
        stage="train",
        activity="training",
        step=12,
        total_steps=120,
        loss=2.31412,
        eval_loss=2.4,
        tokens_per_second=1234,
    )

    assert description(report, 80) == "12/120 · loss 2.314 · eval 2.4 · 1.2 k tokens/s · 1 m 20 s left"
    assert description(ProgressReport(stage="prepare", activity="reading", step=7), None) == "reading · 7"


def test_time_left_counts_from_the_first_step_of_this_process() -> None:
    """After a resume at step 100, the 100 steps of earlier processes and the start are not counted."""
    pace = Pace()
    loading = ProgressReport(stage="train", activity="loading", step=0, total_steps=200)
    at = [ProgressReport(stage="train", activity="training", step=step, total_steps=200) for step in (100, 110)]

    assert pace.seconds_left(loading, 0) is None
    assert pace.seconds_left(at[0], 50) is None
    assert pace.seconds_left(at[1], 70) == pytest.approx(180)


def test_lines_come_only_with_news() -> None:
    """Without a terminal: a line when the activity changes, every tenth of the work, and every quarter of a minute."""
    console = Console(file=io.StringIO(), width=120)
    with Lines(console, "train") as shown:
        for step, now in [(0, 0), (1, 1), (9, 2), (10, 3), (11, 4), (12, 20)]:
            shown.show(ProgressReport(stage="train", activity="training", step=step, total_steps=100), now)
        shown.show(ProgressReport(stage="train", activity="done", step=100, total_steps=100), 30)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]

    assert [line.split(" ")[1] for line in lines] == ["0/100", "10/100", "12/100"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets lines, and so does a terminal that cannot go back."""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with display(terminal, "train") as shown:
        assert isinstance(shown, Bar)
        shown.show(ProgressReport(stage="train", activity="training", step=5, total_steps=10, loss=1.5), 1)

    assert "5/10 · loss 1.5" in terminal.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(display(Console(file=io.StringIO()), "train"), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display(Console(file=io.StringIO(), force_terminal=True), "train"), Lines)


def test_results_show_before_and_after() -> None:
    """Only metrics that were measured have a row; those that another release measures have one too."""
    base, tuned = {"loss": 2.5, "accuracy": 0.25}, {"bleu": 31.25, "accuracy": 0.9, "loss": 1.25}
    shown = text(summary.results(EvaluationResult(base=base, tuned=tuned)))

    assert [line.split() for line in shown.splitlines()] == [
        ["held-out", "(test)", "before", "after"],
        ["loss", "2.5", "1.25"],
        ["accuracy", "25.0", "%", "90.0", "%"],
        ["bleu", "–", "31.25"],
    ]


def test_answers_are_never_markup() -> None:
    """A model may answer anything, brackets included."""
    shown = text(summary.answers(Sample(prompt="p", before="[red]b[/red]", after="x" * 400)))

    assert "[red]b[/red]" in shown
    assert "…" in shown


def test_data_and_plan_are_a_line_each() -> None:
    """The numbers that tell whether the run is what was meant."""
    data = Data(train_examples=2839, validation_examples=59, tokens=412_345, truncated=3, dropped=0)
    plan = Plan(total_parameters=135_400_000, trainable_parameters=921_600, total_steps=30, micro_batch_size=8,
                gradient_accumulation=2, learning_rate=2e-4)  # fmt: skip

    assert summary.data_line(data) == "2,839 train and 59 validation records, 412 k tokens; 3 cut"
    assert summary.plan_line(plan) == (
        "922 k of 135 M parameters are trainable (0.7 %), 30 steps of 8 × 2 records, learning rate 0.0002"
    )
    told = plan.model_copy(update={"precision": "fp32", "precision_basis": "AMD EPYC has no amx_bf16"})
    assert summary.plan_line(told).endswith("learning rate 0.0002, fp32 (AMD EPYC has no amx_bf16)")
    assert summary.data_line(Data()) == "no records"
    assert summary.plan_line(Plan()) == ""
    assert summary.plan_line(plan.model_copy(update={"total_steps": 0})) == (
        "922 k of 135 M parameters are the adapter's (0.7 %); nothing is trained"
    )


@pytest.mark.parametrize("reason", list(NEXT_STEP))
def test_every_failure_ends_with_the_next_step(reason: Reason) -> None:
    """Once: also when the message says it already."""
    step = NEXT_STEP[reason]

    for message in ("why", f"why. {step}"):
        shown = " ".join(text(summary.failure("failed", message, reason)).split())
        assert shown.count(step.split(":")[0]) == 1


def test_the_table_has_a_line_a_job() -> None:
    """Running jobs first; a job that no operator has seen says so."""
    jobs = [a_job("old", phase="Succeeded"), a_job("new"), a_job("busy", phase="Training", progress=TRAINING)]
    lines = text(job_table.table(jobs, NOW)).splitlines()

    assert [line.split()[0] for line in lines[1:]] == ["busy", "new", "old"]
    assert "10 %" in lines[1]
    assert all(figure in lines[1] for figure in ("2.314", "1.2 k", "1 m 20 s", "1 h 00 m"))
    assert "not seen by an operator yet" in lines[2]
    assert "team" in text(job_table.table(jobs, NOW, all_namespaces=True))


def test_a_line_says_the_same_without_a_terminal() -> None:
    """One job, one line, and no figures of a run that is over."""
    assert job_table.line(a_job(phase="Training", progress=TRAINING)) == (
        "bot: Training, train, 12/120 (10 %), loss 2.314, 1.2 k tokens/s, 1 m 20 s left"
    )
    assert job_table.line(a_job(phase="Succeeded", progress=TRAINING)) == "bot: Succeeded"


def test_time_that_passes_is_no_news() -> None:
    """A step is worth a line, another estimate of the time left is not."""
    job, later = (a_job(phase="Training", progress=TRAINING | {"etaSeconds": seconds}) for seconds in (80, 79))
    stepped = a_job(phase="Training", progress=TRAINING | {"step": 13})

    assert job_table.news(later) == job_table.news(job)
    assert job_table.news(stepped) != job_table.news(job)


def test_the_description_of_a_failed_job_tells_why_and_what_next() -> None:
    """Reason, message and the next step stand above the conditions."""
    shown = text(described(a_job(phase="Failed", conditions=[FAILED]), NOW))

    assert "failed: DatasetInvalid" in shown
    assert "train.jsonl:70001: not JSON" in shown
    assert NEXT_STEP[Reason.DATASET_INVALID] in shown


def test_the_description_of_a_finished_job_has_the_result() -> None:
    """Spec in short, records, metrics, attempts, artifact and digest."""
    shown = text(
        described(
            a_job(
                phase="Succeeded",
                data={"trainExamples": 10},
                evaluation={"split": "test", "base": {"loss": 2.5}, "tuned": {"loss": 1.25}},
                attempts=[{"number": 1, "pod": "bot-u-train-x", "fromStep": 0, "toStep": 120, "reason": "Succeeded"}],
                artifact=Artifact(uri="pvc://models/bot", digest="sha256:abc", size_bytes=5, kind="adapter").to_wire(),
                usage={"activeSeconds": 100, "gpuSeconds": 100},
            ),
            NOW,
        )
    )

    for part in (
        "sft with lora, 1 × nvidia.com/gpu",
        "10 train records",
        "sha256:abc",
        "0 → 120",
        "1 m 40 s of GPU",
        "1.25",
    ):
        assert part in shown


def test_the_description_tells_where_a_job_stands() -> None:
    """The pinned image, the Kubernetes Job by its name and number, the tries, and the pods of the CPU stages."""
    stage = {
        "name": "publish",
        "number": 2,
        "tries": 1,
        "attempts": [{"number": 1, "pod": "p-x", "reason": "Retrying"}],
    }
    shown = text(
        described(
            a_job(
                phase="Publishing",
                run={"digest": "sha256:abc", "image": "trainer:1"},
                stage=stage,
                limits={"retryLimit": 3},
                attempts=[{"number": 1, "pod": "t-x", "toStep": 120, "reason": "Succeeded"}],
            ),
            NOW,
        )
    )

    for part in ("trainer:1, pinned", "publish, Kubernetes Job bot-u-publish-2, 1 of 4 tries failed", "bot-u-workspace",
                 "train 1", "publish 1"):  # fmt: skip
        assert part in shown


@pytest.mark.parametrize(("phase", "kept"), [("Failed", True), ("Succeeded", False)])
def test_the_description_says_which_claim_is_kept(phase: str, kept: bool) -> None:
    """After a failure it outlives the job, and takes a command to be rid of."""
    shown = text(described(a_job(phase=phase, run={"digest": "sha256:abc"}), NOW))

    assert ("kubectl delete pvc -n team bot-u-workspace" in shown) == kept


def test_the_description_of_a_job_that_waits_tells_what_to_do() -> None:
    """As that of one that has failed; and what is said for other tools is not said again."""
    waits = {"type": "Progressing", "status": "False", "reason": "QuotaExceeded", "message": "exceeded quota",
             "lastTransitionTime": "2026-01-02T11:59:00Z"}  # fmt: skip
    ready = {**waits, "type": "Ready"}
    job = a_job(phase="Waiting", conditions=[waits, ready])
    shown = text(described(job, NOW))

    assert "! QuotaExceeded" in shown
    assert NEXT_STEP[Reason.QUOTA_EXCEEDED] in " ".join(shown.split())
    assert "Ready" not in shown
    assert job_table.line(job) == "bot: Waiting, QuotaExceeded"
    assert "Waiting, QuotaExceeded" in text(job_table.table([job], NOW))


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"method": {"novel": {}}}, "what is set is not known here"),
        ({"objective": {"novel": {}}}, "what is set is not known here"),
        ({"training": {"precision": "fp4"}}, "spec.training.precision"),
        ({"model": None}, "spec.model"),
    ],
)
def test_a_spec_that_cannot_be_read_is_no_traceback(spec: dict[str, Any], problem: str) -> None:
    """What another release wrote is named, and the status is shown all the same."""
    body = a_body(phase="Training", progress=TRAINING)
    body["spec"] |= spec
    shown = text(described(stored_job(body), NOW))

    assert "cannot be read" in shown
    assert problem.split()[0] in shown
    assert "train, 12/120 (10 %)" in shown


def test_fields_of_a_newer_release_are_left_out() -> None:
    """In the spec, in the status, and in a part of it."""
    body = a_body(phase="Training", novel=1, progress=TRAINING | {"novel": 1}, plan="text")
    body["spec"]["novel"] = {}
    body["spec"]["training"] = {"novel": 1}

    assert "12/120" in text(described(stored_job(body), NOW))
