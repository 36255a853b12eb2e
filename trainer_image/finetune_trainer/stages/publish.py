"""The stage `publish`: from the result that train left to a folder for others, written whole, read back and verified.

It decides what is in the artifact and when it counts as published. It trains nothing and changes no trained weight: it
can fail and be tried again without loss. Only merging needs torch.
"""

import errno
import json
import logging
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from finetune_api.events import StageReport
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.stages import PUBLISH
from finetune_api.status import Artifact
from finetune_trainer.artifacts import result as results
from finetune_trainer.artifacts.loss_curve import loss_curve
from finetune_trainer.artifacts.manifest import Publication, manifest, metrics
from finetune_trainer.artifacts.model_card import model_card
from finetune_trainer.artifacts.result import Result
from finetune_trainer.artifacts.verification import files_in, verify
from finetune_trainer.data.prepared import read_prepared, tokenizer_folder
from finetune_trainer.runtime.failures import FULL, Failure, as_os_error
from finetune_trainer.runtime.files import new_folder, sha256
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.volumes import UNREACHABLE
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.storage.output import MANIFEST, cannot_write, check_output, check_room

log = logging.getLogger(__name__)

CARD, METRICS, HISTORY, CURVE, MERGED = "README.md", "metrics.json", "history.jsonl", "loss.png", "merged"
REFUSED = (*FULL, errno.EPERM, errno.EACCES, errno.EROFS)
"""OSError numbers that speak of the place, not of an accident on the way."""
ROOM = 1 << 20
"""Bytes for all that is not weights."""


def publish(run: Run, workspace: Workspace, progress: Progress) -> StageReport:
    """Run the stage; raises Failure."""
    progress.update(activity="writing")
    publication = _publication(run, workspace)
    try:
        with new_folder(publication.target) as draft:
            _write(publication, draft)
            progress.update(activity="verifying")
            verify(draft)
        digest = sha256(publication.target / MANIFEST)
    except Exception as error:
        trouble = as_os_error(error)
        if trouble is None or _is_elsewhere(trouble, publication.target):
            raise  # of the workspace, of the base model, or no error of a disk
        raise _failed(run, trouble) from error
    size = sum(path.stat().st_size for path in files_in(publication.target))
    log.info("published and verified: %s, %d bytes, sha256 of the manifest %s", run.spec.output.uri, size, digest)
    artifact = Artifact(
        uri=run.spec.output.uri, digest=f"sha256:{digest}", size_bytes=size, kind=publication.result.kind
    )
    # Said once more what earlier stages said: their pods may have vanished before anybody read it.
    return StageReport(
        stage=PUBLISH,
        artifact=artifact,
        plan=publication.page.plan,
        data=publication.page.data,
        evaluation=publication.result.evaluation,
    )


def _publication(run: Run, workspace: Workspace) -> Publication:
    page, result = read_prepared(workspace), results.read(workspace.result)
    if page is None or result is None:
        raise Failure(Reason.INPUT_UNAVAILABLE, f"{workspace.result} holds no result: run `train` first")
    if result.identity.uid != run.uid:
        raise Failure(
            Reason.CHECKPOINT_MISMATCH, f"{workspace.result} is the result of another job: use a new workspace"
        )
    target = check_output(run)
    weights = sum(path.stat().st_size for path in files_in(workspace.result))
    base = sum(path.stat().st_size for path in Path(page.model_path).glob("*.safetensors"))
    check_room(run, target, weights + ROOM + (2 * base if _merges(run, result) else 0))
    return Publication(run, workspace, page, result, target)


def _merges(run: Run, result: Result) -> bool:
    return run.spec.output.merge and result.kind == "adapter"  # a whole model has nothing to merge


def _write(publication: Publication, draft: Path) -> None:
    _copy(publication.trained, draft)
    _copy(tokenizer_folder(publication.workspace), draft)
    if _merges(publication.run, publication.result):
        from finetune_trainer.artifacts.merge import merge

        merge(publication.run, publication.page, publication.workspace, draft / MERGED)
        _open_weights(draft / MERGED)
        _copy(tokenizer_folder(publication.workspace), draft / MERGED)
    texts = {
        CARD: model_card(publication.run, publication.page, publication.result),
        METRICS: json.dumps(metrics(publication.result), indent=1) + "\n",
        HISTORY: "".join(
            event.model_dump_json(by_alias=True, exclude_none=True) + "\n" for event in publication.result.state.history
        ),
    }
    for name, text in texts.items():
        (draft / name).write_text(text, encoding="utf-8")
    (draft / CURVE).write_bytes(loss_curve(publication.run.name, publication.result.state))
    for path in files_in(draft):
        path.chmod(0o644)  # readers may be other users than the writer
        _sync(path)
    (draft / MANIFEST).write_text(json.dumps(manifest(publication, draft), indent=1) + "\n", encoding="utf-8")


def _open_weights(folder: Path) -> None:
    """Give weights the mode of the files beside them: safetensors closes what it writes to all but their owner, and a
    server that is to read them is another user."""
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # a storage without modes refuses to set them
            path.chmod(mode)


def _copy(source: Path, target: Path) -> None:
    for path in files_in(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _is_elsewhere(error: OSError, target: Path) -> bool:
    names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return bool(names) and not any(name.is_relative_to(target.parent) for name in names)


def _failed(run: Run, error: OSError) -> Failure:
    if error.errno in REFUSED:
        return cannot_write(run, error)
    message = f"spec.output.uri: writing {run.spec.output.uri} failed: {error.strerror or error}"
    return Failure(Reason.ARTIFACT_PUSH_FAILED, message, transient=error.errno in UNREACHABLE)
