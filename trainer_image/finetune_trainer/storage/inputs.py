"""What a run reads, wherever it lies: mounted here, on the Hugging Face Hub, or on a web server.

It decides by the scheme who gets it: a scheme that is fetched is a module of this room and a row of FETCHERS. Which of
the files that are there are wanted is the caller's to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from finetune_api import uris
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec.references import Reference
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.volumes import Named
from finetune_trainer.storage import hub, web

Choice = Callable[[list[hub.HubFile]], list[hub.HubFile]]


@dataclass(frozen=True)
class Fetched:
    """Files that were fetched, all of them in one folder."""

    folder: Path
    names: dict[str, str]
    """Paths below the folder, each with what its owner calls the file."""
    revision: str
    """The commit of the hub; empty where there is none."""


@dataclass(frozen=True)
class Input:
    """One place that a run reads."""

    run: Run
    reference: Reference
    kind: Literal["model", "dataset"]
    """What the hub has to look for."""

    @cached_property
    def uri(self) -> uris.Uri:
        return uris.parse(self.reference.uri)

    @property
    def is_remote(self) -> bool:
        """Whether it has to be fetched."""
        return self.uri.scheme in FETCHERS

    @property
    def named(self) -> Named:
        """The place, where it is mounted."""
        return Named(f"{self.reference.field}.uri", self.reference.uri, self.reference.failure)

    def located(self) -> Path:
        """Its path, where it is mounted; raises Failure when it leads out of its mount."""
        return self.named.located(self.run)

    def proven(self, path: Path) -> Path:
        """`path`, which was found there; raises Failure when it leads out of the mount."""
        return self.named.proven(self.run, path)

    def fetched(self, folder: Path, choose: Choice) -> Fetched:
        """Fetch those of its files that are chosen into `folder`; what an earlier try left there is continued."""
        reference = self.reference
        where = hub.place(self.run, reference.uri, reference.field, reference.failure, reference.auth)
        return FETCHERS[self.uri.scheme](self, where, folder, choose)

    def failure(self, why: str, *, reason: Reason | None = None) -> Failure:
        """That of something that was fetched, or is to be."""
        return Failure(reason or self.reference.failure, f"{self.reference.field}: {self.reference.uri} {why}")


def _of_the_hub(wanted: Input, where: hub.Place, folder: Path, choose: Choice) -> Fetched:
    repository = hub.repository(where, wanted.kind, wanted.reference.revision)
    chosen = choose(repository.files)
    hub.fetch(where, repository, chosen, folder)
    names = {file.name: f"{wanted.uri.root}/{file.name}" for file in chosen}
    return Fetched(folder, names, repository.commit)


def _of_the_web(wanted: Input, where: hub.Place, folder: Path, choose: Choice) -> Fetched:
    path = web.download(where, wanted.run.downloads, folder)
    return Fetched(folder, {path.name: wanted.reference.uri}, "")


FETCHERS = MappingProxyType({"hf": _of_the_hub, "https": _of_the_web})
"""Scheme → what fetches it."""
