"""The children of a FineTuneJob as manifests: the frozen run, the workspace, one Kubernetes Job per stage.

What a pod looks like stands in `pods`. When a child is made is `plan`'s business.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from finetune_api import labels
from finetune_api.exits import PERMANENT
from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec, Metadata
from finetune_operator.facts import StageName, timestamp
from finetune_operator.pods import RUN_PART, WORKSPACE_PART, kueue_labels, mounts, pod_template
from finetune_operator.settings import Settings

Object = dict[str, Any]


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
        mounts=mounts(spec),
    )


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
    spec: Object = {
        "accessModes": list(workspace.access_modes or ["ReadWriteOnce"]),
        "resources": {"requests": {"storage": workspace.size}},
    }
    if workspace.storage_class_name:
        spec["storageClassName"] = workspace.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(run, WORKSPACE_PART),
        "spec": spec,
    }


def stage_job(owner: Metadata, live: FineTuneJobSpec, run: Run, stage: StageName, settings: Settings) -> Object:
    """The Kubernetes Job of one stage. It rides out disruption and retries alone, with the operator down too.

    `owner` and `live` are the FineTuneJob's metadata and spec as they are now.
    """
    metadata = _metadata(run, stage)
    metadata["labels"][labels.STAGE_LABEL] = stage
    now = run.spec.model_copy(update={"scheduling": live.scheduling, "pod_template": live.pod_template})
    spec: Object = {
        "backoffLimit": run.spec.retry.limit,
        "completions": 1,
        "parallelism": 1,
        # Never two pods on one workspace: the next one waits until the last has ended.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [_permanent_failures(), _disruptions()]},
        "template": pod_template(owner, now, stage, run.trainer_image, settings),
    }
    if stage == "train":
        metadata["labels"] |= kueue_labels(owner, now)
    if labels.KUEUE_QUEUE_LABEL in metadata["labels"]:
        # Kueue starts it; from then on `suspend` is Kueue's.
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
        "labels": labels.of_child(run.name, run.uid),
        "ownerReferences": [owner],
    }
