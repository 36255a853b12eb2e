"""Generates the CustomResourceDefinition from the models: `python -m finetune_api.crd > crds/finetunejobs.yaml`.

It translates pydantic's JSON schema into the structural dialect of the API server and refuses what it cannot translate.
It decides no field, bound or default: those stand in spec.py and status.py.
"""

import ast
import inspect
import sys
from copy import deepcopy
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune_api import labels
from finetune_api.job import FineTuneJob
from finetune_api.schema import ApiModel, Rule, default_of, model_of

PRINTER_COLUMNS = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {
        "name": "Reason",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Progressing")].reason',
        "description": "why it is in this phase",
    },
    {
        "name": "Progress",
        "type": "integer",
        "jsonPath": ".status.progress.percent",
        "description": "percent of the running stage",
    },
    {"name": "Loss", "type": "number", "jsonPath": ".status.progress.loss"},
    {"name": "ETA", "type": "integer", "jsonPath": ".status.progress.etaSeconds", "description": "seconds left"},
    {"name": "Artifact", "type": "string", "jsonPath": ".status.artifact.uri", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
KEPT = (
    "type", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
    "maxProperties", "format", "anyOf", "nullable",
)  # fmt: skip
"""Keywords that mean the same in both dialects; `x-kubernetes-*` pass too."""
DROPPED = ("title", "default", "additionalProperties", "propertyNames", "properties", "required", "items", "$defs",
           "exclusiveMinimum", "exclusiveMaximum", "const", "x-message", "patternProperties")  # fmt: skip
"""Keywords that are translated, or that the API server expresses otherwise."""


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a manifest."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{labels.PLURAL}.{labels.GROUP}"},
        "spec": {
            "group": labels.GROUP,
            "names": {
                "kind": labels.KIND,
                "listKind": f"{labels.KIND}List",
                "plural": labels.PLURAL,
                "singular": "finetunejob",
                "shortNames": ["ftj"],
                "categories": ["all", "finetune"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": labels.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": PRINTER_COLUMNS,
                    "selectableFields": [{"jsonPath": ".status.phase"}],
                    "schema": {"openAPIV3Schema": job_schema()},
                }
            ],
        },
    }


def job_schema(cluster: bool = True) -> dict[str, Any]:
    """The structural schema of a FineTuneJob; without the rules that hold in a cluster only if `cluster` is false."""
    schema = _object(FineTuneJob, cluster)
    metadata = {"type": "object"}
    api = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata}
    schema["properties"] = api | {name: schema["properties"][name] for name in ("spec", "status")}
    schema["properties"]["status"] = _without_defaults(schema["properties"]["status"])
    schema["required"] = ["spec"]
    return schema


def _object(model: type[BaseModel], cluster: bool) -> dict[str, Any]:
    wire = deepcopy(_wire(model))
    definitions, said = wire.get("$defs", {}), field_docstrings(model)
    properties = {}
    for name, field in model.model_fields.items():
        alias = field.alias or name
        properties[alias] = _field(field, said.get(name), wire["properties"][alias], definitions, cluster)
    schema: dict[str, Any] = {"type": "object", "description": _sentence(model.__doc__), "properties": properties}
    required = [field.alias or name for name, field in model.model_fields.items() if field.is_required()]
    if required:
        schema["required"] = required
    rules = [rule for rule in getattr(model, "rules", ()) if cluster or not rule.cluster_only]
    if rules:
        schema["x-kubernetes-validations"] = [_validation(rule) for rule in rules]
    return schema


@cache
def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field of a model, those of its bases included.

    pydantic's `use_attribute_docstrings` would read the same in every process: a third of the contract's import.
    """
    said = {}
    for owner in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        for field, below in pairwise(_classes(owner.__module__)[owner.__name__].body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    said[name] = inspect.cleandoc(text)
    return said


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module as they are written, by name."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


@cache
def _wire(model: type[BaseModel]) -> dict[str, Any]:
    """pydantic's schema of it: made once, as the same model stands in many places."""
    return model.model_json_schema(by_alias=True, mode="validation")


def _field(
    field: FieldInfo, said: str | None, wire: dict[str, Any], definitions: dict[str, Any], cluster: bool
) -> dict[str, Any]:
    model = model_of(field.annotation)
    schema = _value(wire, definitions) if model is None else _object(model, cluster)
    if model is not None and _is_list(field.annotation):
        items = _without_defaults(schema)
        schema = {**_value({**_not_null(wire), "items": {"type": "object"}}, definitions), "items": items}
    if said:
        schema["description"] = _joined(_sentence(said), _sentence(schema.get("description")))
    default = _default(field)
    if default is not None:
        schema["default"] = default
    first, last = ("type", "description"), ("properties", "items")
    return dict(sorted(schema.items(), key=lambda pair: (pair[0] not in first, pair[0] in last, pair[0] != "type")))


def _value(wire: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Translate the schema of a scalar, list or map."""
    wire = _not_null(wire)
    if "$ref" in wire:
        wire = {**definitions[wire["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in wire.items() if k != "$ref"}}
    unknown = [key for key in wire if key not in KEPT and key not in DROPPED and not key.startswith("x-kubernetes-")]
    if unknown:
        raise ValueError(f"no structural form for {unknown} in {wire}")
    schema = {key: value for key, value in wire.items() if key in KEPT or key.startswith("x-kubernetes-")}
    if "const" in wire:
        schema["enum"] = [wire["const"]]
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in wire:
            schema[bound.lower()] = wire[f"exclusive{bound}"]
            schema[f"exclusive{bound}"] = True
    if "x-message" in wire:  # a sentence for people instead of a regular expression
        rule = Rule(f"self.matches(r'{schema.pop('pattern')}')", wire["x-message"])
        schema["x-kubernetes-validations"] = [_validation(rule)]
    if "items" in wire:
        schema["items"] = _value(wire["items"], definitions)
    for pattern, below in wire.get("patternProperties", {}).items():
        longest = wire["propertyNames"]["maxLength"]
        rule = Rule(
            f"self.all(key, key.size() <= {longest} && key.matches(r'{pattern}'))",
            f"each key should match '{pattern}' and have at most {longest} characters",
        )
        schema |= {"additionalProperties": _value(below, definitions), "x-kubernetes-validations": [_validation(rule)]}
    if isinstance(wire.get("additionalProperties"), dict):
        schema["additionalProperties"] = _value(wire["additionalProperties"], definitions)
    return schema


def _not_null(wire: dict[str, Any]) -> dict[str, Any]:
    """An optional field is an absent field: drop the `null` alternative."""
    if "x-kubernetes-int-or-string" in wire or "anyOf" not in wire:
        return wire
    options = [option for option in wire["anyOf"] if option != {"type": "null"}]
    if len(options) != 1:
        raise ValueError(f"a union has no structural form; use optional members and a rule: {wire}")
    return {**{key: value for key, value in wire.items() if key != "anyOf"}, **options[0]}


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) is list:
        return True
    return get_origin(annotation) is not dict and any(_is_list(part) for part in get_args(annotation))


def _default(field: FieldInfo) -> Any:
    """The default as the API server fills it in: only what was said, because it fills in the rest itself."""
    default = default_of(field)
    return default.to_wire(exclude_unset=True) if isinstance(default, ApiModel) else default


def _without_defaults(schema: Any) -> Any:
    """A status says what was observed, so nothing is filled in. Nor in items of a list: `kubectl apply` replaces a list
    as a whole, so what the server fills in there differs from the file each time (kubernetes/kubernetes#66450)."""
    if isinstance(schema, list):
        return [_without_defaults(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_defaults(value) for key, value in schema.items() if key != "default"}


def _validation(rule: Rule) -> dict[str, str]:
    return {"rule": rule.rule, "message": rule.message}


def _joined(field: str, model: str) -> str:
    """What the field is for, then what its type is, unless that says the same."""
    return field if model in field else f"{field} {model}"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def main() -> None:
    sys.stdout.write("# Generated by `make generate` from crds/finetune_api. Do not edit.\n")
    yaml.safe_dump(definition(), sys.stdout, sort_keys=False, width=160, allow_unicode=True)


if __name__ == "__main__":
    main()
