"""Every reason that a condition can carry, and for each failure the next step that its message ends with.

docs/troubleshooting.md explains each one; a test keeps that page complete.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    """The conditions of a FineTuneJob. They are the truth; `phase` is derived from them for people."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    PROGRESSING = "Progressing"
    SUSPENDED = "Suspended"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    PUBLISHED = "Published"
    COMPLETE = "Complete"
    FAILED = "Failed"
    # What tools that know kstatus look for (Flux, Argo CD, `kubectl wait`); the latter two are there only while true.
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Phase(StrEnum):
    """One word for `kubectl get`."""

    WAITING = "Waiting"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    TRAINING = "Training"
    SUSPENDED = "Suspended"
    PUBLISHING = "Publishing"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """CamelCase reasons of conditions and events."""

    # The way things should go.
    ACCEPTED = "Accepted"
    PREPARING = "Preparing"
    PREPARED = "Prepared"
    QUEUED = "Queued"
    STARTING = "Starting"
    TRAINING = "Training"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    PUBLISHING = "Publishing"
    PUBLISHED = "Published"
    SUCCEEDED = "Succeeded"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"

    # Interruptions and waits: the job goes on by itself, or as soon as the cause is gone.
    PREEMPTED = "Preempted"
    WAITING_FOR_JOB = "WaitingForJob"
    UNSCHEDULABLE = "Unschedulable"
    NOT_SCHEDULED = "NotScheduled"
    VOLUME_ZONE_CONFLICT = "VolumeZoneConflict"
    POD_NOT_STARTING = "PodNotStarting"
    NODE_LOST = "NodeLost"
    POLICY_DENIED = "PolicyDenied"
    QUOTA_EXCEEDED = "QuotaExceeded"
    JOB_QUOTA_EXCEEDED = "JobQuotaExceeded"
    LIMIT_RANGE = "LimitRange"
    POD_REFERENCE_NOT_FOUND = "PodReferenceNotFound"
    OPERATOR_FORBIDDEN = "OperatorForbidden"
    SERVER_UNAVAILABLE = "ServerUnavailable"
    DEFINITION_OUTDATED = "DefinitionOutdated"
    UNREADABLE = "Unreadable"
    RUN_CHANGED = "RunChanged"
    WORKSPACE_LOST = "WorkspaceLost"
    CONTAINER_LEFT_RUNNING = "ContainerLeftRunning"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    VOLUME_NOT_READY = "VolumeNotReady"
    SECRET_NOT_FOUND = "SecretNotFound"
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    NO_REPORTS = "NoReports"
    STALLED = "Stalled"
    RETRYING = "Retrying"
    EVICTED = "Evicted"
    NAME_CONFLICT = "NameConflict"

    # Failures: the job has ended.
    BAD_SPEC = "BadSpec"
    DEPENDENCY_FAILED = "DependencyFailed"
    DATASET_INVALID = "DatasetInvalid"
    DATASET_UNAVAILABLE = "DatasetUnavailable"
    MODEL_UNAVAILABLE = "ModelUnavailable"
    MODEL_INVALID = "ModelInvalid"
    INPUT_UNAVAILABLE = "InputUnavailable"
    CHECKPOINT_MISMATCH = "CheckpointMismatch"
    ACCESS_DENIED = "AccessDenied"
    UNSUPPORTED = "Unsupported"
    GPU_UNAVAILABLE = "GpuUnavailable"
    OUT_OF_MEMORY = "OutOfMemory"
    DIVERGED = "Diverged"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    ARTIFACT_PUSH_FAILED = "ArtifactPushFailed"
    ARTIFACT_INVALID = "ArtifactInvalid"
    RETRY_LIMIT_EXCEEDED = "RetryLimitExceeded"
    INTERNAL_ERROR = "InternalError"


NEXT_STEP: dict[Reason, str] = {
    Reason.WAITING_FOR_JOB: "Nothing to do: this job goes on as soon as that one has succeeded.",
    Reason.PREEMPTED: "Nothing to do: the run resumes from its last checkpoint.",
    Reason.UNSCHEDULABLE: "Lower spec.resources.cpu or memory, change spec.scheduling, or add a node that fits.",
    Reason.NOT_SCHEDULED: "Mend that scheduler, lift that gate, or change spec.podTemplate.schedulerName.",
    Reason.VOLUME_ZONE_CONFLICT: (
        "A bound volume stays where it is: change spec.scheduling to its zone, add a node there, or apply the job "
        "under a new name with all stages in one zone."
    ),
    Reason.POD_NOT_STARTING: "Mend what the message names, or keep the job off that node by spec.scheduling.",
    Reason.NODE_LOST: "If the node is gone for good, delete it, or taint it out-of-service; then the run goes on.",
    Reason.POLICY_DENIED: (
        "Meet that policy by spec.podTemplate, or ask who runs it; the job goes on by itself when it is admitted."
    ),
    Reason.QUOTA_EXCEEDED: (
        "Delete what is no longer needed in the namespace, or have its quota raised; where it says `must specify`, set "
        "spec.podTemplate.ephemeralStorage, or have a LimitRange give a default."
    ),
    Reason.JOB_QUOTA_EXCEEDED: "Delete finished Jobs in the namespace, or have its quota of objects raised.",
    Reason.LIMIT_RANGE: (
        "Bring spec.resources.cpu, spec.resources.memory or spec.podTemplate.ephemeralStorage within it, or have the "
        "LimitRange changed; for a workspace of another size apply the job under a new name."
    ),
    Reason.POD_REFERENCE_NOT_FOUND: (
        "Create what the message names, or change spec.scheduling.priorityClassName, "
        "spec.podTemplate.serviceAccountName or spec.podTemplate.runtimeClassName."
    ),
    Reason.OPERATOR_FORBIDDEN: "Upgrade the operator's chart: its Role lacks a right that this operator needs.",
    Reason.SERVER_UNAVAILABLE: "The API server, or a webhook that it asks, fails; the job goes on when it is back.",
    Reason.DEFINITION_OUTDATED: (
        "Upgrade the release of the chart that owns the CustomResourceDefinition, or apply that of this operator."
    ),
    Reason.UNREADABLE: "Run the operator of the release that it was written for, or apply the job under a new name.",
    Reason.RUN_CHANGED: "Nothing is started with it: apply the job under a new name, and see who may write ConfigMaps.",
    Reason.WORKSPACE_LOST: "Restore the claim, or apply the job under a new name.",
    Reason.CONTAINER_LEFT_RUNNING: "The pod is ended soon; have that container end with the trainer, or not injected.",
    Reason.IMAGE_PULL_FAILED: "Check the name of that image and its pull secret.",
    Reason.VOLUME_NOT_READY: "Create the PersistentVolumeClaim that the message names, or mend its storage.",
    Reason.SECRET_NOT_FOUND: "Create the Secret that auth or podTemplate names, with that key, in the job's namespace.",
    Reason.CONFIG_MAP_NOT_FOUND: "Create the ConfigMap that the URI or podTemplate names, with that key.",
    Reason.NO_REPORTS: "The trainer does not answer: look at `finetune logs`.",
    Reason.STALLED: "The step count stands still: look at `finetune logs`; raising spec.restarts starts a new attempt.",
    Reason.RETRYING: "Nothing to do: the stage is tried again.",
    Reason.EVICTED: "Raise spec.podTemplate.ephemeralStorage or spec.resources.memory; it counts as a try.",
    Reason.BAD_SPEC: (
        "Correct that field and raise spec.restarts; where it cannot be changed, apply the job under a new name."
    ),
    Reason.DEPENDENCY_FAILED: "Apply that job again under a new name and name it here, in a new job.",
    Reason.NAME_CONFLICT: "Delete or rename the object in the way: it belongs to somebody else.",
    Reason.DATASET_INVALID: "Correct the records and raise spec.restarts; for other fields apply it under a new name.",
    Reason.DATASET_UNAVAILABLE: "Check dataset URI, path and access, then raise spec.restarts.",
    Reason.MODEL_UNAVAILABLE: "Check spec.model.uri, its revision and access, then raise spec.restarts.",
    Reason.MODEL_INVALID: (
        "Put config.json, a tokenizer and *.safetensors there and raise spec.restarts, or apply a job with another "
        "model."
    ),
    Reason.INPUT_UNAVAILABLE: "Check the URIs that the job names, then raise spec.restarts.",
    Reason.CHECKPOINT_MISMATCH: "The workspace holds another run: apply the job under a new name.",
    Reason.ACCESS_DENIED: "Put a valid `token` into the Secret that auth.secretName names, then raise spec.restarts.",
    Reason.UNSUPPORTED: "Apply a job with a model, objective or method that the message offers.",
    Reason.GPU_UNAVAILABLE: "Check the node's driver and device plugin, then raise spec.restarts.",
    Reason.OUT_OF_MEMORY: (
        "Raise spec.resources.memory and spec.restarts, or apply a job with a lower training.microBatchSize."
    ),
    Reason.DIVERGED: (
        "Apply a job with a lower training.learningRate or a higher warmupRatio; the last good checkpoint is kept."
    ),
    Reason.DEADLINE_EXCEEDED: "Raise spec.deadlineSeconds: the run goes on from its last checkpoint.",
    Reason.OUTPUT_NOT_WRITABLE: "Make room or grant access where the message says, then raise spec.restarts.",
    Reason.ARTIFACT_PUSH_FAILED: (
        "The trained weights are kept on the workspace: check output.uri and its access, then raise spec.restarts."
    ),
    Reason.ARTIFACT_INVALID: (
        "What was read back differs from what was written: mend the storage of output.uri, then raise spec.restarts."
    ),
    Reason.RETRY_LIMIT_EXCEEDED: "Read the reasons in status.attempts; once their cause is gone, raise spec.restarts.",
    Reason.INTERNAL_ERROR: "This is a defect of the trainer or operator: please report it with `finetune logs`.",
}
"""What a person can do, for each reason that asks for something."""
