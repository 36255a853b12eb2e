"""The names that docs/glossary.md has replaced do not come back into the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for folder in ("crds", "operator", "trainer_image") for path in (ROOT / folder).rglob("*.py"))


def forbidden() -> set[str]:
    """The words of the third column."""
    rows = re.findall(r"^\| .+ \| .+ \| ?(.*?) ?\|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    return {word for row in rows[1:] for word in re.findall(r"[a-z_]+", row)}


def names(module: Path) -> Iterator[str]:
    """What a module calls itself, its classes, functions and their parameters, as words in small letters."""
    yield module.stem
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name).lower().strip("_")
        elif isinstance(node, ast.arg):
            yield node.arg.strip("_")


def test_the_glossary_forbids_words() -> None:
    assert {"verdict", "timetable", "judgement", "rehearsal"} <= forbidden()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_name_is_one_that_was_replaced(module: Path) -> None:
    assert set(names(module)) & forbidden() == set()
