"""The children of a FineTuneJob as manifests: the frozen run, the workspace, one Kubernetes Job per stage.

It decides what a pod looks like and may do. When a child is made is `plan`'s business.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from finetune_api import labels, uris
from finetune_api.exits import PERMANENT
from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec, Metadata, Source
from finetune_operator.facts import StageName, timestamp
from finetune_operator.settings import Settings

Object = dict[str, Any]

USER = 10001
"""Numeric, so that the kubelet can check runAsNonRoot without reading the image."""
TRAIN_GRACE_SECONDS = 120
"""Time for a checkpoint after SIGTERM."""
GRACE_SECONDS = 30

RUN_PART = "run"
WORKSPACE_PART = "workspace"


def frozen_run(
    metadata: Metadata, spec: FineTuneJobSpec, settings: Settings, artifacts: Mapping[str, str] = MappingProxyType({})
) -> Run:
    """The run as it will stay: defaults resolved, image chosen, mounts named, and `artifacts` in place of the jobs that
    the spec names."""
    spec = spec.resolved().with_artifacts(artifacts)
    return Run(
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        spec=spec,
        trainer_image=settings.trainer_image,
        mounts={root: _folder(root) for stage in ("prepare", "publish") for root in roots(spec, stage)},
    )


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


def run_config_map(run: Run) -> Object:
    """The run file. Immutable: what a pod reads on its second attempt is what it read on its first."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(run, RUN_PART),
        "immutable": True,
        "data": {labels.RUN_FILE: run.model_dump_json(by_alias=True, exclude_none=True)},
    }


def workspace_claim(run: Run) -> Object:
    """The volume that the stages share."""
    workspace = run.spec.resources.workspace
    spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": workspace.size}}}
    if workspace.storage_class_name:
        spec["storageClassName"] = workspace.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(run, WORKSPACE_PART),
        "spec": spec,
    }


def stage_job(run: Run, stage: StageName, settings: Settings) -> Object:
    """The Kubernetes Job of one stage. It rides out disruption and retries alone, with the operator down too."""
    metadata = _metadata(run, stage)
    metadata["labels"][labels.STAGE_LABEL] = stage
    pod_labels = dict(metadata["labels"])
    spec: Object = {
        "backoffLimit": run.spec.retry.limit,
        "completions": 1,
        "parallelism": 1,
        # Never two pods on one workspace: the next one waits until the last has ended.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [_permanent_failures(), _disruptions()]},
        "template": {"metadata": {"labels": pod_labels}, "spec": _pod(run, stage, settings)},
    }
    queue = run.spec.scheduling.queue
    if queue and stage == "train":
        # Kueue starts it; from then on `suspend` is Kueue's.
        metadata["labels"][labels.KUEUE_QUEUE_LABEL] = queue
        spec["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def event(metadata: Metadata, type: str, reason: str, message: str, now: datetime) -> Object:
    """A Kubernetes Event about the job. Named after its content and second, so that a repeated write is one Event."""
    content = hashlib.sha256(message.encode()).hexdigest()[:6]
    about = {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "name": metadata.name,
        "namespace": metadata.namespace,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata.name}.{metadata.uid[:5]}.{reason.lower()}.{int(now.timestamp()):x}.{content}",
            "namespace": metadata.namespace,
        },
        "involvedObject": about | {"uid": metadata.uid},
        "type": type,
        "reason": reason,
        "message": message[:1024],
        "source": {"component": labels.MANAGED_BY},
        "reportingComponent": labels.MANAGED_BY,
        "reportingInstance": labels.MANAGED_BY,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }


def _permanent_failures() -> Object:
    codes = {"containerName": labels.CONTAINER, "operator": "In", "values": sorted(int(code) for code in PERMANENT)}
    return {"action": "FailJob", "onExitCodes": codes}


def _disruptions() -> Object:
    """Preemption, eviction and lost nodes are not the run's fault: they do not count as tries."""
    return {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def _metadata(run: Run, part: str) -> Object:
    owner = {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "name": run.name,
        "uid": run.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": labels.child_name(run.name, run.uid, part),
        "namespace": run.namespace,
        "labels": {
            labels.MANAGED_BY_LABEL: labels.MANAGED_BY,
            labels.JOB_LABEL: run.name,
            labels.JOB_UID_LABEL: run.uid,
        },
        "ownerReferences": [owner],
    }


def _pod(run: Run, stage: StageName, settings: Settings) -> Object:
    scheduling = run.spec.scheduling
    volumes, mounts = _volumes(run, stage)
    spec: Object = {
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
        "containers": [_container(run, stage, settings, mounts)],
        "volumes": volumes,
    }
    optional = {
        "nodeSelector": scheduling.node_selector,
        "tolerations": [toleration.to_wire() for toleration in scheduling.tolerations],
        "priorityClassName": scheduling.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
    }
    return spec | {name: value for name, value in optional.items() if value}


def _container(run: Run, stage: StageName, settings: Settings, mounts: list[Object]) -> Object:
    resources = _resources(run.spec, stage)
    return {
        "name": labels.CONTAINER,
        "image": run.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [stage, "--run", f"{labels.RUN_DIRECTORY}/{labels.RUN_FILE}", "--port", str(settings.trainer_port)],
        "env": [{"name": name, "value": value} for name, value in _environment(run.spec).items()],
        "ports": [{"name": "progress", "containerPort": settings.trainer_port}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": labels.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
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


def _volumes(run: Run, stage: StageName) -> tuple[list[Object], list[Object]]:
    """Volumes and their mounts, each claim once."""
    name = labels.child_name(run.name, run.uid, RUN_PART)
    claim = labels.child_name(run.name, run.uid, WORKSPACE_PART)
    volumes: list[Object] = [
        {"name": "run", "configMap": {"name": name}},
        {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts: list[Object] = [
        {"name": "run", "mountPath": labels.RUN_DIRECTORY, "readOnly": True},
        {"name": "workspace", "mountPath": run.workspace},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if stage == "train":
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for number, (root, is_writable) in enumerate(sorted(roots(run.spec, stage).items())):
        volumes.append({"name": f"place-{number}", **_source(root)})
        mounts.append(
            {"name": f"place-{number}", "mountPath": run.mounts[root]} | ({} if is_writable else {"readOnly": True})
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
