"""What the trainer's rooms share names no objective and no method: a new one is a module, a table's row and a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.spec.methods import Method
from finetune_api.spec.objectives import Objective
from finetune_trainer.data.record_types import RECORD_TYPES

TRAINER = Path(__file__).parents[2] / "trainer_image" / "finetune_trainer"
FIELDS = {name: str(field.alias) for union in (Objective, Method) for name, field in union.model_fields.items()}
WORDS = {"adapter", "full"}
"""Names of methods that say other things too."""
NAMED = re.compile(rf"spec\.(objective|method)\.({'|'.join(FIELDS.values())})\b")
SHARED = sorted(
    path.relative_to(TRAINER).as_posix()
    for path in TRAINER.rglob("*.py")
    if path.parent.name not in ("methods", "objectives") and path.name != "record_types.py"
)


def named(source: str) -> Iterator[str]:
    """The places of a module that tell one objective or method from the others."""
    tree = ast.parse(source)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in FIELDS:
            if node.attr not in WORDS or ast.unparse(node.value).endswith("method"):
                yield f"line {node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            is_name = node.value in set(FIELDS.values()) - WORDS
            if is_name or NAMED.search(node.value):
                yield f"line {node.lineno}: {node.value!r}"


@pytest.mark.parametrize("module", SHARED)
def test_a_shared_module_names_no_objective_and_no_method(module: str) -> None:
    assert list(named((TRAINER / module).read_text())) == []


@pytest.mark.parametrize(
    "line",
    ["spec.objective.sft", "job.spec.method.full", "kind == 'qlora'", "f'spec.method.lora.rank: {told}'"],
)
def test_each_way_to_name_one_is_found(line: str) -> None:
    assert len(list(named(line + " or 1"))) == 1


def test_every_objective_says_what_it_learns_from() -> None:
    assert set(RECORD_TYPES) == {str(field.alias) for field in Objective.model_fields.values()}
