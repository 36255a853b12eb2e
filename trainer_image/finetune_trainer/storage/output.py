"""The place where the result goes: whether it can be written, and whether what lies there may be replaced.

It decides who owns an output. It writes nothing but a probe.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from finetune_api import uris
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_trainer.runtime.failures import FULL, Failure
from finetune_trainer.runtime.files import megabytes
from finetune_trainer.runtime.volumes import UNREACHABLE, Named, explained

MANIFEST = "manifest.json"
FIELD = "spec.output.uri"


def check_output(run: Run) -> Path:
    """The output folder, links followed, after a trial write beside it; raises OutputNotWritable or BadSpec."""
    where = Named(FIELD, run.spec.output.uri, Reason.OUTPUT_NOT_WRITABLE)
    folder = Path(os.path.realpath(where.located(run)))
    if uris.parse(where.uri).scheme != "file":
        where.proven(run, folder.parent)  # the result is written beside it: it cannot be the volume itself
    try:
        refuse_foreign(run, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _probe(folder if folder.is_dir() else folder.parent)
    except OSError as error:
        raise cannot_write(run, error) from None
    return folder


def refuse_foreign(run: Run, folder: Path) -> None:
    """Raise OutputNotWritable unless `folder` is absent, empty, or the result of an earlier run of the same job."""
    uri = run.spec.output.uri
    if folder.exists() and not folder.is_dir():
        raise Failure(Reason.OUTPUT_NOT_WRITABLE, f"{FIELD}: {uri} is a file, not a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    owner = owner_of(folder)
    if owner is None:
        message = f"{FIELD}: {uri} holds files that no job published: name an empty or new folder"
        raise Failure(Reason.OUTPUT_NOT_WRITABLE, message)
    if owner.get("uid") != run.uid and (owner.get("namespace"), owner.get("name")) != (run.namespace, run.name):
        whose = f"{owner.get('namespace')}/{owner.get('name')}"
        raise Failure(
            Reason.OUTPUT_NOT_WRITABLE, f"{FIELD}: {uri} holds the result of the job {whose}: name another folder"
        )


def owner_of(folder: Path) -> dict[str, Any] | None:
    """`job` of the folder's manifest (name, namespace, uid); None where there is no such manifest."""
    try:
        owner = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["job"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return owner if isinstance(owner, dict) else None


def check_room(run: Run, folder: Path, needed: int) -> None:
    """Raise OutputNotWritable when the result, of about `needed` bytes, does not fit."""
    place = folder if folder.is_dir() else folder.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        told = f"the result needs about {megabytes(needed)} and {megabytes(free)} are free"
        raise Failure(Reason.OUTPUT_NOT_WRITABLE, f"{FIELD}: {run.spec.output.uri}: {told}")


def cannot_write(run: Run, error: OSError) -> Failure:
    """An error while writing the output, in words."""
    place = error.filename2 or error.filename or run.spec.output.uri
    told = "no space left" if error.errno in FULL else explained(error, Path(os.fsdecode(place)))
    message = f"{FIELD}: cannot write {run.spec.output.uri}: {told}"
    return Failure(Reason.OUTPUT_NOT_WRITABLE, message, transient=error.errno in UNREACHABLE)


def _probe(folder: Path) -> None:
    probe = folder / f".finetune-probe-{os.getpid()}"
    try:
        probe.write_bytes(b"\0" * 4096)
    finally:
        probe.unlink(missing_ok=True)
