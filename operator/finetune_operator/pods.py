"""What a stage's pod looks like: container, resources, environment, security, volumes, scheduling.

It follows from the job's own spec and the platform's settings, never from the run file: whoever may write ConfigMaps in
a namespace decides nothing about Secrets and mounts.
"""

import math
from collections.abc import Iterable
from typing import Any

from finetune_api import labels, uris
from finetune_api.spec import FineTuneJobSpec, Metadata, Source
from finetune_operator.facts import StageName
from finetune_operator.settings import Settings

Object = dict[str, Any]

USER = 10001
"""Numeric, so that the kubelet can check runAsNonRoot without reading the image."""
TRAIN_GRACE_SECONDS = 120
"""Time for a checkpoint after SIGTERM."""
GRACE_SECONDS = 30

RUN_PART = "run"
WORKSPACE_PART = "workspace"


def roots(spec: FineTuneJobSpec, stage: str) -> dict[str, bool]:
    """What a stage's pod mounts beside the workspace, and whether it may write there.

    Only `prepare` sees the data, the adapters to start from and the credentials; `train` sees neither them nor the
    output.
    """
    mounts: dict[str, bool] = {}
    if stage == "prepare":
        mounts |= dict.fromkeys(_mountable(_read_by_prepare(spec)), False) | {
            f"secret://{name}": False for name in _secrets(spec)
        }
    mounts |= dict.fromkeys(_mountable([spec.model.uri]), False)
    if stage != "train":
        mounts |= dict.fromkeys(_mountable([spec.output.uri]), True)
    return mounts


def mounts(spec: FineTuneJobSpec) -> dict[str, str]:
    """Where each root that a stage may need is mounted: what the run file tells the trainer."""
    return {root: _folder(root) for stage in ("prepare", "publish") for root in roots(spec, stage)}


def pod_template(metadata: Metadata, spec: FineTuneJobSpec, stage: StageName, image: str, settings: Settings) -> Object:
    """The template of a stage's pods. `metadata` and `spec` are the FineTuneJob's own, `job://` replaced."""
    pod_labels = {**labels.of_child(metadata.name, metadata.uid), labels.STAGE_LABEL: stage}
    return {"metadata": {"labels": pod_labels}, "spec": _pod(metadata, spec, stage, image, settings)}


def _pod(metadata: Metadata, spec: FineTuneJobSpec, stage: StageName, image: str, settings: Settings) -> Object:
    scheduling = spec.scheduling
    volumes, volume_mounts = _volumes(metadata, spec, stage)
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TRAIN_GRACE_SECONDS if stage == "train" else GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, stage, image, settings) | {"volumeMounts": volume_mounts}],
        "volumes": volumes,
    }
    optional = {
        "nodeSelector": scheduling.node_selector,
        "tolerations": [toleration.to_wire() for toleration in scheduling.tolerations],
        "priorityClassName": scheduling.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
    }
    return pod | {name: value for name, value in optional.items() if value}


def _container(spec: FineTuneJobSpec, stage: StageName, image: str, settings: Settings) -> Object:
    resources = _resources(spec, stage)
    return {
        "name": labels.CONTAINER,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [stage, "--run", f"{labels.RUN_DIRECTORY}/{labels.RUN_FILE}", "--port", str(settings.trainer_port)],
        "env": [{"name": name, "value": value} for name, value in _environment(spec).items()],
        "ports": [{"name": "progress", "containerPort": settings.trainer_port}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": labels.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }


def _resources(spec: FineTuneJobSpec, stage: StageName) -> dict[str, str]:
    wanted = {"cpu": spec.resources.cpu, "memory": spec.resources.memory}
    if stage == "train" and spec.resources.gpus:
        wanted[spec.resources.gpu_resource] = str(spec.resources.gpus)
    return wanted


def _environment(spec: FineTuneJobSpec) -> dict[str, str]:
    """Only what libraries read before the trainer could tell them; the run itself is in the run file."""
    environment = {
        "HOME": "/tmp",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": str(_threads(spec)),
    }
    if not any(uri.startswith("hf://") for uri in [spec.model.uri, *_read_by_prepare(spec)]):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _threads(spec: FineTuneJobSpec) -> int:
    """Arithmetic threads for the CPU limit, a started core counted whole: a library would count the node's cores."""
    cpu = spec.resources.cpu
    cores = float(cpu.rstrip("kKMGTPim"))
    return max(1, math.ceil(cores / 1000 if cpu.endswith("m") else cores))


def _volumes(metadata: Metadata, spec: FineTuneJobSpec, stage: StageName) -> tuple[list[Object], list[Object]]:
    """Volumes and their mounts, each claim once."""
    name = labels.child_name(metadata.name, metadata.uid, RUN_PART)
    claim = labels.child_name(metadata.name, metadata.uid, WORKSPACE_PART)
    volumes: list[Object] = [
        {"name": "run", "configMap": {"name": name}},
        {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts: list[Object] = [
        {"name": "run", "mountPath": labels.RUN_DIRECTORY, "readOnly": True},
        {"name": "workspace", "mountPath": labels.WORKSPACE},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if stage == "train":
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for number, (root, is_writable) in enumerate(sorted(roots(spec, stage).items())):
        volumes.append({"name": f"place-{number}", **_source(root)})
        mounts.append(
            {"name": f"place-{number}", "mountPath": _folder(root)} | ({} if is_writable else {"readOnly": True})
        )
    return volumes, mounts


def _source(root: str) -> Object:
    place = uris.parse(root)
    if place.scheme == "pvc":
        return {"persistentVolumeClaim": {"claimName": place.name}}
    if place.scheme == "configmap":
        return {"configMap": {"name": place.name}}
    # Readable by the pod's group alone, which is the trainer's.
    return {"secret": {"secretName": place.name, "defaultMode": 0o440}}


_FOLDERS = {"pvc": "/volumes", "configmap": "/configmaps", "secret": "/secrets"}


def _folder(root: str) -> str:
    place = uris.parse(root)
    return f"{_FOLDERS[place.scheme]}/{place.name}"


def _sources(spec: FineTuneJobSpec) -> list[Source]:
    splits = [spec.dataset.train, spec.dataset.validation.sources or [], spec.dataset.test.sources or []]
    return [source for sources in splits for source in sources]


def _read_by_prepare(spec: FineTuneJobSpec) -> list[str]:
    """URIs of what no other stage reads."""
    return [source.uri for source in _sources(spec)] + [adapter.uri for adapter in spec.method.options.adapters]


def _secrets(spec: FineTuneJobSpec) -> list[str]:
    auths = [spec.model.auth, *(source.auth for source in _sources(spec))]
    auths += [adapter.auth for adapter in spec.method.options.adapters]
    return sorted({auth.secret_name for auth in auths if auth is not None})


def _mountable(names: Iterable[str]) -> list[str]:
    places = [uris.parse(name) for name in names]
    return sorted({place.root for place in places if place.scheme in ("pvc", "configmap")})
