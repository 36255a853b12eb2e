"""The one file that a trainer pod is given: the whole resolved spec, and where the places that it names are mounted.

The operator (or `finetune run`) writes it once per job; the three stages parse it with the same model. No environment
variable per field.
"""

import hashlib
import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from finetune_api import labels, uris
from finetune_api.schema import ApiModel
from finetune_api.spec.job_spec import FineTuneJobSpec

MAX_BYTES = 100 << 30
TIMEOUT_SECONDS = 6 * 3600
HOSTS = re.compile(r"\*|(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?", re.IGNORECASE)


class OutsideError(ValueError):
    """A path does not stay below its mount; the message, which follows the URI, says where it leads."""


class NotPlainError(OutsideError):
    """It is seen by the path itself, without a look at the volume."""


class Downloads(ApiModel):
    """What an `https://` source may be; the platform team's choice."""

    allow: list[str] = []
    """Hosts (`data.example.com`, `*.example.com`), addresses and networks that may be read although they are not
    public: loopback, link-local and private ones are refused otherwise."""
    max_bytes: Annotated[int, Field(ge=1)] = MAX_BYTES
    """Of one file."""
    timeout_seconds: Annotated[int, Field(ge=1)] = TIMEOUT_SECONDS
    """For one file, from the request to the last byte."""

    @field_validator("allow")
    @classmethod
    def _known(cls, entries: list[str]) -> list[str]:
        wrong = [entry for entry in entries if not (_is_network(entry) or HOSTS.fullmatch(entry))]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: neither a host, *.domain, an address nor a network (10.0.0.0/8)")
        return entries


class Run(ApiModel):
    """A frozen run. It is written once: a later default or a later operator never changes it."""

    name: str
    """The job's name."""
    namespace: str = "default"
    """The job's namespace."""
    uid: str
    """The job's uid: checkpoints and artifacts of another run are told apart by it."""
    spec: FineTuneJobSpec
    """The resolved spec."""
    trainer_image: str = ""
    """Image of all stages; empty for local processes."""
    workspace: str = labels.WORKSPACE
    """Folder that the stages share."""
    mounts: dict[str, str] = {}
    """From `pvc://claim`, `configmap://name` or `secret://name` to the folder where it is mounted."""
    digests: dict[str, str] = {}
    """Of artifacts that the run starts from, by their URI: sha256 of the manifest.json that was there when the job that
    published it was first seen complete."""
    downloads: Downloads = Field(default_factory=Downloads)
    """Where `https://` data may come from, and how much of it."""

    def locate(self, uri: str) -> Path:
        """The local path of a mounted or local `uri`. Raises KeyError when its root is not mounted, and OutsideError
        when it leads out of its mount."""
        parsed = uris.parse(uri)
        if parsed.scheme == "file":
            return Path(parsed.path)  # of the user's own machine: it has no mount
        if parsed.path:
            refuse_unplain(parsed.path)
        return inside(mount := Path(self.mounts[parsed.root]), mount / parsed.path)

    def proven(self, uri: str, path: Path) -> Path:
        """`path`, which was found at or below `uri`, unless it leads out of the mount: then OutsideError is raised."""
        parsed = uris.parse(uri)
        return path if parsed.scheme == "file" else inside(Path(self.mounts[parsed.root]), path)

    def secret(self, name: str, key: str = "token") -> Path:
        """The file that holds `key` of a mounted Secret; raises KeyError and OutsideError as `locate` does."""
        refuse_unplain(key)
        return inside(mount := Path(self.mounts[f"secret://{name}"]), mount / key)


def refuse_unplain(path: str) -> None:
    """Raise NotPlainError for a path that cannot be joined with a folder: `Path("/mount") / "/etc"` is `/etc`."""
    if not uris.is_plain(path):
        raise NotPlainError("leaves its volume: write the path of plain names, without '//', '.' or '..'")


def inside(mount: Path, path: Path) -> Path:
    """`path`, after proof that it lies below `mount` when all symbolic links are followed; raises OutsideError."""
    led = Path(os.path.realpath(path))
    if not led.is_relative_to(os.path.realpath(mount)):
        told = f"{path} leads to {led}, and not below {mount}; remove the link, or name another path"
        raise OutsideError(f"leaves its volume: {told}")
    return path


def _is_network(entry: str) -> bool:
    try:
        ip_network(entry, strict=False)
    except ValueError:
        return False
    return True


def report_file(workspace: Path, stage: str) -> Path:
    """Where a stage leaves its StageReport when it ends, beside the termination message."""
    return workspace / f"{stage}.report.json"


def read_run(path: Path, digest: str = "", memory: str = "") -> Run:
    """Parse a run file; raises OSError, pydantic.ValidationError, or ChangedError when its sha256 is not `digest`.

    `memory` is what the pod has, where that was edited since the run was frozen.
    """
    content = path.read_bytes()
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if digest and found != digest:
        raise ChangedError(f"{path} has the digest {found}, and the job was frozen with {digest}")
    run = Run.model_validate_json(content)
    if not memory:
        return run
    resources = run.spec.resources.model_copy(update={"memory": memory})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"resources": resources})})


class ChangedError(Exception):
    """The run file is not the one that was frozen."""
