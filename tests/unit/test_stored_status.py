"""A stored status is read as far as it can be, and what could not be read is written back."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.crd import field_docstrings
from finetune_api.events import StageReport
from finetune_api.reasons import ConditionType
from finetune_api.status import EvaluationResult, FineTuneJobStatus, Metric
from finetune_operator.status import condition, is_final

WHEN = "2026-01-01T00:00:00Z"


def stored_condition(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": WHEN} | fields


def test_an_end_is_an_end_however_long_its_message_is() -> None:
    """Another release may allow more."""
    read = FineTuneJobStatus.read({"conditions": [stored_condition("Failed", message="x" * 5000)]})
    assert is_final(read)
    assert len(condition(read, ConditionType.FAILED).message) == 5000


def test_no_number_of_conditions_hides_the_one_that_counts() -> None:
    others = [stored_condition(f"Other{number}") for number in range(40)]
    assert is_final(FineTuneJobStatus.read({"conditions": [*others, stored_condition("Complete")]}))


def test_more_attempts_than_are_listed_here_are_read() -> None:
    """The next one is numbered after the last."""
    attempts = [{"number": number, "pod": f"pod-{number}"} for number in range(1, 151)]
    assert FineTuneJobStatus.read({"attempts": attempts}).attempts[-1].number == 150


def test_one_field_that_cannot_be_read_hides_no_field_beside_it() -> None:
    stored = {
        "stage": {"name": "train", "number": 3, "tries": 2, "checkpointStep": "latest"},
        "run": {"digest": "sha256:abc", "image": "i" * 2000},
    }
    read = FineTuneJobStatus.read(stored)
    assert read.stage is not None
    assert read.run is not None
    assert (read.stage.number, read.stage.tries, read.stage.checkpoint_step) == (3, 2, None)
    assert (read.run.digest, read.run.image) == ("sha256:abc", "i" * 2000)


def test_what_lacks_a_required_field_or_is_no_object_is_left_out() -> None:
    read = FineTuneJobStatus.read({"conditions": [{"type": "Failed"}, "Failed", stored_condition("Ready")]})
    assert [one.type for one in read.conditions] == ["Ready"]
    assert FineTuneJobStatus.read({"stage": "train", "phase": 3}) == FineTuneJobStatus()


def test_an_item_that_cannot_be_read_is_written_back() -> None:
    stored = {"conditions": [stored_condition("Novel", lastTransitionTime=5), stored_condition("Prepared")]}
    read = FineTuneJobStatus.read(stored)
    assert [one.type for one in read.conditions] == ["Prepared"]
    assert read.over(stored)["conditions"] == stored["conditions"]


def test_an_item_that_is_left_out_on_purpose_stays_out() -> None:
    stored = {"conditions": [stored_condition("Failed"), stored_condition("Prepared")]}
    read = FineTuneJobStatus.read(stored)
    back = read.model_copy(update={"conditions": read.conditions[1:]})
    assert [one["type"] for one in back.over(stored)["conditions"]] == ["Prepared"]


def test_metrics_that_are_not_known_are_read_and_stay() -> None:
    stored = {"evaluation": {"split": "test", "tuned": {"loss": 1.5, "bleu": 31.0}}}
    read = FineTuneJobStatus.read(stored)
    assert read.evaluation is not None
    assert read.evaluation.tuned == {"loss": 1.5, "bleu": 31.0}
    assert read.over(stored)["evaluation"]["tuned"] == stored["evaluation"]["tuned"]


def test_metrics_that_were_not_measured_may_be_named() -> None:
    """As results on the workspaces of earlier releases do."""
    read = EvaluationResult.model_validate_json('{"split": "test", "tuned": {"loss": 1.5, "perplexity": null}}')
    assert read.tuned == {Metric.LOSS: 1.5}


def test_every_metric_is_explained() -> None:
    """Of a map `kubectl explain` shows no names but those in its own description."""
    about = field_docstrings(EvaluationResult)["tuned"]
    assert [metric for metric in Metric if f"`{metric}`" not in about] == []


@pytest.mark.parametrize("name", ["\x1b[2J", "loss\n", "a b", "x" * 65, ""])
def test_a_metric_has_the_name_of_one_word(name: str) -> None:
    """It comes from a pod: such a report is not read."""
    with pytest.raises(ValidationError):
        StageReport.model_validate({"stage": "train", "evaluation": {"tuned": {name: 1.0}}})
