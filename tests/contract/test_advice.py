"""No advice asks for what the API server refuses.

Advice is what the messages of conditions end with, and the right column of docs/troubleshooting.md. A clause that names
a field of the spec asks for an edit of it, unless it speaks of applying a job, or only of looking. Every such edit is
tried on a stored job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from contract.test_edits import FIELDS, SPEC, changed, edited
from finetune_api.reasons import NEXT_STEP, Reason
from finetune_api.spec.job_spec import EDITABLE, STEERING, FineTuneJobSpec
from finetune_operator.status import NOT_BY_TRIES
from integration.kubelet import JOBS, Api

PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"
STANZAS = {field.alias or name for name, field in FineTuneJobSpec.model_fields.items()}
FIELD = re.compile(rf"\b(?:spec\.)?((?:{'|'.join(STANZAS)})(?:\.\w+)+)|\bspec\.(\w+)")
CLAUSE = re.compile(r"[.;:,]\s+|\s+or (?=apply\b)|\. ")
LOOKING = re.compile(r"\b(check|look|read|names?|storage (of|behind))\b", re.IGNORECASE)
APPLYING = re.compile(r"\bappl(y|ies)\b", re.IGNORECASE)
FAILURES = list(Reason)[list(Reason).index(Reason.BAD_SPEC) :]


def advice() -> Iterator[tuple[Reason, str]]:
    """Every piece of advice, with the reason that it is for."""
    yield from NEXT_STEP.items()
    troubles = PAGE.read_text().partition("\n## Waiting")[2]
    for reason, cell in re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", troubles, re.MULTILINE):
        yield Reason(reason), re.sub(r"\]\([^)]*\)", "]", cell).replace("`", "")


def edits(text: str) -> Iterator[str]:
    """The fields of the spec that `text` says to edit."""
    for sentence in re.split(r"(?<=[.;:])\s+", text):
        is_of_another_job = False
        for clause in CLAUSE.split(sentence):
            # "apply a job with this, or with that": what follows speaks of the same job.
            is_of_another_job = bool(APPLYING.search(clause)) or (is_of_another_job and clause.startswith("or with"))
            if not is_of_another_job and not LOOKING.search(clause):
                yield from (found[0] or found[1] for found in FIELD.findall(clause))


CASES = [pytest.param(reason, text, id=f"{reason}-{number}") for number, (reason, text) in enumerate(advice())]


@pytest.mark.parametrize(("reason", "text"), CASES)
def test_advice_names_fields_that_may_be_edited(reason: Reason, text: str) -> None:
    """By the contract's own list of them."""
    refused = [path for path in edits(text) if not path.startswith((*STEERING, *EDITABLE))]

    assert refused == [], text


@pytest.mark.parametrize(("reason", "text"), [case for case in CASES if case.values[0] in FAILURES])
def test_advice_about_a_failure_brings_the_job_back(reason: Reason, text: str) -> None:
    """An edit of a job that has failed counts once a limit is raised, and not every limit helps against every one."""
    asked = set(edits(text))
    limits = {"restarts", *({"deadlineSeconds"} if reason is Reason.DEADLINE_EXCEEDED else ())}
    limits |= {"retry.limit"} if reason not in NOT_BY_TRIES else set()

    assert not asked or asked & limits, text


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Raise spec.resources.memory and spec.restarts, or apply a job with a lower training.maxLength.", 2),
        ("Apply a job with another model.uri, or with output.merge.", 0),
        ("Check spec.model.uri, then raise spec.restarts.", 1),
        ("Point spec.model.uri at a folder.", 1),
    ],
)
def test_advice_is_read_as_a_person_reads_it(text: str, asked: int) -> None:
    """What this file takes for an edit."""
    assert len(list(edits(text))) == asked


@pytest.mark.integration
def test_the_api_server_takes_what_is_advised(control_plane: ControlPlane) -> None:
    """Of each field, or of some field below it, an edit of a stored job."""
    api, path = Api(control_plane), JOBS.format("default")
    body: dict[str, Any] = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "spec": SPEC}
    created = api.create(path, body | {"metadata": {"name": "edited"}})
    try:
        for advised in sorted({path for _, text in advice() for path in edits(text)}):
            below = [one for one in FIELDS if ".".join(one[0]).startswith(advised)]
            answers = (edited(api, path, created, spec)[0] for one in below for spec in changed(*one))
            assert 200 in answers, advised
    finally:
        api.delete(f"{path}/edited")
