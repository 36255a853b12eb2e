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
    EVALUATED = "Evaluated"
    PUBLISHED = "Published"
    COMPLETE = "Complete"
    FAILED = "Failed"


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
    IMAGE_PULL_FAILED = "ImagePullFailed"
    VOLUME_NOT_READY = "VolumeNotReady"
    SECRET_NOT_FOUND = "SecretNotFound"
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    NO_REPORTS = "NoReports"
    STALLED = "Stalled"
    RETRYING = "Retrying"
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
    Reason.UNSCHEDULABLE: "Ask for less in spec.resources, or add a node that fits spec.scheduling.",
    Reason.IMAGE_PULL_FAILED: "Check the operator's trainer image and its pull secret.",
    Reason.VOLUME_NOT_READY: "Create the PersistentVolumeClaim that the URI names, or correct the URI.",
    Reason.SECRET_NOT_FOUND: "Create the Secret that auth.secretName names, in the job's namespace.",
    Reason.CONFIG_MAP_NOT_FOUND: "Create the ConfigMap that the URI names, in the job's namespace.",
    Reason.NO_REPORTS: "The trainer does not answer: look at `finetune logs`.",
    Reason.STALLED: "The step count stands still: look at `finetune logs`.",
    Reason.RETRYING: "Nothing to do: the stage is tried again.",
    Reason.BAD_SPEC: "Correct the field and apply the job under a new name, or delete and apply it again.",
    Reason.DEPENDENCY_FAILED: "Apply that job again under a new name and name it here, in a new job.",
    Reason.NAME_CONFLICT: "Delete or rename the object in the way: it belongs to somebody else.",
    Reason.DATASET_INVALID: "Correct the records or the fields that the message names, then apply the job again.",
    Reason.DATASET_UNAVAILABLE: "Check dataset URI, path and access, then apply the job again.",
    Reason.MODEL_UNAVAILABLE: "Check spec.model.uri, its revision and access, then apply the job again.",
    Reason.MODEL_INVALID: "Point spec.model.uri at a folder with config.json, a tokenizer and *.safetensors.",
    Reason.INPUT_UNAVAILABLE: "Check the URIs that the job names, then apply it again.",
    Reason.CHECKPOINT_MISMATCH: "The workspace holds another run: use a new workspace or delete its checkpoints.",
    Reason.ACCESS_DENIED: "Name a Secret with a valid `token` in auth.secretName.",
    Reason.UNSUPPORTED: "Choose a model, objective or method that the message offers.",
    Reason.GPU_UNAVAILABLE: "Check the node's driver and device plugin, or set resources.gpus to 0.",
    Reason.OUT_OF_MEMORY: "Lower training.microBatchSize or training.maxLength, or raise resources.memory.",
    Reason.DIVERGED: "Lower training.learningRate, or raise training.warmupRatio; the last good checkpoint is kept.",
    Reason.DEADLINE_EXCEEDED: "Raise spec.deadlineSeconds in a new job, or train for fewer steps.",
    Reason.OUTPUT_NOT_WRITABLE: "Make room or grant write access at the place that the message names.",
    Reason.ARTIFACT_PUSH_FAILED: "The trained weights are kept on the workspace; check output.uri and its access.",
    Reason.ARTIFACT_INVALID: "What was read back differs from what was written: check the storage behind output.uri.",
    Reason.RETRY_LIMIT_EXCEEDED: "Read the reasons in status.attempts; raise spec.retry.limit if they were transient.",
    Reason.INTERNAL_ERROR: "This is a defect of the trainer or operator: please report it with `finetune logs`.",
}
"""What a person can do, for each reason that asks for something."""
