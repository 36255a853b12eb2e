"""What every type of the contract has in common: camelCase outside, snake_case inside, strict, frozen, and CEL rules
beside the fields.

It decides how a Python model is spelled in YAML. It knows no type of the contract.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Rule:
    """A CEL rule of the CRD. `self` is the object that the rule is declared on."""

    rule: str
    message: str
    cluster_only: bool = False
    """True: the rule holds at `kubectl apply` but not for `finetune run` on one machine."""
    holds: Callable[[Any], bool] | None = None
    """The same in Python, for objects that no API server checks."""
    is_union: bool = False
    """True: it says that one member of a union is set."""


class ApiModel(BaseModel):
    """A frozen object of the contract; the docstrings of its fields become the descriptions of `kubectl explain`."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # a process builds the types that it uses, when it does
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    def to_wire(self, **options: Any) -> dict[str, Any]:
        """The object as JSON-ready camelCase, without absent optional fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, **options)


def broken_rules(value: ApiModel, path: str = "", unions_only: bool = False) -> Iterator[str]:
    """What `value`, or an object below it, breaks of the rules that Python can check, each with its place."""
    for rule in value.rules:
        if rule.holds is not None and rule.is_union >= unions_only and not rule.holds(value):
            yield f"{path or value.__class__.__name__}: {rule.message}"
    for key, (name, model) in _members(type(value)).items():
        if model is None:
            continue
        below, inner = f"{path}.{key}".removeprefix("."), getattr(value, name)
        for number, item in enumerate(inner if isinstance(inner, list) else [inner]):
            if isinstance(item, ApiModel):
                yield from broken_rules(item, f"{below}[{number}]" if isinstance(inner, list) else below, unions_only)


def unknown_fields(model: type[ApiModel], stored: Any, path: str) -> Iterator[str]:
    """Paths of what a stored object holds and `model` does not know."""
    members = _members(model)
    for key, value in stored.items() if isinstance(stored, dict) else ():
        if key not in members:
            yield f"{path}.{key}"
        elif (below := members[key][1]) is not None:
            for number, item in enumerate(value if isinstance(value, list) else [value]):
                place = f"{path}.{key}[{number}]" if isinstance(value, list) else f"{path}.{key}"
                yield from unknown_fields(below, item, place)


@cache
def _members(model: type[ApiModel]) -> dict[str, tuple[str, type[ApiModel] | None]]:
    """For each field as it is spelled in YAML: its name in Python, and the contract model in it."""
    return {one.alias or name: (name, model_of(one.annotation)) for name, one in model.model_fields.items()}


def exactly_one_of(*fields: str) -> Rule:
    """Exactly one of the optional members of a union is set."""

    def holds(value: ApiModel) -> bool:
        known = type(value).model_fields.items()
        return sum(getattr(value, name) is not None for name, one in known if (one.alias or name) in fields) == 1

    return Rule(
        f"{_count(fields)} == 1",
        f"set exactly one of: {', '.join(fields)}",
        holds=holds,
        is_union=True,
    )


def at_most_one_of(*fields: str) -> Rule:
    return Rule(f"{_count(fields)} <= 1", f"set at most one of: {', '.join(fields)}")


def _count(fields: tuple[str, ...]) -> str:
    return f"[{', '.join(f'has(self.{field})' for field in fields)}].filter(set, set).size()"


QUANTITY_PATTERN = r"^([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
    Field(pattern=QUANTITY_PATTERN, max_length=32),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            "maxLength": 32,
            "minimum": 1,
        }
    ),
]
"""A Kubernetes quantity such as `2`, `500m` or `8Gi`."""


def or_auto(least: int, most: int) -> WithJsonSchema:
    """The wire form of a whole number from `least` to `most` or the word `auto`."""
    bounds = {"minimum": least, "maximum": most, "pattern": "^auto$", "maxLength": 4}
    return WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True, **bounds}
    )


_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
DnsLabel = Annotated[str, Field(pattern=rf"^{_LABEL}$", max_length=63)]
DnsName = Annotated[str, Field(pattern=rf"^{_DOMAIN}$", max_length=253)]
QualifiedName = Annotated[str, Field(pattern=rf"^({_DOMAIN}/)?{_NAME}$", max_length=253)]
"""Key of a label, an annotation or a taint."""
ExtendedResource = Annotated[str, Field(pattern=rf"^{_DOMAIN}/{_NAME}$", max_length=128)]


def default_of(field: FieldInfo) -> Any:
    """The default of an optional field. A default that is a model is declared as a `default_factory`: a process makes
    it, and builds its type, when it parses something, and not when it imports the contract."""
    return None if field.is_required() else field.get_default(call_default_factory=True)


def model_of(annotation: Any) -> type[ApiModel] | None:
    """The contract model inside `X`, `X | None`, `list[X]` or `Annotated[...]` of those; None for scalars."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    found = [model for part in get_args(annotation) if (model := model_of(part)) is not None]
    return found[0] if found else None


def only_member(union: ApiModel) -> str:
    """The name of the member of a union that is set."""
    (name,) = [name for name in type(union).model_fields if getattr(union, name) is not None]
    return name


def members_that(union: type[ApiModel], trait: str) -> list[str]:
    """Wire names of those members of a union whose type has the class attribute `trait` set."""
    members = {str(field.alias): model_of(field.annotation) for field in union.model_fields.values()}
    return [name for name, member in members.items() if getattr(member, trait)]


KeyName = Annotated[str, Field(pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", max_length=253)]
"""Of a Secret or a ConfigMap."""
