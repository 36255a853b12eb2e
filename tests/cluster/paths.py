"""Where the local cluster keeps what it makes: caches that outlive it, and the state of the running node."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
CLUSTER = CACHE / "cluster"


class ClusterError(Exception):
    """Something that a person can put right; the message says what, and is all that they are shown."""


def content_key(*parts: Path | str) -> str:
    """Twelve hex digits that change when one of the texts, or the name or content of one of the files, does."""
    digest = hashlib.sha256()
    for part in parts:
        text = part.encode() if isinstance(part, str) else part.name.encode() + b"\0" + part.read_bytes()
        digest.update(text + b"\0")
    return digest.hexdigest()[:12]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file beside `path`, so that two processes never make the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
