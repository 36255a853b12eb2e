"""The folder of a local run: its run file, the stages' reports and logs, and a lock.

It decides whether a folder may be used for a job, and whether a run there goes on or is another one.
"""

import fcntl
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api import labels
from finetune_api.events import StageReport
from finetune_api.job import FineTuneJob
from finetune_api.run import Downloads, Run, read_run, report_file
from finetune_api.spec.job_spec import FROZEN, FineTuneJobSpec
from finetune_api.stages import StageName

FOLDER = ".finetune"
"""Folder in the current one that holds the workspaces, unless told otherwise."""
COMPARED = [stanza for stanza in FROZEN if stanza != "resources"]
"""Stanzas that a run cannot change; what a pod may ask for means nothing here."""


class WorkspaceError(Exception):
    """The folder cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class Workspace:
    """One run's folder."""

    root: Path

    @property
    def run_file(self) -> Path:
        return self.root / labels.RUN_FILE

    def log(self, stage: StageName) -> Path:
        """What the stage's process prints."""
        return self.root / "logs" / f"{stage}.log"

    def report(self, stage: StageName) -> StageReport | None:
        """What the stage left at its end; None while there is no end."""
        try:
            return StageReport.model_validate_json(self._report_file(stage).read_bytes())
        except (OSError, ValidationError):
            return None

    def forget(self, stage: StageName) -> None:
        """Drop the report of an earlier attempt: it must not be taken for that of a process that leaves none."""
        self._report_file(stage).unlink(missing_ok=True)

    def _report_file(self, stage: StageName) -> Path:
        return report_file(self.root, stage)

    def known_run(self) -> Run | None:
        """The run that the folder holds; None for an empty one. Raises WorkspaceError for somebody else's folder."""
        try:
            return read_run(self.run_file) if any(self.root.iterdir()) else None
        except FileNotFoundError:
            raise WorkspaceError(f"{self.root} is not empty and no workspace: choose another folder") from None
        except (OSError, ValidationError) as error:
            raise WorkspaceError(f"{self.run_file} cannot be read ({error}): choose another --workspace") from None

    def acquire(self) -> int:
        """Make the folder; returns a descriptor that keeps other runs out while it, or a child's copy, is open."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root, os.O_RDONLY)
        except OSError as error:
            raise WorkspaceError(f"cannot make the workspace {self.root}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise WorkspaceError(f"another run is at work in {self.root}: wait for it, or choose --workspace") from None
        return descriptor

    def clear(self) -> None:
        """Remove what an earlier run left. Raises WorkspaceError for a folder that no run has made."""
        if self.known_run() is not None:
            for path in self.root.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def freeze_run(self, job: FineTuneJob, mounts: dict[str, str], downloads: Downloads | None = None) -> Run:
        """Write the run file, new or again. Raises WorkspaceError if the folder holds another run."""
        spec, known = job.spec.resolved(), self.known_run()
        if known is not None:
            self._refuse_another(known, job.metadata.name, spec)
        run = Run(
            name=job.metadata.name,
            namespace=job.metadata.namespace,
            uid=known.uid if known else str(uuid.uuid4()),
            spec=spec,
            workspace=str(self.root.absolute()),
            mounts=mounts,
            downloads=downloads or Downloads(),
        )
        try:
            draft = self.run_file.with_suffix(".tmp")
            draft.write_text(run.model_dump_json(by_alias=True, exclude_none=True, indent=1))
            draft.replace(self.run_file)
        except OSError as error:
            raise WorkspaceError(f"cannot write {self.run_file}: {error.strerror}") from None
        return run

    def _refuse_another(self, known: Run, name: str, spec: FineTuneJobSpec) -> None:
        changed = [f"spec.{stanza}" for stanza in COMPARED if getattr(known.spec, stanza) != getattr(spec, stanza)]
        if known.name != name:
            changed = ["metadata.name", *changed]
        if changed:
            raise WorkspaceError(
                f"{self.root} holds a run that began with other settings: {', '.join(changed)} changed since. "
                "Take the change back to go on with it, add --fresh to discard it, or choose another --workspace"
            )
