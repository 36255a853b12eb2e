"""What a stage's pod looks like: container, resources, environment, security, volumes, scheduling.

It follows from the job's own spec and the platform's settings, never from the run file: whoever may write ConfigMaps in
a namespace decides nothing about Secrets and mounts.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from finetune_api import labels, uris
from finetune_api.quantities import bytes_of
from finetune_api.spec.job_spec import FineTuneJobSpec, Metadata
from finetune_api.spec.pod_template import OWN_VOLUME_PREFIX, is_own_label
from finetune_api.spec.references import references
from finetune_api.stages import PREPARE, STAGES, StageName
from finetune_operator.settings import Settings
from finetune_operator.stages import TRAITS
from finetune_operator.templates import merged

Object = dict[str, Any]

USER = 10001
"""Numeric, so that the kubelet can check runAsNonRoot without reading the image."""
TMP_LIMIT = "4Gi"
"""Of /tmp, unless a template's ephemeralStorage.limit says otherwise. Downloads go to the workspace: what is left are
caches of libraries."""
DISK = "ephemeral-storage"

RUN_PART = "run"
WORKSPACE_PART = "workspace"


def roots(spec: FineTuneJobSpec, stage: StageName) -> dict[str, bool]:
    """What a stage's pod mounts beside the workspace, and whether it may write there.

    Only `prepare` sees the data, the adapters to start from and the credentials; `train` sees neither them nor the
    output.
    """
    mounts: dict[str, bool] = {}
    for reference in references(spec):
        if stage not in reference.stages:
            continue
        if reference.root is not None:
            mounts[reference.root] = mounts.get(reference.root, False) or reference.is_written
        if reference.secret is not None and stage == PREPARE:
            mounts[reference.secret] = False
    return mounts


def mounts(spec: FineTuneJobSpec) -> dict[str, str]:
    """Where each root that a stage may need is mounted: what the run file tells the trainer."""
    return {root: _folder(root) for stage in STAGES for root in roots(spec, stage)}


def pod_template(metadata: Metadata, spec: FineTuneJobSpec, stage: StageName, image: str, settings: Settings) -> Object:
    """The template of a stage's pods.

    `metadata` and `spec` are the FineTuneJob's own as they are now, `job://` replaced: what a pod may mount follows
    from what its author was admitted with.
    """
    said = merged(stage, _own(spec, stage, settings), settings.pod_template, spec)
    return {
        "metadata": _pod_metadata(metadata, stage, said.get("metadata", {}), settings),
        "spec": _pod(metadata, spec, stage, image, settings, said),
    }


def kueue_labels(metadata: Metadata, spec: FineTuneJobSpec) -> dict[str, str]:
    """The labels by which Kueue admits the train Job: those of the FineTuneJob, as on every workload of Kueue, and
    scheduling.queue, which outweighs them."""
    names = (labels.KUEUE_QUEUE_LABEL, labels.KUEUE_PRIORITY_LABEL)
    found = {name: metadata.labels[name] for name in names if name in metadata.labels}
    return found | ({labels.KUEUE_QUEUE_LABEL: spec.scheduling.queue} if spec.scheduling.queue else {})


def _own(spec: FineTuneJobSpec, stage: StageName, settings: Settings) -> Object:
    """What platform and job may say otherwise."""
    ids = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
    return {
        "terminationGracePeriodSeconds": TRAITS[stage].grace_seconds,
        "securityContext": ids,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "env": [{"name": name, "value": value} for name, value in environment(spec).items()],
    }


def _pod_metadata(metadata: Metadata, stage: StageName, said: Object, settings: Settings) -> Object:
    """Ours last: by our labels a pod is found, and nobody else's may say whose it is."""
    own = {**labels.of_child(metadata.name, metadata.uid), labels.STAGE_LABEL: stage}
    found = {
        "labels": _copied(metadata.labels, settings.copy_labels) | said.get("labels", {}) | own,
        "annotations": _copied(metadata.annotations, settings.copy_annotations) | said.get("annotations", {}),
    }
    return {name: value for name, value in found.items() if value}


def _copied(found: Mapping[str, str], allowed: Iterable[str]) -> dict[str, str]:
    """Those that the platform's list names, exactly or as `prefix/*`, without those that are nobody's to give."""
    names = set(allowed)
    wanted = {key: value for key, value in found.items() if key in names or f"{key.rpartition('/')[0]}/*" in names}
    return {key: value for key, value in wanted.items() if not is_own_label(key)}


PASSED_ON = (
    "serviceAccountName",
    "runtimeClassName",
    "schedulerName",
    "nodeSelector",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "imagePullSecrets",
)
"""Fields of a template that stand in a pod as they are."""


def _pod(
    metadata: Metadata, spec: FineTuneJobSpec, stage: StageName, image: str, settings: Settings, said: Object
) -> Object:
    ids = {name: value for name, value in said["securityContext"].items() if value is not None}
    mounts = _own_mounts(spec, stage) + said.get("volumeMounts", [])
    mounted = {mount["name"] for mount in mounts}
    own_volumes = _own_volumes(metadata, spec, stage, said)
    container = _container(spec, stage, image, settings, said) | {"volumeMounts": mounts}
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": said["terminationGracePeriodSeconds"],
        "securityContext": ids | {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": own_volumes + [volume for volume in said.get("volumes", []) if volume["name"] in mounted],
    }
    optional = {name: said.get(name) for name in PASSED_ON} | {"priorityClassName": spec.scheduling.priority_class_name}
    return pod | {name: value for name, value in optional.items() if value}


def _container(spec: FineTuneJobSpec, stage: StageName, image: str, settings: Settings, said: Object) -> Object:
    return {
        "name": labels.CONTAINER,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [stage, "--run", f"{labels.RUN_DIRECTORY}/{labels.RUN_FILE}", "--port", str(settings.trainer_port)],
        "env": said["env"],
        "ports": [{"name": "progress", "containerPort": settings.trainer_port}],
        "resources": _resources(spec, stage, said.get("ephemeralStorage", {})),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": labels.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }


def _resources(spec: FineTuneJobSpec, stage: StageName, disk: Object) -> Object:
    wanted = {"cpu": spec.resources.cpu, "memory": spec.resources.memory}
    if TRAITS[stage].is_training and spec.resources.gpus:
        wanted[spec.resources.gpu_resource] = str(spec.resources.gpus)
    if {"request", "limit"} <= disk.keys():  # said at different levels, they may contradict each other
        disk = disk | {"request": min(disk["request"], disk["limit"], key=bytes_of)}
    bounds = {"requests": "request", "limits": "limit"}
    return {kind: wanted | ({DISK: disk[field]} if field in disk else {}) for kind, field in bounds.items()}


def environment(spec: FineTuneJobSpec) -> dict[str, str]:
    """Only what libraries read before the trainer could tell them; the run itself is in the run file."""
    own = {
        "HOME": "/tmp",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": str(_threads(spec)),
    }
    if not any(uri.startswith("hf://") for uri in [reference.uri for reference in references(spec)]):
        return own | {"HF_HUB_OFFLINE": "1"}
    # Nothing is fetched twice, so a cache of downloads would only fill /tmp.
    return own | {"HF_XET_CHUNK_CACHE_SIZE_BYTES": "0"}


def _threads(spec: FineTuneJobSpec) -> int:
    """Arithmetic threads for the CPU limit, a started core counted whole: a library would count the node's cores."""
    cpu = spec.resources.cpu
    cores = float(cpu.rstrip("kKMGTPim"))
    return max(1, math.ceil(cores / 1000 if cpu.endswith("m") else cores))


def _own_volumes(metadata: Metadata, spec: FineTuneJobSpec, stage: StageName, said: Object) -> list[Object]:
    """The trainer's volumes, each claim once. What lies on the node has a limit: a pod that exceeds it is evicted."""
    name = labels.child_name(metadata.name, metadata.uid, RUN_PART)
    claim = labels.child_name(metadata.name, metadata.uid, WORKSPACE_PART)
    volumes: list[Object] = [
        {"name": "run", "configMap": {"name": name}},
        {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "tmp", "emptyDir": {"sizeLimit": said.get("ephemeralStorage", {}).get("limit", TMP_LIMIT)}},
    ]
    if TRAITS[stage].is_training:
        half = bytes_of(spec.resources.memory) // 2
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, half >> 20)}Mi"}})
    # Readable by the pod's group alone, which is the trainer's; by all of the pod where the platform gives the group.
    mode = 0o444 if said["securityContext"].get("fsGroup") is None else 0o440
    places = enumerate(sorted(roots(spec, stage)))
    return volumes + [{"name": f"{OWN_VOLUME_PREFIX}{number}", **_source(root, mode)} for number, root in places]


def _own_mounts(spec: FineTuneJobSpec, stage: StageName) -> list[Object]:
    mounts: list[Object] = [
        {"name": "run", "mountPath": labels.RUN_DIRECTORY, "readOnly": True},
        {"name": "workspace", "mountPath": labels.WORKSPACE},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if TRAITS[stage].is_training:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for number, (root, is_writable) in enumerate(sorted(roots(spec, stage).items())):
        mount = {"name": f"{OWN_VOLUME_PREFIX}{number}", "mountPath": _folder(root)}
        mounts.append(mount | ({} if is_writable else {"readOnly": True}))
    return mounts


def _source(root: str, mode: int) -> Object:
    place = uris.parse(root)
    if place.scheme == "pvc":
        return {"persistentVolumeClaim": {"claimName": place.name}}
    if place.scheme == "configmap":
        return {"configMap": {"name": place.name}}
    return {"secret": {"secretName": place.name, "defaultMode": mode}}


_FOLDERS = {"pvc": "/volumes", "configmap": "/configmaps", "secret": "/secrets"}


def _folder(root: str) -> str:
    place = uris.parse(root)
    return f"{_FOLDERS[place.scheme]}/{place.name}"
