"""What the person who runs the operator decides: read once from flags and environment into a frozen object.

No other module reads the environment or a flag.
"""

import argparse
import os
import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import ValidationError

from finetune_api import labels
from finetune_api.run import MAX_BYTES, TIMEOUT_SECONDS, Downloads
from finetune_api.schema import broken_rules
from finetune_api.spec.pod_template import PodTemplate, is_own_label

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
ENVIRONMENT_PREFIX = "FINETUNE_"
COPIED = re.compile(r"^([a-z0-9][-a-z0-9.]*/(\*|[\w.-]+)|[\w.-]+)$", re.ASCII)
"""A label or annotation by its name, or all of one prefix: `example.com/team`, `example.com/*`."""


@dataclass(frozen=True)
class Settings:
    """Everything that differs between two installations of the operator."""

    trainer_image: str
    namespaces: tuple[str, ...] = ()
    """Served namespaces; empty: the whole cluster."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    pod_template: PodTemplate | None = None
    """What all pods look like, beyond what the operator decides; a job's own podTemplate outweighs it."""
    copy_labels: tuple[str, ...] = ()
    """Labels of a FineTuneJob that its pods get: names, or `prefix/*`."""
    copy_annotations: tuple[str, ...] = ()
    trainer_port: int = labels.PROGRESS_PORT
    leader_elect: bool = False
    lease_namespace: str = "default"
    lease_name: str = labels.MANAGED_BY
    identity: str = "finetune-operator"
    port: int = 8080
    workers: int = 24
    sweep_seconds: float = 300
    progress_seconds: float = 2
    """Shortest time between two readings of one progress page."""
    silent_after: float = 60
    """Seconds without an answer from a running pod until Progressing says NoReports."""
    stalled_after: float = 600
    """Seconds without a step until Progressing says Stalled."""
    container_grace: float = 30
    """Seconds after the trainer's end until a pod is ended that another container keeps alive."""
    log_level: str = "info"
    download_allow: tuple[str, ...] = ()
    """Hosts and networks that `https://` sources may be read from although they are not public."""
    download_max_bytes: int = MAX_BYTES
    download_timeout: int = TIMEOUT_SECONDS

    @property
    def downloads(self) -> Downloads:
        """What a run is frozen with; raises pydantic.ValidationError for a bad flag."""
        return Downloads(
            allow=list(self.download_allow),
            max_bytes=self.download_max_bytes,
            timeout_seconds=self.download_timeout,
        )


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from flags, else from `FINETUNE_*`, else defaults; exits with a usage message on bad input."""
    parser = _parser(environment)
    options = vars(parser.parse_args(arguments))
    if not options["trainer_image"]:
        parser.error("--trainer-image (or FINETUNE_TRAINER_IMAGE) is needed: the image that the stages run")
    options["namespaces"] = _words(options["namespaces"])
    options["image_pull_secrets"] = _words(options["image_pull_secrets"])
    options["download_allow"] = _words(options["download_allow"])
    try:
        options["pod_template"] = _pod_template(options["pod_template"])
        options["copy_labels"] = _copied(options["copy_labels"])
        options["copy_annotations"] = _copied(options["copy_annotations"])
    except ValueError as error:
        parser.error(str(error))
    settings = Settings(**options, identity=f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
    try:
        settings.downloads  # noqa: B018
    except ValidationError as error:
        parser.error("; ".join(f"--download-…: {found['loc'][0]}: {found['msg']}" for found in error.errors()))
    return settings


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    defaults = {field.name: field.default for field in fields(Settings)}
    parser = argparse.ArgumentParser(
        prog="finetune-operator",
        description="Turns FineTuneJobs into fine-tuned models, in the cluster it runs in or the one KUBECONFIG names.",
        epilog=f"Each flag has an environment variable too: --trainer-image is {ENVIRONMENT_PREFIX}TRAINER_IMAGE.",
    )

    def flag(name: str, help: str, type: type = str, default: object = None, **more: object) -> None:
        field = name.replace("-", "_")
        if default is None:
            default = defaults.get(field)
        given = environment.get(ENVIRONMENT_PREFIX + field.upper())
        default = default if given is None else given
        parser.add_argument(f"--{name}", type=type, default=default, help=help, **more)  # type: ignore[arg-type]

    flag("trainer-image", "image of the stages' pods", default="")
    flag("namespaces", "served namespaces, separated by commas; empty: all", default="")
    flag("image-pull-policy", "of the stages' pods", choices=["Always", "IfNotPresent", "Never"])
    flag("image-pull-secrets", "names of pull secrets in the jobs' namespaces, separated by commas", default="")
    flag(
        "pod-template", "JSON of what all pods look like, as spec.podTemplate of a job, which outweighs it", default=""
    )
    flag("copy-labels", "labels of a job that its pods get: names or prefix/*, separated by commas", default="")
    flag("copy-annotations", "annotations of a job that its pods get, likewise", default="")
    flag("trainer-port", "port of the trainer's /progress and /metrics", int)
    flag("lease-namespace", "namespace of the leader election lease", default=_own_namespace(environment))
    flag("lease-name", "name of the leader election lease")
    flag("port", "port of /metrics, /healthz and /readyz; 0 picks a free one", int)
    flag("workers", "jobs that are reconciled at the same time", int)
    flag("sweep-seconds", "every job is looked at again after so many seconds, whatever the watches say", float)
    flag("progress-seconds", "shortest time between two readings of one job's progress", float)
    flag("silent-after", "seconds without an answer from a trainer until its job says NoReports", float)
    flag("stalled-after", "seconds without a training step until its job says Stalled", float)
    flag("container-grace", "seconds after the trainer's end until a pod is ended that others keep alive", float)
    flag(
        "download-allow",
        "hosts, *.domains and networks, separated by commas, that https:// data may come from though not public",
        default="",
    )
    flag("download-max-bytes", "bytes that one https:// file may have", int)
    flag("download-timeout", "seconds that one https:// file may take", int)
    flag("log-level", "how much is logged", choices=["debug", "info", "warning", "error"])
    parser.add_argument(
        "--leader-elect",
        action=argparse.BooleanOptionalAction,
        default=_truth(environment.get(ENVIRONMENT_PREFIX + "LEADER_ELECT"), SERVICE_ACCOUNT_NAMESPACE.exists()),
        help="let one replica work at a time (default: in a cluster)",
    )
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _pod_template(text: str) -> PodTemplate | None:
    """Raises ValueError that names each wrong field."""
    if not text.strip():
        return None
    try:
        template = PodTemplate.model_validate_json(text)
        told = list(broken_rules(template))
    except ValidationError as error:
        told = [f"{_place(one['loc'])}: {one['msg']}" for one in error.errors()]
    if told:
        raise ValueError(f"--pod-template: {'; '.join(told)}")
    return template


def _place(location: tuple[int | str, ...]) -> str:
    """`("env", 0, "name")` as `env[0].name`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part != "[key]")
    return "".join(parts).removeprefix(".") or "the JSON"


def _copied(text: str) -> tuple[str, ...]:
    """Raises ValueError for what cannot be copied."""
    names = _words(text)
    for name in names:
        if not COPIED.match(name):
            raise ValueError(f"{name!r} names no label or annotation to copy: expected name, prefix/name or prefix/*")
        if is_own_label(name) or name.startswith("kubectl.kubernetes.io/"):
            raise ValueError(f"{name} cannot be copied to a job's pods: the operator or Kubernetes sets it")
    return names


def _truth(text: str | None, default: bool) -> bool:
    return default if not text else text.lower() in ("1", "true", "yes", "on")


def _own_namespace(environment: Mapping[str, str]) -> str:
    if "POD_NAMESPACE" in environment:
        return environment["POD_NAMESPACE"]
    return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() if SERVICE_ACCOUNT_NAMESPACE.exists() else "default"
