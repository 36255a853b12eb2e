"""Evaluates the CEL rules (`x-kubernetes-validations`) of a schema, as the API server does when an object is created.

Rules that compare with an older version of the object (`oldSelf`) say nothing about a file and are left out.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel
from celpy.celparser import CELParseError
from celpy.evaluation import CELEvalError

from finetune_cli.manifest.document import Route
from finetune_cli.manifest.structural_schema import Schema, Violation


def broken_rules(value: Any, schema: Schema, route: Route = ()) -> Iterator[Violation]:
    """The rules that `value`, defaults filled in before, does not keep; outer objects first."""
    for rule in schema.get("x-kubernetes-validations", ()):
        program = _program(rule["rule"])
        if program is not None and not _holds(program, _typed(value, schema)):
            yield Violation(route, f"Invalid value: {_quoted(value)}{rule['message']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from broken_rules(item, schema.get("items", {}), (*route, index))
    elif isinstance(value, dict):
        for name, below in schema.get("properties", {}).items():
            if name in value:
                yield from broken_rules(value[name], below, (*route, name))


def _quoted(value: Any) -> str:
    """The API server repeats a scalar, and leaves an object out."""
    return "" if isinstance(value, dict | list) else f"{json.dumps(value)}: "


@cache
def _program(rule: str) -> celpy.Runner | None:
    """The compiled rule; None for one that needs an older object. Raises ValueError for one that is not CEL."""
    environment = celpy.Environment()
    try:
        tree = environment.compile(rule)
    except CELParseError as error:
        raise ValueError(f"not a CEL rule: {rule}: {error}") from None
    names = {token.value for token in tree.scan_values(lambda token: getattr(token, "type", "") == "IDENT")}
    return None if "oldSelf" in names else environment.program(tree)


def _holds(program: celpy.Runner, value: Any) -> bool:
    try:
        return bool(program.evaluate({"self": value}))
    except CELEvalError:
        return False  # as in the API server, a rule that cannot be evaluated is a rule that is broken


def _typed(value: Any, schema: Schema) -> Any:
    """The value in CEL's types: a whole number in a `number` field is a double."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        extra = schema.get("additionalProperties", {})
        return celtypes.MapType(
            {celtypes.StringType(name): _typed(inner, known.get(name, extra)) for name, inner in value.items()}
        )
    if isinstance(value, list):
        return celtypes.ListType([_typed(item, schema.get("items", {})) for item in value])
    if schema.get("type") == "number" and isinstance(value, int):
        return celtypes.DoubleType(value)
    return json_to_cel(value)
