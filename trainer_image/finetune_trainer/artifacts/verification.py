"""A published folder, read back from its storage: every file has to be what the manifest says."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import sha256
from finetune_trainer.storage.output import MANIFEST


def verify(folder: Path) -> None:
    """Read a published folder back from its storage; raises Failure unless every file is what the manifest says."""
    files = json.loads((folder / MANIFEST).read_bytes())["files"]
    found = {str(path.relative_to(folder)) for path in files_in(folder)} - {MANIFEST}
    if found != set(files):
        names = ", ".join(sorted(found ^ set(files)))
        raise Failure(Reason.ARTIFACT_INVALID, f"the manifest and the folder differ in {names}")
    for name, entry in files.items():
        path = folder / name
        _forget_cached(path)
        if sha256(path) != entry["sha256"]:
            raise Failure(
                Reason.ARTIFACT_INVALID,
                f"{name}, read back, differs from what was written: the storage is not to be trusted",
            )
        if path.suffix == ".safetensors":
            _open_tensors(path, name)


def files_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _forget_cached(path: Path) -> None:
    """Have the next read come from the storage, where the system can be asked for it."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _open_tensors(path: Path, name: str) -> None:
    try:
        with safe_open(path, framework="np") as tensors:
            empty = not list(tensors.keys())
    except SafetensorError as error:
        raise Failure(Reason.ARTIFACT_INVALID, f"{name} is not a safetensors file: {error}") from error
    if empty:
        raise Failure(Reason.ARTIFACT_INVALID, f"{name} holds no tensors")
