"""What comes over the network: files of the Hugging Face Hub, and what all downloads share.

It decides how a server's answer is told to a person, and what may be tried again. It knows no model and no record.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune_api import proxies, uris
from finetune_api.reasons import Reason
from finetune_api.run import OutsideError, Run
from finetune_api.spec.credentials import Auth
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import megabytes
from finetune_trainer.runtime.volumes import explained

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo

log = logging.getLogger(__name__)

T = TypeVar("T")
PAUSES = (1.0, 4.0)
"""Seconds before the second and the third try of a request."""
PATIENCE = 30
"""Seconds without a byte after which a connection is given up."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP codes of a server that may answer later."""


@dataclass(frozen=True)
class Place:
    """What is fetched, for messages: the field that names it, and the reason that its absence has."""

    uri: str
    field: str
    reason: Reason
    token: str | None = None

    def failure(self, why: str, *, reason: Reason | None = None, transient: bool = False) -> Failure:
        return Failure(reason or self.reason, f"{self.field}: {self.uri} {why}", transient=transient)

    def denied(self, code: int) -> Failure:
        """The server wants other credentials."""
        why = f"refused the token of {self.field}.auth.secretName (HTTP {code})"
        if self.token is None:
            why = f"needs credentials (HTTP {code}): name a Secret with a `token` in {self.field}.auth.secretName"
        return self.failure(why, reason=Reason.ACCESS_DENIED)


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository; `size` in bytes where the hub says it."""

    name: str
    size: int


@dataclass(frozen=True)
class Repository:
    """A hub repository at one commit."""

    id: str
    kind: str
    commit: str
    files: list[HubFile]


def place(run: Run, uri: str, field: str, reason: Reason, auth: Auth | None) -> Place:
    """Where `uri` is and the token for it; raises AccessDenied when the Secret holds none."""
    if auth is None:
        return Place(uri, field, reason)
    key, secret = auth.key or "token", f"{field}.auth.secretName: the Secret {auth.secret_name}"
    try:
        token = run.secret(auth.secret_name, key).read_text(encoding="utf-8", errors="replace").strip()
    except OutsideError as error:
        raise Failure(Reason.ACCESS_DENIED, f"{secret} {error}") from None
    except PermissionError as error:
        raise Failure(Reason.ACCESS_DENIED, f"{secret}: {explained(error, Path(error.filename))}") from None
    except (KeyError, OSError):
        token = ""
    if not token:
        raise Failure(Reason.ACCESS_DENIED, f"{secret} has no key `{key}`")
    if not all("!" <= char <= "~" for char in token):  # libraries quote a header that they refuse to send
        told = "holds no token: one word of ASCII is wanted, without spaces and line breaks"
        raise Failure(Reason.ACCESS_DENIED, f"{secret}: its key `{key}` {told}")
    return Place(uri, field, reason, token)


def repository(where: Place, kind: str, revision: str | None) -> Repository:
    """Resolve an `hf://` URI to a commit; `kind` is model or dataset."""
    _check_proxies(where)
    from huggingface_hub import HfApi

    name = uris.parse(where.uri).name

    def ask() -> "ModelInfo | DatasetInfo":
        api = HfApi(token=where.token or False)
        return api.repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=PATIENCE)  # type: ignore[return-value]

    info = _hub(where, ask, revision)
    files = [HubFile(file.rfilename, file.size or 0) for file in info.siblings or []]
    return Repository(name, kind, info.sha or "", files)


def fetch(where: Place, source: Repository, files: list[HubFile], folder: Path) -> None:
    """Download `files` into `folder`; what an earlier try left there is continued."""
    outside = next((file.name for file in files if not uris.is_plain(file.name)), None)
    if outside is not None:
        raise where.failure(f"names a file by no plain path: {outside}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # the log says how far it is, also where there is no terminal
    with watched(folder, where.uri, sum(file.size for file in files)):
        for file in files:
            name = file.name
            _hub(
                where,
                lambda name=name: hf_hub_download(  # type: ignore[misc]
                    source.id,
                    name,
                    repo_type=source.kind,
                    revision=source.commit,
                    local_dir=folder,
                    token=where.token or False,
                ),
                source.commit,
            )


def _check_proxies(where: Place) -> None:
    """The hub's client quotes the address of a proxy that it cannot use, with the password in it."""
    try:
        for proxy in proxies.named(os.environ):
            proxies.over_http(proxy)
    except proxies.ProxyError as error:
        raise where.failure(f"cannot be reached: {error}") from None


def answered(where: Place, code: int) -> Failure:
    if code in (401, 403):
        return where.denied(code)
    if code in (404, 410):
        return where.failure(f"does not exist (HTTP {code})")
    return where.failure(f"cannot be read (HTTP {code})", transient=code in BUSY)


def _hub(where: Place, ask: Callable[[], T], revision: str | None) -> T:
    return retried(where, lambda: _asked(where, ask, revision))


def _asked(where: Place, ask: Callable[[], T], revision: str | None) -> T:
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError:
        why = f"is gated: accept its terms on the hub, and name a Secret with a token in {where.field}.auth.secretName"
        raise where.failure(why, reason=Reason.ACCESS_DENIED) from None
    except errors.RevisionNotFoundError:
        raise where.failure(f"has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise where.failure("does not exist, or is private and its token is missing or has no access") from None
    except errors.HFValidationError as error:
        raise where.failure(f"is not a name that a hub can have: {error}", reason=Reason.BAD_SPEC) from None
    except errors.OfflineModeIsEnabled:
        raise where.failure("cannot be fetched: HF_HUB_OFFLINE is set") from None
    except errors.HfHubHTTPError as error:
        raise answered(where, error.response.status_code if error.response is not None else 0) from None
    except errors.LocalEntryNotFoundError as error:
        raise where.failure(f"cannot be reached: {error.__cause__ or error}", transient=True) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise where.failure(f"cannot be reached: {error}", transient=True) from None


def retried(where: Place, ask: Callable[[], T]) -> T:
    for pause in PAUSES:
        try:
            return ask()
        except Failure as failure:
            if not failure.transient:
                raise
            log.warning("%s; trying again in %.0f s", failure.message, pause)
            time.sleep(pause)
    return ask()


@contextmanager
def watched(path: Path, uri: str, total: int) -> Iterator[None]:
    """Log every few seconds how much of `total` bytes has come."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(5):
            log.info(
                "fetching %s: %s of %s", uri, megabytes(_size(path)), megabytes(total) if total else "unknown size"
            )

    log.info("fetching %s%s", uri, f", {megabytes(total)}" if total else "")
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size(path: Path) -> int:
    try:
        return (
            sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            if path.is_dir()
            else path.stat().st_size
        )
    except OSError:  # a file was renamed in between
        return 0
