"""`finetune init`: a small manifest to start from, with every comment taken from the schema.

It decides which fields a beginner meets. It has no list of objectives or methods: those are the schema's.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from rich.markup import escape

from finetune_api import labels
from finetune_api.crd import job_schema
from finetune_api.spec.methods import Method
from finetune_api.spec.objectives import Objective
from finetune_cli.commands.validate import report
from finetune_cli.manifest.document import STANDARD_INPUT, parse
from finetune_cli.manifest.structural_schema import Schema
from finetune_cli.manifest.validation import check
from finetune_cli.views.terminal import err, out

OBJECTIVES = [str(field.alias) for field in Objective.model_fields.values()]
METHODS = [str(field.alias) for field in Method.model_fields.values()]
TRAINING = ("epochs", "batchSize", "learningRate", "maxLength")
RESOURCES = ("gpus", "cpu", "memory")
WIDTH = 110


@dataclass(frozen=True)
class Choice:
    """What the command line says."""

    name: str
    objective: str
    method: str
    model: str
    data: str
    output: str


def manifest(choice: Choice) -> str:
    """The manifest as YAML with comments; valid if the URIs and the name are."""
    schema = job_schema()["properties"]["spec"]
    lines = [
        f"# {schema['description']}",
        "#   check it:      finetune validate FILE",
        "#   run it here:   finetune run FILE",
        "#   in a cluster:  kubectl apply -f FILE && kubectl finetune watch " + choice.name,
        f"# Every field: kubectl explain {labels.PLURAL}.spec --recursive, or docs/api.md.",
        f"apiVersion: {labels.API_VERSION}",
        f"kind: {labels.KIND}",
        "metadata:",
        f"  name: {_inline(choice.name)}",
        "spec:",
        *_lines(_values(choice, schema), schema, 1),
    ]
    return "\n".join(lines) + "\n"


def _values(choice: Choice, schema: Schema) -> dict[str, Any]:
    """The part of the spec that is written out: what is required, the two unions, and a few usual settings."""
    parts = schema["properties"]
    training = _defaults(parts["training"], TRAINING)
    training["learningRate"] = _learning_rate(choice.method)
    return {
        "model": {"uri": choice.model},
        "dataset": {"train": [{"uri": choice.data}]},
        "objective": {choice.objective: _defaults(parts["objective"]["properties"][choice.objective])},
        "method": {choice.method: _defaults(parts["method"]["properties"][choice.method])},
        "training": {name: training[name] for name in TRAINING},
        "output": {"uri": choice.output},
        "resources": _defaults(parts["resources"], RESOURCES),
    }


def _learning_rate(method: str) -> float:
    """The method's own: a good one for LoRA is ten times that for full fine-tuning."""
    return float(Method.model_validate({method: {}}).options.default_learning_rate)


def _defaults(schema: Schema, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The fields that have a default, with it."""
    properties = schema.get("properties", {})
    return {name: properties[name]["default"] for name in names or properties if "default" in properties[name]}


def _lines(value: dict[str, Any], schema: Schema, depth: int) -> Iterator[str]:
    """`value` as block YAML; above each field what the schema says about it."""
    for name, inner in value.items():
        below = schema["properties"][name]
        yield from _comment(below.get("description", ""), depth)
        yield from _entry(f"{'  ' * depth}{name}:", inner, below, depth)


def _entry(head: str, value: Any, schema: Schema, depth: int) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield head
        yield from _lines(value, schema, depth + 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield head
        for item in value:
            yield from _item(list(_lines(item, schema["items"], depth + 2)), depth + 1)
    else:
        yield f"{head} {_inline(value)}"


def _item(lines: list[str], depth: int) -> Iterator[str]:
    """Lines of a list's item with its dash: before the first field, below its comments."""
    indent = "  " * depth
    first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
    for index, line in enumerate(lines):
        dash = "- " if index == first else ""
        yield f"{indent}{dash}{line.lstrip()}" if index <= first else line


def _comment(text: str, depth: int) -> Iterator[str]:
    indent = f"{'  ' * depth}# "
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def _inline(value: Any) -> str:
    """A scalar, or an empty or plain list or map, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True).strip()
    return text.removesuffix("...").strip()


def write(file: str, choice: Choice, force: bool) -> int:
    """Write the manifest to `file` (`-`: standard output), unless it would not be valid; returns the exit code."""
    for kind, known, chosen in (("objective", OBJECTIVES, choice.objective), ("method", METHODS, choice.method)):
        if chosen not in known:
            err.print(f"[red]--{kind} {escape(chosen)}: choose one of {', '.join(known)}[/red]")
            return 1
    text = manifest(choice)
    (document,) = parse(text.encode(), "the new job")
    problems = check(document, cluster=False)
    if problems:
        report(document, problems)
        return 1
    if file == STANDARD_INPUT:
        out.file.write(text)
        return 0
    try:
        with open(file, "w" if force else "x") as target:
            target.write(text)
    except OSError as error:
        hint = ": --force replaces it" if isinstance(error, FileExistsError) else ""
        err.print(f"[red]{escape(file)}: {error.strerror}{hint}[/red]")
        return 1
    out.print(f"[green]✓[/green] {escape(file)}: now put in your model, data and output, then finetune validate it")
    return 0
