"""The places where the version stands, and the command that raises it: `python tests/contract/versions.py 0.2.0`.

Without a number it prints the present one.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBER = r"\d+\.\d+\.\d+"
PLACES = (
    ("pyproject.toml", rf'(?m)^(version = ")({NUMBER})(?=")'),
    ("charts/finetune-operator/Chart.yaml", rf"(?m)^(version: )({NUMBER})$"),
    ("charts/finetune-operator/Chart.yaml", rf"(?m)^(appVersion: )({NUMBER})$"),
    ("Dockerfile", rf"(?m)^(ARG VERSION=)({NUMBER})$"),
)
"""A file, and what finds the version there, once."""
CHANGES = "## Unreleased\n"


def found(root: Path = ROOT) -> list[str]:
    """The version at each place; raises ValueError where it does not stand just once."""
    versions = []
    for name, pattern in PLACES:
        numbers = [number for _, number in re.findall(pattern, (root / name).read_text())]
        if len(numbers) != 1:
            raise ValueError(f"{name}: the version stands there {len(numbers)} times")
        versions += numbers
    return versions


def stamp(version: str, root: Path = ROOT) -> None:
    """Write it at each place, and give the changes that were not released yet its heading."""
    if not re.fullmatch(NUMBER, version) or key(version) <= key(found(root)[0]):
        raise ValueError(f"{version}: expected three numbers, after {found(root)[0]}")
    for name, pattern in PLACES:
        path = root / name
        path.write_text(re.sub(pattern, rf"\g<1>{version}", path.read_text()))
    changes, today = root / "CHANGELOG.md", datetime.now(UTC).date().isoformat()
    changes.write_text(changes.read_text().replace(CHANGES, f"{CHANGES}\n## {version} - {today}\n", 1))


def key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    try:
        stamp(sys.argv[1]) if sys.argv[1:] else print(found()[0])
    except ValueError as problem:
        sys.exit(f"error: {problem}")
