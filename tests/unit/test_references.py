"""Every place and every Secret that a spec can name is listed, whatever field it stands in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from finetune_api.schema import ApiModel, model_of
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.references import references

SPEC = {
    "model": {"uri": "pvc://models/base", "auth": {"secretName": "hub"}},
    "dataset": {
        "train": [{"uri": "pvc://data/a.jsonl"}, {"uri": "https://host/b.jsonl", "auth": {"secretName": "web"}}],
        "validation": {"sources": [{"uri": "configmap://held-out/v.jsonl"}]},
        "test": {"sources": [{"uri": "hf://org/data/t.jsonl", "auth": {"secretName": "test"}}]},
    },
    "method": {
        "lora": {
            "startFrom": {
                "adapters": [{"uri": "pvc://adapters/one"}, {"uri": "hf://org/two", "auth": {"secretName": "two"}}]
            }
        }
    },
    "output": {"uri": "pvc://results/out"},
}


def named(part: Any, path: str = "spec") -> Iterator[tuple[str, str]]:
    """Each field of the written spec that names a place or a Secret, with what it says."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if key in ("uri", "secretName"):
            yield f"{path}.{key}", value
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from named(item, f"{path}.{key}[{index}]")
        else:
            yield from named(value, f"{path}.{key}")


def fields_that_name(model: type[ApiModel], path: str = "spec") -> Iterator[str]:
    """The fields of the schema that are called `uri`, a list's items as its field. Pods are not what a run reads."""
    for name, field in model.model_fields.items():
        below = model_of(field.annotation)
        if name == "uri":
            yield f"{path}.uri"
        elif below is not None and name != "pod_template":
            yield from fields_that_name(below, f"{path}.{field.alias}")


def test_each_place_and_each_secret_is_listed_with_its_field() -> None:
    found = list(references(FineTuneJobSpec.model_validate(SPEC)))
    listed = {(f"{one.field}.uri", one.uri) for one in found}
    listed |= {(f"{one.field}.auth.secretName", one.auth.secret_name) for one in found if one.auth}
    assert listed == set(named(SPEC))


def test_the_spec_above_has_every_field_that_names_a_place() -> None:
    """A field that is added to the schema has to be added there, and fails the test above until it is listed."""
    written = {re.sub(r"\[\d+\]", "", path) for path, _ in named(SPEC) if path.endswith(".uri")}
    assert set(fields_that_name(FineTuneJobSpec)) == written
