"""Which folders of this machine stand for the volumes, ConfigMaps and Secrets that a job names.

It decides what a job needs mounted and what is missing. It opens no file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.references import references

OPTIONS = {"pvc": "--volume", "configmap": "--config-map", "secret": "--secret"}
"""URI scheme → the option of `finetune run` that says where it lies."""


class MountError(Exception):
    """Something that the job names has no folder here; `path` is the field that names it."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class Need:
    """A root that has to be mounted, and the field that asks for it."""

    root: str
    path: str
    is_written: bool = False


def needs(spec: FineTuneJobSpec) -> Iterator[Need]:
    """Everything that the job names and that is not reached over the network or by a path."""
    for reference in references(spec):
        if reference.uri.startswith("job://"):
            told = "only a cluster knows other jobs; name the folder that the job published, as file://"
            raise MountError(f"{reference.uri}: {told}", f"{reference.field}.uri")
        if reference.root is not None:
            yield Need(reference.root, f"{reference.field}.uri", reference.is_written)
        if reference.secret is not None:
            yield Need(reference.secret, f"{reference.field}.auth.secretName")


def mounts(spec: FineTuneJobSpec, folders: dict[str, str]) -> dict[str, str]:
    """From each root that the job names to its folder; `folders` is what the options say. Raises MountError."""
    wanted = list(needs(spec))
    for root in folders:
        if root not in {need.root for need in wanted}:
            scheme, _, name = root.partition("://")
            raise MountError(f"{OPTIONS[scheme]} {name}=…: the job names no {root}")
    return {need.root: _folder(need, folders) for need in wanted}


def folders(scheme: str, options: list[str]) -> dict[str, str]:
    """`["claim=DIR"]` as `{"pvc://claim": "DIR"}`. Raises MountError."""
    found = {}
    for option in options:
        name, separator, folder = option.partition("=")
        if not (name and separator and folder):
            raise MountError(f"{OPTIONS[scheme]} {option}: expected name=DIR")
        found[f"{scheme}://{name}"] = folder
    return found


def _folder(need: Need, folders: dict[str, str]) -> str:
    scheme, _, name = need.root.partition("://")
    if need.root not in folders:
        raise MountError(f"{need.root} has no folder on this machine: add {OPTIONS[scheme]} {name}=DIR", need.path)
    folder = Path(folders[need.root]).expanduser().absolute()
    if not folder.is_dir() and not need.is_written:
        raise MountError(f"{OPTIONS[scheme]} {name}={folders[need.root]}: no such folder", need.path)
    return str(folder)
