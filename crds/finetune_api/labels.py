"""Names that the operator, the trainer, the chart and people share: API group, labels, and the deterministic names of
a job's children."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
PLURAL = "finetunejobs"
KIND = "FineTuneJob"
API_VERSION = f"{GROUP}/{VERSION}"

JOB_LABEL = f"{GROUP}/job"
JOB_UID_LABEL = f"{GROUP}/job-uid"
STAGE_LABEL = f"{GROUP}/stage"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "finetune-operator"
INPUTS_ANNOTATION = f"{GROUP}/inputs"
"""On a Kubernetes Job: what of the job's spec its pods were made from, and may change."""
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"

CONTAINER = "trainer"
PROGRESS_PORT = 8080
PROGRESS_PORT_NAME = "progress"
PROGRESS_PATH = "/progress"
METRICS_PATH = "/metrics"

RUN_DIRECTORY = "/etc/finetune"
RUN_FILE = "run.json"
RUN_DIGEST_VARIABLE = "FINETUNE_RUN_DIGEST"
"""Environment of a stage's pod: sha256 that the run file must have. Whoever can replace the file cannot write this."""
MEMORY_VARIABLE = "FINETUNE_MEMORY"
"""Environment of a stage's pod: spec.resources.memory as it is for this pod; the run file has it as it was frozen."""
WORKSPACE = "/workspace"
TERMINATION_LOG = "/dev/termination-log"

NAME_LIMIT = 40
"""Characters of a FineTuneJob's name: with uid and stage it has to fit the 63 of a label."""


def of_child(name: str, uid: str) -> dict[str, str]:
    """The labels by which every child of a job is found."""
    return {MANAGED_BY_LABEL: MANAGED_BY, JOB_LABEL: name, JOB_UID_LABEL: uid}


def child_name(name: str, uid: str, part: str) -> str:
    """The deterministic name of a child; five characters of the uid keep a deleted and re-created job apart."""
    return f"{name}-{uid[:5]}-{part}"


def stage_job_name(name: str, uid: str, stage: str, number: int = 1) -> str:
    """The name of a stage's Kubernetes Job; the second and later ones of a stage carry their number."""
    return child_name(name, uid, stage if number == 1 else f"{stage}-{number}")
