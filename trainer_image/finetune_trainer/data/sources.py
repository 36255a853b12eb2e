"""Which files a source of the spec stands for: a file, a folder or a pattern, mounted here or fetched first.

It decides what belongs to a source and in which order it is read. It opens no data file.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from finetune_api import uris
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec.dataset import Dataset, Source, SplitName
from finetune_api.spec.references import Reference, to_data
from finetune_api.text import printable
from finetune_trainer.data.formats import SUFFIXES, DataFile, Format, format_of
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import beside
from finetune_trainer.runtime.volumes import WILD
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.storage.hub import HubFile
from finetune_trainer.storage.inputs import Input

LOST = "lost+found"
"""A folder at the root of many volumes; it belongs to the file system, and root alone may read it."""
WORDS: dict[SplitName, str] = {"train": "train", "validation": "valid|validation|val|dev", "test": "test"}
"""How data sets of the hub name the files of a split."""


@dataclass(frozen=True)
class PlacedSource:
    """A source and where the spec has it."""

    split: SplitName
    source: Source
    reference: Reference

    @property
    def field(self) -> str:
        """As in `spec.dataset.train[0]`."""
        return self.reference.field

    def input(self, run: Run) -> Input:
        return Input(run, self.reference, "dataset")


def placed(dataset: Dataset) -> list[PlacedSource]:
    """All sources of the spec, training data first."""
    return [PlacedSource(*found) for found in to_data(dataset)]


def stamp(run: Run, place: PlacedSource) -> str:
    """What changes when the source does: of mounted files name, size and time; of remote ones what the spec says."""
    if place.input(run).is_remote:
        return f"{place.source.uri}@{place.source.revision}"
    stats = [(file.name, file.path.stat()) for file in _mounted(run, place)]
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def files(run: Run, workspace: Workspace, place: PlacedSource) -> list[DataFile]:
    """The files of a source, in the order of their names, fetched where they are remote. Raises Failure."""
    wanted = place.input(run)
    if not wanted.is_remote:
        return _mounted(run, place)
    folder = workspace.downloads / hashlib.sha256(stamp(run, place).encode()).hexdigest()[:16]
    fetched = wanted.fetched(folder, partial(_chosen, place, wanted))
    return [DataFile(folder / name, shown, _format(place, name)) for name, shown in fetched.names.items()]


def _mounted(run: Run, place: PlacedSource) -> list[DataFile]:
    uri, where = place.source.uri, place.input(run)
    path = where.located()
    if path.is_file():
        return [DataFile(path, printable(uri), _format(place, path.name))]
    folder, name = path, uri
    pattern: tuple[str, ...] = ("**", "*")
    if not path.is_dir():
        folder = next(parent for parent in path.parents if not WILD.search(str(parent)) and parent.is_dir())
        pattern = path.relative_to(folder).parts
        if not WILD.search("/".join(pattern)):
            raise where.named.failure(f"does not exist{beside(path)}")
        name = uri.rstrip("/").removesuffix("/".join(pattern))
    found = _matching(folder, pattern, where.proven)
    return _several(place, folder, sorted(set(found)), name)


def _several(place: PlacedSource, folder: Path, paths: list[Path], name: str) -> list[DataFile]:
    """The data files among `paths`; with `format: auto` those whose suffix says what they are."""
    chosen = [path for path in paths if place.source.format != "auto" or format_of(path.name)]
    if not chosen:
        kinds = ", ".join(SUFFIXES) if place.source.format == "auto" else "any"
        raise Failure(Reason.DATASET_UNAVAILABLE, f"{place.field}.uri: {place.source.uri} holds no data file ({kinds})")
    found = [(path, printable(f"{name.rstrip('/')}/{path.relative_to(folder).as_posix()}")) for path in chosen]
    return [DataFile(path, shown, _format(place, path.name)) for path, shown in found]


def _matching(folder: Path, pattern: tuple[str, ...], prove: Callable[[Path], Path]) -> Iterator[Path]:
    """Files below `folder` whose path fits a pattern for each segment; hidden ones are another tool's. `prove` sees
    each path before it is followed.

    Unlike Path.glob it raises OSError for a folder that cannot be read, whose data would be left out unseen.
    """
    first, rest = pattern[0], pattern[1:]
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.name != LOST)
    if first == "**":
        yield from _matching(folder, rest or ("*",), prove)
        below = [folder / name for name in names if (folder / name).is_dir() and not (folder / name).is_symlink()]
        for path in below:  # links are not followed here: they can lead in a circle
            yield from _matching(path, pattern, prove)
        return
    for path in (folder / name for name in names if fnmatchcase(name, first)):
        if rest and prove(path).is_dir():
            yield from _matching(path, rest, prove)
        elif not rest and path.is_file():
            yield prove(path)


def _format(place: PlacedSource, name: str) -> Format:
    if place.source.format != "auto":
        return place.source.format
    found = format_of(name)
    if found is None:
        known = ", ".join(SUFFIXES)
        message = f"{place.field}: cannot tell the format of {name} by its suffix ({known}): set {place.field}.format"
        raise Failure(Reason.BAD_SPEC, message)
    return found


def _chosen(place: PlacedSource, wanted: Input, listed: list[HubFile]) -> list[HubFile]:
    """Those of the hub's files that the source means, in the order of their names."""
    chosen = sorted(_meant(place, listed), key=lambda file: file.name)
    if not chosen:
        names = ", ".join(file.name for file in listed[:10])
        raise wanted.failure(f"holds no data file for {place.field}; its files: {names or 'none'}")
    return chosen


def _meant(place: PlacedSource, listed: list[HubFile]) -> list[HubFile]:
    """The file, folder or pattern that the URI names; without one, the files named after the split."""
    path = uris.parse(place.source.uri).path.rstrip("/")
    exact = [file for file in listed if file.name == path]
    if exact:
        return exact
    data = [file for file in listed if place.source.format != "auto" or format_of(file.name)]
    if path:
        return [file for file in data if file.name.startswith(f"{path}/") or fnmatchcase(file.name, path)]
    data = [file for file in data if format_of(file.name) not in (None, "text") and not file.name.startswith(".")]
    mine = list(_named_after(place.split, data))
    others = {file.name for split in WORDS if split != place.split for file in _named_after(split, data)}
    return mine or [file for file in data if file.name not in others]


def _named_after(split: SplitName, listed: list[HubFile]) -> Iterator[HubFile]:
    pattern = re.compile(rf"(^|[-_./])({WORDS[split]})([-_./]|$)")
    return (file for file in listed if pattern.search(file.name))
