"""The children of a FineTuneJob as manifests: the frozen run, the workspace, one Kubernetes Job per stage.

What a pod looks like stands in `pods`. When a child is made is `plan`'s business.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from finetune_api import labels
from finetune_api.exits import PERMANENT, ExitCode
from finetune_api.run import Run
from finetune_api.spec.job_spec import FineTuneJobSpec, Metadata
from finetune_api.stages import StageName
from finetune_api.status import Dependency, PinnedRun, StageStatus
from finetune_api.text import printable_lines
from finetune_operator.observed_state import timestamp
from finetune_operator.pods import RUN_PART, WORKSPACE_PART, kueue_labels, mounts, pod_template
from finetune_operator.settings import Settings
from finetune_operator.stages import TRAITS

Object = dict[str, Any]

TTL_SECONDS = 2**31 - 1
"""The longest that Kubernetes takes: 68 years."""


def run_name(metadata: Metadata) -> str:
    """Of the ConfigMap that holds the frozen run."""
    return labels.child_name(metadata.name, metadata.uid, RUN_PART)


def workspace_name(metadata: Metadata) -> str:
    """Of the claim that the stages share."""
    return labels.child_name(metadata.name, metadata.uid, WORKSPACE_PART)


def frozen_run(metadata: Metadata, spec: FineTuneJobSpec, settings: Settings, needed: Sequence[Dependency] = ()) -> Run:
    """The run as it will stay: defaults resolved, image chosen, mounts named, and what they published in place of the
    jobs that the spec names."""
    spec = spec.resolved().with_artifacts({one.name: one.uri for one in needed})
    return Run(
        name=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        spec=spec,
        trainer_image=settings.trainer_image,
        mounts=mounts(spec),
        digests={one.uri: one.digest for one in needed if one.digest},
        downloads=settings.downloads,
    )


def run_config_map(metadata: Metadata, run: Run) -> Object:
    """The run file. Immutable: what a pod reads on its second attempt is what it read on its first."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(metadata, run_name(metadata)),
        "immutable": True,
        "data": {labels.RUN_FILE: run.model_dump_json(by_alias=True, exclude_none=True)},
    }


def run_text(config_map: Object) -> str:
    """The run file in it."""
    return str(config_map["data"][labels.RUN_FILE])


def workspace_claim(metadata: Metadata, spec: FineTuneJobSpec) -> Object:
    """The volume that the stages share."""
    workspace = spec.resources.workspace
    claim: Object = {
        "accessModes": list(workspace.access_modes or ["ReadWriteOnce"]),
        "resources": {"requests": {"storage": workspace.size}},
    }
    if workspace.storage_class_name:
        claim["storageClassName"] = workspace.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(metadata, workspace_name(metadata)),
        "spec": claim,
    }


def inputs(spec: FineTuneJobSpec) -> str:
    """A digest of that part of the spec which pods are made from and which may be edited. What is at its default is
    left out: a field more, in another release, changes no digest."""
    template = spec.pod_template.model_dump(mode="json", exclude_unset=True) if spec.pod_template else None
    written = {
        "scheduling": spec.scheduling.model_dump(mode="json", exclude_defaults=True),
        "resources": [spec.resources.cpu, spec.resources.memory],
        "podTemplate": template,  # without defaults, and with nulls that mean something
    }
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


def stage_job(
    owner: Metadata, spec: FineTuneJobSpec, stage: StageName, at: StageStatus, run: PinnedRun, settings: Settings
) -> Object:
    """A Kubernetes Job of a stage. It rides out disruption and retries alone, with the operator down too; that operator
    makes another one, `at.number` + 1, where this one's back-off would waste time."""
    metadata = _metadata(owner, labels.stage_job_name(owner.name, owner.uid, stage, at.number))
    metadata["labels"][labels.STAGE_LABEL] = stage
    metadata["annotations"] = {labels.INPUTS_ANNOTATION: inputs(spec)}
    template = pod_template(owner, spec, stage, run.image or settings.trainer_image, settings)
    told = {labels.RUN_DIGEST_VARIABLE: run.digest, labels.MEMORY_VARIABLE: spec.resources.memory}
    template["spec"]["containers"][0]["env"] += [{"name": name, "value": value} for name, value in told.items()]
    body: Object = {
        "backoffLimit": max(0, spec.retry.limit - at.tries),
        "completions": 1,
        "parallelism": 1,
        # Never two pods on one workspace: the next one waits until the last has ended.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [_disruptions(), _permanent_failures(), _stops()]},
        # Said, so that no policy of the cluster says less: it lives as long as the FineTuneJob.
        "ttlSecondsAfterFinished": TTL_SECONDS,
        "template": template,
    }
    if TRAITS[stage].is_training:
        metadata["labels"] |= kueue_labels(owner, spec)
    if labels.KUEUE_QUEUE_LABEL in metadata["labels"]:
        # Kueue starts it; from then on `suspend` is Kueue's.
        body["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": body}


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
        "message": printable_lines(message)[:1024],
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


def _stops() -> Object:
    """A trainer that was told to stop, and did, has not failed, whoever told it."""
    codes = sorted((int(ExitCode.STOPPED), int(ExitCode.TERMINATED)))
    return {"action": "Ignore", "onExitCodes": {"containerName": labels.CONTAINER, "operator": "In", "values": codes}}


def _metadata(owner: Metadata, name: str) -> Object:
    reference = {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels.of_child(owner.name, owner.uid),
        "ownerReferences": [reference],
    }
