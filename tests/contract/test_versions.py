"""The version is one, wherever it stands, and is raised everywhere at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contract.versions import CHANGES, PLACES, ROOT, found, stamp


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files in which it stands."""
    for name in {"CHANGELOG.md", *(name for name, _ in PLACES)}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_version_is_the_same_everywhere() -> None:
    assert len(set(found())) == 1


def test_it_is_raised_everywhere_and_in_nothing_else(copy: Path) -> None:
    before = {name: (copy / name).read_text() for name, _ in PLACES}
    old = found()[0]
    stamp("99.0.0", copy)
    assert set(found(copy)) == {"99.0.0"}
    for name, text in before.items():
        changed = [
            pair
            for pair in zip(text.splitlines(), (copy / name).read_text().splitlines(), strict=True)
            if pair[0] != pair[1]
        ]
        assert [new for _, new in changed] == [line.replace(old, "99.0.0") for line, _ in changed]
        assert len(changed) == sum(place == name for place, _ in PLACES)


def test_what_was_changed_gets_its_heading(copy: Path) -> None:
    stamp("99.0.0", copy)
    text = (copy / "CHANGELOG.md").read_text()
    assert text.index(CHANGES) < text.index("\n## 99.0.0 - ") < text.index("### Added")


@pytest.mark.parametrize("version", ["", "v1.0.0", "1.0", "0.0.1", found()[0]])
def test_what_is_no_later_version_is_refused(version: str, copy: Path) -> None:
    with pytest.raises(ValueError, match="expected three numbers, after"):
        stamp(version, copy)
    assert found(copy) == found()
