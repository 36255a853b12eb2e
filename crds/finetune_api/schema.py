"""What every type of the contract has in common: camelCase outside, snake_case inside, strict, frozen, and CEL rules
beside the fields.

It decides how a Python model is spelled in YAML. It knows no type of the contract.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """A CEL rule of the CRD. `self` is the object that the rule is declared on."""

    rule: str
    message: str
    cluster_only: bool = False
    """True: the rule holds at `kubectl apply` but not for `finetune run` on one machine."""


class Model(BaseModel):
    """A frozen object of the contract; its attribute docstrings become the descriptions of `kubectl explain`."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # a process builds the types that it uses, when it does
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    def to_wire(self, **options: Any) -> dict[str, Any]:
        """The object as JSON-ready camelCase, without absent optional fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, **options)


def exactly_one_of(*fields: str) -> Rule:
    """Exactly one of the optional members of a union is set."""
    return Rule(f"{_count(fields)} == 1", f"set exactly one of: {', '.join(fields)}")


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


DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
