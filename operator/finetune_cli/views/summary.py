"""What came out of a job, as tables and lines: held-out results, answers before and after, data, plan, failure.

Pure: from the types of the contract to what rich can print. It knows neither cluster nor process.
"""

from collections.abc import Callable, Mapping

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from finetune_api.reasons import NEXT_STEP, Reason
from finetune_api.status import Artifact, Data, EvaluationResult, Metric, Plan, Sample
from finetune_cli.views import formatting
from finetune_cli.views.terminal import plain, plain_lines

ROWS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    Metric.LOSS: ("loss", formatting.loss),
    Metric.PERPLEXITY: ("perplexity", formatting.loss),
    Metric.ACCURACY: ("accuracy", formatting.share),
    Metric.MACRO_F1: ("macro-F1", formatting.share),
}
"""Metric → its name for people and how it is written. Those of another release follow under their own names."""
ANSWER_LIMIT = 300
"""Characters of an answer that are shown; the model card has all of it."""


def results(evaluation: EvaluationResult) -> Table:
    """Held-out metrics of the base model and of the tuned one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(plain(f"held-out ({evaluation.split or 'test'})"))
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    base, tuned = evaluation.base or {}, evaluation.tuned or {}
    for metric in dict.fromkeys((*ROWS, *sorted({*base, *tuned}))):
        name, written = ROWS.get(metric, (metric, formatting.loss))
        if metric in base or metric in tuned:
            table.add_row(plain(name), written(base.get(metric)), written(tuned.get(metric)))
    return table


def answers(sample: Sample) -> Table:
    """One prompt with the base model's answer and the tuned one's."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (("prompt", sample.prompt), ("before", sample.before), ("after", sample.after)):
        table.add_row(name, plain_lines(_shortened(text)))
    return table


def data_line(data: Data) -> str:
    """`2,839 train, 59 validation and 59 test records, 412.0 k tokens; 3 cut, 1 dropped, 7 duplicates`."""
    splits = (("train", data.train_examples), ("validation", data.validation_examples), ("test", data.test_examples))
    parts = [f"{number:,} {name}" for name, number in splits if number]
    counted = (("cut", data.truncated), ("dropped", data.dropped), ("duplicates", data.duplicates))
    flaws = [f"{number:,} {name}" for name, number in counted if number]
    tokens = f", {formatting.count(data.tokens)} tokens" if data.tokens else ""
    labels = f", {data.labels} labels" if data.labels else ""
    return f"{_listed(parts)} records{tokens}{labels}" + (f"; {', '.join(flaws)}" if flaws else "")


def plan_line(plan: Plan) -> str:
    """`0.9 M of 135.4 M parameters are trainable (0.7 %), 30 steps of 8 × 2 records, learning rate 0.0002`.

    Without a step: `0.9 M of 135.4 M parameters are the adapter's (0.7 %); nothing is trained`.
    """
    parts = []
    if plan.trainable_parameters and plan.total_parameters:
        trainable, total = plan.trainable_parameters, plan.total_parameters
        what = "the adapter's" if plan.total_steps == 0 else "trainable"
        counts = f"{formatting.count(trainable)} of {formatting.count(total)} parameters"
        parts.append(f"{counts} are {what} ({formatting.share(trainable / total)})")
    if plan.total_steps == 0:
        return "; ".join([*parts, "nothing is trained"])
    if plan.total_steps:
        batch = f" of {plan.micro_batch_size} × {plan.gradient_accumulation} records" if plan.micro_batch_size else ""
        parts.append(f"{plan.total_steps:,} steps{batch}")
    if plan.learning_rate:
        parts.append(f"learning rate {plan.learning_rate:g}")
    if plan.precision:
        parts.append(plan.precision + (f" ({plan.precision_basis})" if plan.precision_basis else ""))
    return ", ".join(parts)


def artifact_lines(artifact: Artifact) -> Table:
    """Where the result is and how to tell that it is the same."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("artifact", plain(f"{artifact.uri} ({artifact.kind}, {formatting.size(artifact.size_bytes)})"))
    table.add_row("digest", plain(artifact.digest or formatting.MISSING))
    return table


def failure(
    headline: str,
    message: str,
    reason: Reason | str | None,
    style: str = "bold red",
    mark: str = "✗",
    steps: Mapping[Reason, str] = NEXT_STEP,
) -> Text:
    """What failed, why, and what to do next."""
    text = plain(f"{mark} {headline}", style)
    if message:
        text.append("\n  ").append_text(plain_lines(message, indent="  "))
    step = next_step(reason, steps)
    if step and step not in message:
        text.append("\n  Next: ", style="bold").append(step)
    return text


def next_step(reason: Reason | str | None, steps: Mapping[Reason, str] = NEXT_STEP) -> str:
    """What a person can do about `reason`; empty for one that asks for nothing or that this version does not know."""
    return next((step for known, step in steps.items() if known == reason), "")


def indented(renderable: Table | Text) -> Padding:
    return Padding(renderable, (0, 0, 0, 2), expand=False)


def _shortened(text: str) -> str:
    return text if len(text) <= ANSWER_LIMIT else text[:ANSWER_LIMIT].rstrip() + " …"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "no"
