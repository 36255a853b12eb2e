"""The places on volumes that a run names, and what goes wrong there in words for their owner.

It decides which field an error of the file system belongs to, whether another try can help, and how it is told. Where
a path may lead is decided in finetune_api.run.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from finetune_api.reasons import Reason
from finetune_api.run import NotPlainError, OutsideError, Run
from finetune_api.spec.references import references
from finetune_trainer.runtime.failures import FULL, Failure

DENIED = (errno.EACCES, errno.EPERM)
UNREACHABLE = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO,
)  # fmt: skip
"""OSError numbers of a network file system that may be back at the next try."""
REFUSING = (*DENIED, *UNREACHABLE, errno.EROFS)
"""What a workspace can do to a run; that a file of ours is missing there is another matter."""
WORKSPACE = "workspace"
WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Named:
    """A place that a run names: the field, what it says, and the reason that a failure there has."""

    field: str
    """As in `spec.model.uri`."""
    uri: str
    reason: Reason

    def failure(self, why: str, *, reason: Reason | None = None, transient: bool = False) -> Failure:
        return Failure(reason or self.reason, f"{self.field}: {self.uri} {why}", transient=transient)

    def located(self, run: Run) -> Path:
        """Its path; raises Failure when it is not mounted or leads out of its mount."""
        return self._inside(lambda: run.locate(self.uri))

    def proven(self, run: Run, path: Path) -> Path:
        """`path`, which was found there; raises Failure when it leads out of the mount."""
        return self._inside(lambda: run.proven(self.uri, path))

    def _inside(self, located: Callable[[], Path]) -> Path:
        try:
            return located()
        except KeyError as error:
            raise Failure(self.reason, f"{self.field}: {error.args[0]} is not mounted") from None
        except NotPlainError as error:
            raise self.failure(str(error), reason=Reason.BAD_SPEC) from None
        except OutsideError as error:
            raise self.failure(str(error)) from None


def places(run: Run) -> Iterator[Named]:
    """Everything of a run that lies on a volume or on this machine."""
    for reference in references(run.spec):
        yield Named(f"{reference.field}.uri", reference.uri, reference.failure)


def told(run: Run, error: OSError) -> Failure | None:
    """The failure that `error` is, when it happened at a place that the run names; None elsewhere. An error of a disk
    that names no file is that of a write, of which the most go to the workspace."""
    if error.errno in FULL:
        return None
    written = run.workspace if error.errno in (errno.EIO, errno.ESTALE, errno.EROFS) else None
    for name in (error.filename2, error.filename or written):  # of a copy the second name is the new file's
        if isinstance(name, str | bytes | os.PathLike):
            path = Path(os.fsdecode(name))
            found = _owner(run, path)
            if found is not None and (found.field != WORKSPACE or error.errno in REFUSING):
                why, transient = explained(error, path), error.errno in UNREACHABLE
                return Failure(found.reason, f"{found.field}: {found.uri}: {why}", transient=transient)
    return None


def explained(error: OSError, path: Path) -> str:
    """`error`, which happened at `path`, in words."""
    if error.errno in DENIED:
        return _refused(path)
    if error.errno == errno.EROFS:
        return f"{path}: the volume is read-only"
    why = error.strerror or str(error)
    return f"{path}: {why}: the storage does not answer" if error.errno in UNREACHABLE else f"{path}: {why}"


def _owner(run: Run, path: Path) -> Named | None:
    """The place that `path` belongs to: the deepest that holds it, else one that lies below it, else the workspace."""
    found = [(place, where) for place in places(run) if (where := _where(run, place)) is not None]
    workspace = Named(WORKSPACE, run.workspace, Reason.OUTPUT_NOT_WRITABLE)
    holding = [(where, place) for place, where in [*found, (workspace, Path(run.workspace))] if _holds(where, path)]
    if holding:
        return max(holding, key=lambda pair: len(pair[0].parts))[1]
    return next((place for place, where in found if _holds(path, where)), None)


def _where(run: Run, place: Named) -> Path | None:
    try:
        path = run.locate(place.uri)
    except (KeyError, OutsideError):  # on the network it is mounted nowhere
        return None
    if os.path.lexists(path):
        return path
    return Path(*takewhile(lambda part: not WILD.search(part), path.parts))  # of a pattern: the folder it begins in


def _holds(folder: Path, path: Path) -> bool:
    real = os.path.realpath
    return path.is_relative_to(folder) or Path(real(path)).is_relative_to(real(folder))


def _refused(path: Path) -> str:
    """Who may not do what, and whose it is: what somebody needs to know who is to mend it."""
    culprit, lacking = _culprit(path)
    try:
        found = culprit.stat()
        whose = f"it belongs to uid {found.st_uid}, gid {found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o}"
    except OSError as error:
        whose = f"its owner cannot be read either ({error.strerror})"
    groups = ", ".join(map(str, sorted(os.getgroups()))) or "none"
    who = f"uid {os.geteuid()}, gid {os.getegid()} (groups {groups})"
    if lacking is None:
        return f"{culprit} is refused to {who}: {whose}; an ACL, a label or the storage's own rules forbid it"
    return f"{culprit} is not {lacking} for {who}: {whose}; change its owner or mode on the volume"


def _culprit(path: Path) -> tuple[Path, str | None]:
    """What on the way to `path` forbids it, and what it is not; None where the modes allow all."""
    for folder in reversed(path.parents):
        if os.path.lexists(folder) and not os.access(folder, os.X_OK):
            return folder, "searchable"
    while not os.path.lexists(path):
        path = path.parent
    checks = [(os.R_OK, "readable"), (os.X_OK, "searchable"), (os.W_OK, "writable")]
    for wish, word in checks if path.is_dir() else checks[::2]:
        if not os.access(path, wish):
            return path, word
    return path, None
