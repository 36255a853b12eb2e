"""What the API server does with a structural schema: refuse unknown fields, fill in defaults, check keywords.

It decides nothing about FineTuneJobs: every rule comes out of the schema that `finetune_api.crd` generates. The texts
are those of the API server (validation of k8s.io/kube-openapi, field errors of k8s.io/apimachinery), so that a message
reads the same offline and at `kubectl apply`; tests/contract holds the two together.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import re2

from finetune_cli.manifest.document import Route

Schema = dict[str, Any]


@dataclass(frozen=True)
class Violation:
    """One reason why the API server would refuse the object."""

    route: Route
    text: str
    blocking: bool = False
    """True: rules across fields are not evaluated before it is corrected."""
    at: Route | None = None
    """Where it stands in the file, if that is not the route."""

    @property
    def path(self) -> str:
        return dotted(self.route)


def dotted(route: Route) -> str:
    """`("spec", "train", 0)` as `spec.train[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in route).removeprefix(".")


def unknown_fields(value: Any, schema: Schema, route: Route = ()) -> Iterator[Violation]:
    """Fields that the schema does not know, in the words of strict decoding."""
    for part, inner, below in _children(value, schema):
        if below is None:
            yield Violation((*route, part), f'unknown field "{dotted((*route, part))}"')
        else:
            yield from unknown_fields(inner, below, (*route, part))


def defaulted(value: Any, schema: Schema) -> Any:
    """A copy with defaults filled in and without nulls and unknown fields."""
    if isinstance(value, list):
        return [defaulted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    filled = {
        part: inner
        for part, inner, below in _children(value, schema)
        if below is not None and (inner is not None or below.get("nullable"))
    }
    for name, below in schema.get("properties", {}).items():
        if name not in filled and "default" in below:
            filled[name] = copy.deepcopy(below["default"])
    return {name: defaulted(inner, _below(schema, name) or {}) for name, inner in filled.items()}


def _children(value: Any, schema: Schema) -> Iterator[tuple[Any, Any, Schema | None]]:
    """Each key or index of `value` with its value and its schema; None for a key that the schema does not know."""
    if isinstance(value, list):
        yield from ((index, item, schema.get("items", {})) for index, item in enumerate(value))
    elif isinstance(value, dict):
        yield from ((key, inner, _below(schema, key)) for key, inner in value.items())


def _below(schema: Schema, key: str) -> Schema | None:
    """The schema of field `key`; an object without properties takes any field."""
    if "properties" in schema or "additionalProperties" in schema:
        below: Schema | None = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        return below
    return {} if schema.get("type") == "object" or not schema else None


def violations(value: Any, schema: Schema, route: Route = ()) -> Iterator[Violation]:
    """What the keywords of the schema refuse in `value`, defaults filled in before."""
    yield from _type(value, schema, route)
    if isinstance(value, bool):
        pass
    elif isinstance(value, str):
        yield from _string(value, schema, route)
    elif isinstance(value, (int, float)):
        yield from _number(value, schema, route)
    elif isinstance(value, list):
        yield from _items(value, schema, route)
    elif isinstance(value, dict):
        yield from _properties(value, schema, route)
    if "enum" in schema and value not in schema["enum"] and not (value is None and schema.get("nullable")):
        allowed = ", ".join(_quoted(option) for option in schema["enum"])
        yield Violation(route, f"Unsupported value: {_shown(value)}: supported values: {allowed}", blocking=True)


def _type(value: Any, schema: Schema, route: Route) -> Iterator[Violation]:
    allowed = [schema["type"]] if "type" in schema else []
    if schema.get("x-kubernetes-int-or-string"):
        allowed = ["integer", "string"]
    found = _TYPES[type(value)]
    if value is None and schema.get("nullable"):
        return
    if allowed and found not in allowed and not (found == "integer" and "number" in allowed):
        complaint = f'{dotted(route)} in body must be of type {",".join(allowed)}: "{found}"'
        yield Violation(route, f'Invalid value: "{found}": {complaint}', blocking=True)


_TYPES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


def _string(value: str, schema: Schema, route: Route) -> Iterator[Violation]:
    """At most one violation: too long, too short, or the wrong shape."""
    longest, shortest, pattern = schema.get("maxLength"), schema.get("minLength", 0), schema.get("pattern")
    if longest is not None and len(value) > longest:
        unit = "byte" if longest == 1 else "bytes"  # characters, but the API server says bytes
        yield Violation(route, f"Too long: may not be more than {longest} {unit}", blocking=True)
    elif len(value) < shortest:
        yield _invalid(route, value, f"should be at least {shortest} chars long")
    elif pattern is not None and not re2.search(pattern, value):
        yield _invalid(route, value, f"should match '{pattern}'")


def _number(value: int | float, schema: Schema, route: Route) -> Iterator[Violation]:
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if lowest is not None:
        exclusive = schema.get("exclusiveMinimum", False)
        if value < lowest or (exclusive and value == lowest):
            relation = "greater than" if exclusive else "greater than or equal to"
            yield _invalid(route, value, f"should be {relation} {_bound(lowest, value)}")
    if highest is not None:
        exclusive = schema.get("exclusiveMaximum", False)
        if value > highest or (exclusive and value == highest):
            relation = "less than" if exclusive else "less than or equal to"
            yield _invalid(route, value, f"should be {relation} {_bound(highest, value)}")


def _bound(bound: int | float, value: int | float) -> str:
    """The API server compares in the type of the value, and prints the bound in it."""
    return str(int(bound)) if isinstance(value, int) else go_number(float(bound))


def _items(value: list[Any], schema: Schema, route: Route) -> Iterator[Violation]:
    for index, item in enumerate(value):
        yield from violations(item, schema.get("items", {}), (*route, index))
    fewest, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < fewest:
        yield _invalid(route, len(value), f"should have at least {fewest} items")
    if most is not None and len(value) > most:
        yield _too_many(route, len(value), most)


def _properties(value: dict[str, Any], schema: Schema, route: Route) -> Iterator[Violation]:
    for part, inner, below in _children(value, schema):
        yield from violations(inner, below or {}, (*route, part))
    for name in schema.get("required", ()):
        if name not in value:
            yield Violation((*route, name), "Required value", blocking=True)
    most = schema.get("maxProperties")
    if most is not None and len(value) > most:
        yield _too_many(route, len(value), most)


def _too_many(route: Route, found: int, most: int) -> Violation:
    unit = "item" if most == 1 else "items"
    return Violation(route, f"Too many: {found}: must have at most {most} {unit}", blocking=True)


def _invalid(route: Route, value: Any, complaint: str) -> Violation:
    return Violation(route, f"Invalid value: {_shown(value)}: {dotted(route)} in body {complaint}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return go_number(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _quoted(value: Any) -> str:
    return json.dumps(value if isinstance(value, str) else json.dumps(value), ensure_ascii=False)


def go_number(value: int | float) -> str:
    """A number as Go's %v prints it: the shortest digits, with an exponent below 1e-4 and from 1e6 on."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e6):
        return str(int(value))
    if 1e-4 <= abs(value) < 1e6:
        return repr(value)
    digits, _, exponent = f"{Decimal(repr(value)).normalize():e}".partition("e")
    return f"{digits}e{exponent[0]}{exponent[1:]:0>2}"
