"""`finetune validate`: what the API server would say to a FineTuneJob, without one.

It joins the steps that the API server takes, in its order, and adds the line of each problem. The rules themselves come
out of the generated schema; what every Kubernetes object's metadata has to fulfil stands in `metadata`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from finetune_api import labels
from finetune_api.crd import job_schema
from finetune_api.job import FineTuneJob
from finetune_cli.manifest.cel_rules import broken_rules
from finetune_cli.manifest.document import Document, UnreadableError, read
from finetune_cli.manifest.metadata import metadata_violations
from finetune_cli.manifest.structural_schema import Schema, Violation, defaulted, unknown_fields, violations

NOT_ALL_CHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)


@dataclass(frozen=True)
class Problem:
    """One thing to correct."""

    path: str
    """The field, such as `spec.dataset.train[0].uri`; empty for the whole object."""
    message: str
    """The text of the API server, without the path in front."""
    line: int

    def __str__(self) -> str:
        says_where = not self.path or f'"{self.path}"' in self.message
        return self.message if says_where else f"{self.path}: {self.message}"


def is_job(value: Any) -> bool:
    """True for a document that means to be a FineTuneJob."""
    return isinstance(value, dict) and value.get("kind") == labels.KIND


def is_foreign(value: Any) -> bool:
    """True for an object of another API, which is none of our business: not for a misspelt kind or version of ours."""
    version = value.get("apiVersion") if isinstance(value, dict) else None
    return isinstance(version, str) and bool(value.get("kind")) and not version.startswith(labels.GROUP)


def check(document: Document, cluster: bool = True) -> list[Problem]:
    """What the API server would refuse in `document`, by line. If not `cluster`: what `finetune run` refuses."""
    found = [
        Problem(violation.path, violation.text, document.line(_place(violation)))
        for violation in _violations(document.value, _schema(cluster))
    ]
    return sorted(found, key=lambda problem: (problem.line, problem.path))


def only_job(file: str) -> Document:
    """The one FineTuneJob in `file`; raises UnreadableError."""
    jobs = [found for found in read(file) if is_job(found.value)]
    if len(jobs) != 1:
        raise UnreadableError(file, None, f"expected one FineTuneJob, found {len(jobs) or 'none'}")
    return jobs[0]


def job(document: Document) -> FineTuneJob:
    """A checked document as the operator sees it, defaults filled in. Raises pydantic.ValidationError if unchecked."""
    value = defaulted(document.value, _schema(cluster=False))
    metadata = value["metadata"]
    name = metadata.get("name") or metadata["generateName"].rstrip("-.")
    return FineTuneJob.model_validate({**value, "metadata": {**metadata, "name": name}})


def describe(path: str) -> str:
    """What the schema says about a field; empty if it says nothing."""
    schema: Schema = _schema(cluster=True)
    for part in path.replace("[", ".[").split("."):
        schema = schema.get("items", {}) if part.startswith("[") else schema.get("properties", {}).get(part, {})
    return str(schema.get("description", ""))


@cache
def _schema(cluster: bool) -> Schema:
    return job_schema(cluster)


def _violations(value: Any, schema: Schema) -> Iterator[Violation]:
    refused = list(_kind(value))
    if refused:
        yield from refused
        return
    yield from unknown_fields(value, schema)
    written = {name: inner for name, inner in value.items() if name != "status"}  # the operator's; dropped at creation
    complete = defaulted(written, schema)
    problems = [*metadata_violations(value.get("metadata")), *violations(complete, schema)]
    yield from problems
    if any(problem.blocking for problem in problems):
        yield Violation((), NOT_ALL_CHECKED)
    else:
        yield from broken_rules(_named(complete), schema)


def _kind(value: Any) -> Iterator[Violation]:
    if not isinstance(value, dict):
        yield Violation((), "not an object: a manifest starts with apiVersion, kind, metadata and spec")
        return
    kind, version = value.get("kind"), value.get("apiVersion")
    if (kind, version) != (labels.KIND, labels.API_VERSION):
        wrong = "kind" if kind != labels.KIND else "apiVersion"
        text = f'no matches for kind "{kind or ""}" in version "{version or ""}"'
        yield Violation((wrong,), f"{text}: expected {labels.KIND} in {labels.API_VERSION}")


def _named(value: dict[str, Any]) -> dict[str, Any]:
    """With the name that the API server would make out of generateName."""
    metadata = value["metadata"]
    name = metadata.get("name") or metadata["generateName"] + "x" * 5
    return {**value, "metadata": {**metadata, "name": name}}


def _place(violation: Violation) -> tuple[str | int, ...]:
    """The route whose line is shown: a message about the whole object may begin with the field that it is about."""
    if violation.at is not None:
        return violation.at
    first = violation.text.removeprefix("Invalid value: ").partition(" ")[0]
    return tuple(first.split(".")) if not violation.route and "." in first else violation.route
