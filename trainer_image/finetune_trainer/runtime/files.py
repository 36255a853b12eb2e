"""Files and folders that are whole or not there, even after a crash; digests of them, and words about them.

It decides the order of writes. It knows nothing of what the files mean.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLOCK = 1 << 20


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


def sha256(path: Path) -> str:
    """Of a file's content, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of(content: Any) -> str:
    """sha256 of JSON-ready `content`, the same for equal content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def beside(path: Path) -> str:
    """What lies where `path` should be, for the message that it is missing."""
    parent = next(parent for parent in path.parents if parent.is_dir())
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"; {parent.name or parent} holds: {shown or 'nothing'}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"
