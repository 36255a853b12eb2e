"""Where things lie on the volume that the stages share, and how they are put there so that a crash leaves no half file.

It decides names and the order of writes. It knows nothing of what the files mean.
"""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.events import Stage
from finetune_api.run import report_file


@dataclass(frozen=True)
class Workspace:
    """The folder of one run."""

    root: Path

    @property
    def prepared(self) -> Path:
        """What prepare made of the dataset; complete when it exists."""
        return self.root / "prepared"

    @property
    def model(self) -> Path:
        """A downloaded base model; complete when it exists."""
        return self.root / "model"

    @property
    def start(self) -> Path:
        """The adapter that training starts from, where it starts from stored ones; complete when it exists."""
        return self.root / "start"

    @property
    def downloads(self) -> Path:
        """Dataset files and adapters that had to be fetched, until they are prepared."""
        return self.root / "downloads"

    @property
    def checkpoints(self) -> Path:
        """Where train saves its state."""
        return self.root / "checkpoints"

    @property
    def result(self) -> Path:
        """What train leaves for publish."""
        return self.root / "result"

    @property
    def bad_records(self) -> Path:
        """Every record that prepare refused, one JSON object a line."""
        return self.root / "bad-records.jsonl"

    def report(self, stage: Stage) -> Path:
        """The last report of `stage`."""
        return report_file(self.root, stage)


def write_file(path: Path, content: bytes | str) -> None:
    """Put `content` at `path` at once: readers see the old file or the whole new one, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A draft folder that becomes `path`, replacing what was there, when the block ends well; else it is removed."""
    remove_drafts(path)
    draft = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        yield draft
        _sync_tree(draft)
        _exchange(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove_drafts(path: Path) -> None:
    """Remove what a killed process left of `path`."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):  # an output's name is its user's
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make renames in the folder durable, where the file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse to sync folders
        pass
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _exchange(draft: Path, path: Path) -> None:
    """Rename `draft` to `path`; a folder cannot be renamed over a full one, so the old one steps aside first."""
    old = path.with_name(f"{path.name}.tmp-old-{os.getpid()}")
    if path.exists():
        path.rename(old)
    draft.rename(path)
    shutil.rmtree(old, ignore_errors=True)
