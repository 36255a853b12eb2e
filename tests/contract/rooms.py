"""Draws docs/architecture.md's picture of rooms from the imports that there are: `python tests/contract/rooms.py`.

With --check it fails where the picture is another one. What is allowed stand in pyproject.toml, as import contracts.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by tests/contract/rooms.py -->\n", "<!-- end of the picture -->"
PACKAGES = {
    "finetune_cli": ROOT / "operator" / "finetune_cli",
    "finetune_operator": ROOT / "operator" / "finetune_operator",
    "finetune_trainer": ROOT / "trainer_image" / "finetune_trainer",
    "finetune_api": ROOT / "crds" / "finetune_api",
}
FLAT = ("finetune_operator", "finetune_api")
"""Packages that are one room."""
PROGRAMS = (
    ("finetune_cli", "finetune_operator"),
    ("finetune_operator", "finetune_api"),
    ("finetune_trainer", "finetune_api"),
)


def picture() -> str:
    """A flowchart in Mermaid. An arrow means `imports`; those that others imply are left out."""
    graph = grimp.build_graph(*PACKAGES)
    rooms = {package: rooms_of(folder) for package, folder in PACKAGES.items() if package not in FLAT}
    lines = ["```mermaid", "flowchart TB"]
    for package, names in rooms.items():
        lines.append(f"  subgraph {package}")
        lines += [f'    {node(package, name)}["<b>{name}</b><br/>{about}"]' for name, about in names.items()]
        lines.append("  end")
    lines += [f'  {package}["<b>{package}</b>"]' for package in FLAT]
    for package, names in rooms.items():
        arrows = {one: {other for other in names if imports(graph, package, one, other)} for one in names}
        lines += [f"  {node(package, one)} --> {node(package, other)}" for one, other in reduced(arrows)]
    lines += [f"  {one} --> {other}" for one, other in PROGRAMS]
    return "\n".join([*lines, "```", ""])


def rooms_of(folder: Path) -> dict[str, str]:
    """The folders with code in a package, each with the first sentence of what it says of itself."""
    found = {}
    for path in sorted(folder.glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[path.parent.name] = (
            " ".join(text.split()).partition(". ")[0].removesuffix(".").replace('"', "'").replace("`", "")
        )
    return found


def imports(graph: grimp.ImportGraph, package: str, one: str, other: str) -> bool:
    names = {"importer": f"{package}.{one}", "imported": f"{package}.{other}"}
    return one != other and graph.direct_import_exists(**names, as_packages=True)


def reduced(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Those that no way over a third room says already."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            for other in arrows[left.pop()] - seen:
                seen.add(other)
                left.append(other)
        return seen

    return [
        (one, other)
        for one, others in arrows.items()
        for other in sorted(others)
        if not any(other in reach(between) for between in others - {other})
    ]


def node(package: str, room: str) -> str:
    return f"{package}_{room}"


def main() -> int:
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    drawn = before + BEGIN + picture() + END + rest.partition(END)[2]
    if "--check" in sys.argv:
        if drawn != page:
            print("docs/architecture.md: its picture is out of date: make generate", file=sys.stderr)
        return int(drawn != page)
    PAGE.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
