"""`spec.podTemplate`, and the chart's `trainer.podTemplate`: what a person may say about the pods of the stages.

It decides which fields there are and what may stand in them: a closed list, spelt as in a Pod. Image, command, and what
they rest on (HOME, the interpreter's own variables, the trainer's mounts) stay the operator's. How the levels are put
together is the business of the operator's `pods`.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field
from pydantic.alias_generators import to_snake

from finetune_api import labels
from finetune_api.schema import ApiModel, DnsLabel, DnsName, KeyName, QualifiedName, Quantity, Rule, exactly_one_of
from finetune_api.stages import STAGES

MOUNTABLE = "/mnt"
"""The one folder below which volumes of one's own may be mounted: nothing of the image or of the trainer is there."""
OWN_VOLUMES = ("run", "workspace", "tmp", "shm")
OWN_VOLUME_PREFIX = "place-"
OWN_VARIABLES = ("HOME", "USER", "LOGNAME", "PATH", "TMPDIR", "OMP_NUM_THREADS", "HF_HUB_OFFLINE",
                 "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "GCONV_PATH", "NVIDIA_VISIBLE_DEVICES")  # fmt: skip
"""What the operator sets, what chooses the code that runs, and what would hand out GPUs that were not asked for."""
OWN_VARIABLE_PREFIXES = ("FINETUNE_", "PYTHON", "LD_")
WAY_OUT_VARIABLES = ("*_PROXY", "HF_ENDPOINT", "HUGGINGFACE_CO_STAGING", "HF_XET_*ENDPOINT", "HF_XET_*SOCKET_PATH")
"""Which way out of the cluster downloads take, and so which addresses they reach: not for a job to say. Python reads
proxies in any case."""
CODE_VARIABLES = ("OPENSSL_*", "LOCPATH", "GLIBC_TUNABLES", "BASH_ENV", "CUDA_INJECTION*", "NVTX_INJECTION*", "INTEL_*",
                  "NCCL_*PLUGIN*", "NCCL_CONF_FILE", "NVSHMEM_*", "UCX_*", "OMPI_*", "PMIX_*", "OMP_TOOL*", "BNB_*",
                  "TRITON_*", "TORCHINDUCTOR_*", "TORCH_COMPILE*", "TORCH_EXTENSION*", "TORCH_FORCE_*",
                  "TORCH_PYTHON_NATIVE_*", "PYTORCH_NVCC", "PYTORCH_KERNEL_CACHE_PATH", "CC", "CXX", "CUDACXX",
                  "CUDA_HOME", "CUDA_PATH", "ROCM_*", "COMPILER_PATH", "GCC_EXEC_PREFIX", "LIBRARY_PATH",
                  "ARROW_LIBHDFS_DIR", "HADOOP_HOME", "JAVA_HOME", "HF_MODULES_CACHE", "USE_HUB_KERNELS",
                  "NVIDIA_*", "AMD_VISIBLE_DEVICES", "HABANA_VISIBLE_DEVICES")  # fmt: skip
"""By which the image's libraries load code from where they are told, a volume of the job's own among them (providers,
profilers, plugins, compilers, caches of compiled code, pickles); and by which container runtimes hand out devices. A
list of what is allowed would be surer, but `env` is there for variables that nobody here can foresee."""
OWN_LABELS = (labels.MANAGED_BY_LABEL, labels.KUEUE_QUEUE_LABEL, "job-name", "controller-uid")
OWN_LABEL_PREFIXES = (f"{labels.GROUP}/", "batch.kubernetes.io/")
OWN_ANNOTATIONS = ("kubernetes.io/config.mirror", "controller.kubernetes.io/pod-deletion-cost")
OWN_ANNOTATION_PREFIXES = (
    f"{labels.GROUP}/",
    *(f"{kind}.kubernetes.io/" for kind in ("container.apparmor.security.beta", "container.seccomp.security.alpha")),
    "seccomp.security.alpha.kubernetes.io/",
)
"""Ours, and those that are more than a note: the API server checks them as it does fields of a pod."""


def _own(names: tuple[str, ...], prefixes: tuple[str, ...]) -> tuple[str, Callable[[str], bool]]:
    """Whether a string is one of `names` or begins with one of `prefixes`: in CEL about `one`, and in Python."""
    quoted = ", ".join(f"'{name}'" for name in names)
    listed = [f"one in [{quoted}]"] if names else []
    cel = " || ".join([*listed, *(f"one.startsWith('{prefix}')" for prefix in prefixes)])
    return cel, lambda one: one in names or one.startswith(prefixes)


_LABEL, is_own_label = _own(OWN_LABELS, OWN_LABEL_PREFIXES)
_ANNOTATION, _is_own_annotation = _own(OWN_ANNOTATIONS, OWN_ANNOTATION_PREFIXES)
_VARIABLE, _is_own_variable = _own(OWN_VARIABLES, OWN_VARIABLE_PREFIXES)
_VOLUME, _is_own_volume = _own(OWN_VOLUMES, (OWN_VOLUME_PREFIX,))
_LABEL_MESSAGE = (
    f"labels {', '.join([*OWN_LABELS, *(f'{one}*' for one in OWN_LABEL_PREFIXES)])} are set by the operator, the Job "
    "controller or Kueue: leave them out (a queue is named in scheduling.queue)"
)
_ANNOTATION_MESSAGE = (
    f"annotations {', '.join([*OWN_ANNOTATIONS, *(f'{one}*' for one in OWN_ANNOTATION_PREFIXES)])} are the operator's "
    "or the cluster's: leave them out"
)
_VARIABLE_MESSAGE = (
    f"{', '.join([*OWN_VARIABLES, *(f'{one}*' for one in OWN_VARIABLE_PREFIXES)])} are set by the operator or choose "
    "the code that runs: leave them out"
)
_PLATFORM_VARIABLE = "|".join(one.replace("*", ".*") for one in (*WAY_OUT_VARIABLES, *CODE_VARIABLES))
_PLATFORM_MESSAGE = (
    f"variables that choose the way out of the cluster ({', '.join(WAY_OUT_VARIABLES[:2])}, …) or what code and "
    f"devices there are ({', '.join(CODE_VARIABLES[:3])}, …) are the platform's to set (trainer.proxy, "
    "trainer.hfEndpoint or trainer.podTemplate of the chart): leave this one out"
)
_VOLUME_MESSAGE = f"{', '.join(OWN_VOLUMES)} and {OWN_VOLUME_PREFIX}* are the operator's volumes: choose another name"


LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
Labels = Annotated[dict[QualifiedName, LabelValue], Field(max_length=32)]
NodeLabels = Annotated[dict[QualifiedName, LabelValue], Field(max_length=16)]
Text = Annotated[str, Field(min_length=1, max_length=253)]
RelativePath = Annotated[
    str, Field(pattern=r"^[-A-Za-z0-9_]([-.A-Za-z0-9_]*)(/[-A-Za-z0-9_][-.A-Za-z0-9_]*)*$", max_length=512)
]
GroupId = Annotated[int, Field(ge=0, le=2_147_483_647)]


class PodMetadata(ApiModel):
    """Labels and annotations of the pods."""

    rules: ClassVar = (
        Rule(
            f"!has(self.labels) || !self.labels.exists(one, {_LABEL})",
            _LABEL_MESSAGE,
            holds=lambda it: not any(map(is_own_label, it.labels or {})),
        ),
        Rule(
            f"!has(self.annotations) || !self.annotations.exists(one, {_ANNOTATION})",
            _ANNOTATION_MESSAGE,
            holds=lambda it: not any(map(_is_own_annotation, it.annotations or {})),
        ),
    )

    labels: Labels | None = None
    """As in a pod."""
    annotations: Annotated[dict[QualifiedName, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] | None = (
        None
    )
    """As in a pod."""


class LocalReference(ApiModel):
    """An object of the job's namespace."""

    name: DnsName
    """Its name."""


class KeyReference(ApiModel):
    """A key of a Secret or ConfigMap of the job's namespace."""

    name: DnsName
    """Name of the object."""
    key: KeyName
    """The key whose value is taken."""
    optional: bool | None = None
    """True: the pod starts without it too."""


class ValueSource(ApiModel):
    """Where a variable's value comes from."""

    rules: ClassVar = (exactly_one_of("secretKeyRef", "configMapKeyRef"),)

    secret_key_ref: KeyReference | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyReference | None = None
    """A key of a ConfigMap."""


class Variable(ApiModel):
    """An environment variable of the trainer."""

    rules: ClassVar = (
        exactly_one_of("value", "valueFrom"),
        Rule(
            f"![self.name].exists(one, {_VARIABLE})", _VARIABLE_MESSAGE, holds=lambda it: not _is_own_variable(it.name)
        ),
        # Of a job alone, which the API server checks: the platform's own template may say it.
        Rule(f"!self.name.matches('(?i)^({_PLATFORM_VARIABLE})$')", _PLATFORM_MESSAGE),
    )

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            max_length=128,
            description="Left to the platform, in whatever case: " + ", ".join([*WAY_OUT_VARIABLES, *CODE_VARIABLES]),
        ),
    ]
    """Its name."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Its value."""
    value_from: ValueSource | None = None
    """Or a key of a Secret or ConfigMap."""


class KeyToPath(ApiModel):
    """One key as one file."""

    key: KeyName
    """The key."""
    path: RelativePath
    """File name, relative to the mount."""


class SecretVolume(ApiModel):
    """A Secret as files."""

    secret_name: DnsName
    """Its name."""
    items: Annotated[list[KeyToPath], Field(max_length=16)] | None = None
    """Only these keys. Default: all."""
    optional: bool | None = None
    """True: the pod starts without it too."""


class ConfigMapVolume(ApiModel):
    """A ConfigMap as files."""

    name: DnsName
    """Its name."""
    items: Annotated[list[KeyToPath], Field(max_length=16)] | None = None
    """Only these keys. Default: all."""
    optional: bool | None = None
    """True: the pod starts without it too."""


class ClaimVolume(ApiModel):
    """A volume claim."""

    claim_name: DnsName
    """Its name."""
    read_only: bool | None = None
    """True: mounted read-only."""


class EmptyVolume(ApiModel):
    """An empty folder that goes with the pod."""

    medium: Literal["", "Memory"] | None = None
    """`Memory`: a tmpfs, counted against the memory limit."""
    size_limit: Quantity | None = None
    """A pod that writes more is evicted."""


class Volume(ApiModel):
    """A volume of one's own. A stage that mounts it nowhere does not have it."""

    rules: ClassVar = (
        exactly_one_of("configMap", "secret", "persistentVolumeClaim", "emptyDir"),
        Rule(f"![self.name].exists(one, {_VOLUME})", _VOLUME_MESSAGE, holds=lambda it: not _is_own_volume(it.name)),
    )

    name: DnsLabel
    """By which volumeMounts name it."""
    config_map: ConfigMapVolume | None = None
    """As in a pod."""
    secret: SecretVolume | None = None
    """As in a pod."""
    persistent_volume_claim: ClaimVolume | None = None
    """As in a pod."""
    empty_dir: EmptyVolume | None = None
    """As in a pod."""


class Mount(ApiModel):
    """Where a volume is mounted."""

    name: DnsLabel
    """Name of a volume in podTemplate.volumes."""
    mount_path: Annotated[
        str,
        Field(
            pattern=rf"^{MOUNTABLE}(/[-A-Za-z0-9_][-.A-Za-z0-9_]*)+$",
            max_length=256,
            json_schema_extra={"x-message": f"must be a folder below {MOUNTABLE}/, written without '..'"},
        ),
    ]
    """A folder below `/mnt/`."""
    sub_path: RelativePath | None = None
    """A folder or file of the volume. Default: all of it."""
    read_only: bool | None = None
    """True: it cannot be written."""


def _values_fit(requirement: Any) -> bool:
    count = len(requirement.values or [])
    if requirement.operator in ("In", "NotIn"):
        return count > 0
    return count == (requirement.operator in ("Gt", "Lt"))


VALUES_FIT = Rule(
    "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : "
    "(has(self.values) ? self.values.size() : 0) == (self.operator in ['Gt', 'Lt'] ? 1 : 0)",
    "values: In and NotIn need some, Gt and Lt one, Exists and DoesNotExist none",
    holds=_values_fit,
)
LabelValues = Annotated[list[LabelValue], Field(max_length=32)]


class SelectorRequirement(ApiModel):
    """As in a pod."""

    rules: ClassVar = (VALUES_FIT,)

    key: QualifiedName
    """Label that is compared."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How."""
    values: LabelValues | None = None
    """With what."""


class NodeRequirement(ApiModel):
    """As in a pod."""

    rules: ClassVar = (VALUES_FIT,)

    key: QualifiedName
    """Label that is compared."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How."""
    values: LabelValues | None = None
    """With what."""


class FieldRequirement(ApiModel):
    """As in a pod."""

    key: Literal["metadata.name"]
    """The one field that Kubernetes compares."""
    operator: Literal["In", "NotIn"]
    """How."""
    values: Annotated[list[DnsName], Field(min_length=1, max_length=1)]
    """With which name."""


class LabelSelector(ApiModel):
    """Which objects, by their labels."""

    match_labels: Labels | None = None
    """All of these."""
    match_expressions: Annotated[list[SelectorRequirement], Field(max_length=16)] | None = None
    """And all of these."""


class NodeTerm(ApiModel):
    """Which nodes; all of it has to hold."""

    match_expressions: Annotated[list[NodeRequirement], Field(max_length=16)] | None = None
    """By labels."""
    match_fields: Annotated[list[FieldRequirement], Field(max_length=16)] | None = None
    """By fields."""


Weight = Annotated[int, Field(ge=1, le=100)]


class PreferredNode(ApiModel):
    """As in a pod."""

    weight: Weight
    """1 to 100."""
    preference: NodeTerm
    """Which nodes."""


class NodeSelector(ApiModel):
    """One of the terms has to hold."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=16)]
    """The terms."""


class NodeAffinity(ApiModel):
    """As in a pod."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """As in a pod."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNode], Field(max_length=16)] | None
    ) = None
    """As in a pod."""


def _keys_beside_selector(term: Any) -> bool:
    keys = {*(term.match_label_keys or []), *(getattr(term, "mismatch_label_keys", None) or [])}
    selector = term.label_selector
    selected = (
        {*(selector.match_labels or {}), *(one.key for one in selector.match_expressions or [])} if selector else ()
    )
    return not keys or (selector is not None and keys.isdisjoint(selected))


def _beside_selector(*fields: str) -> Rule:
    """Keys whose values are taken from the pod itself are told beside a selector, and not in it too."""
    given = " + ".join(f"(has(self.{field}) ? self.{field} : [])" for field in fields)
    selector = "self.labelSelector"
    return Rule(
        f"({given}).all(key, has({selector}) && !(has({selector}.matchLabels) && key in {selector}.matchLabels) && "
        f"!(has({selector}.matchExpressions) && {selector}.matchExpressions.exists(one, one.key == key)))",
        f"{' and '.join(fields)}: each key stands beside a labelSelector, and not in it",
        holds=_keys_beside_selector,
    )


class PodTerm(ApiModel):
    """Which pods, and how near."""

    rules: ClassVar = (
        _beside_selector("matchLabelKeys", "mismatchLabelKeys"),
        Rule(
            "!has(self.matchLabelKeys) || !has(self.mismatchLabelKeys) || "
            "!self.matchLabelKeys.exists(key, key in self.mismatchLabelKeys)",
            "a key stands in matchLabelKeys or in mismatchLabelKeys, not in both",
            holds=lambda it: set(it.match_label_keys or []).isdisjoint(it.mismatch_label_keys or []),
        ),
    )

    topology_key: QualifiedName
    """Node label whose equal values are near."""
    label_selector: LabelSelector | None = None
    """Which pods."""
    namespaces: Annotated[list[DnsLabel], Field(max_length=16)] | None = None
    """In which namespaces. Default: the job's own."""
    namespace_selector: LabelSelector | None = None
    """Or in namespaces with these labels."""
    match_label_keys: Annotated[list[QualifiedName], Field(max_length=8)] | None = None
    """As in a pod."""
    mismatch_label_keys: Annotated[list[QualifiedName], Field(max_length=8)] | None = None
    """As in a pod."""


class PreferredPod(ApiModel):
    """As in a pod."""

    weight: Weight
    """1 to 100."""
    pod_affinity_term: PodTerm
    """Which pods."""


class PodAffinity(ApiModel):
    """As in a pod."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=8)] | None = None
    """As in a pod."""
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredPod], Field(max_length=8)] | None = (
        None
    )
    """As in a pod."""


class Affinity(ApiModel):
    """As in a pod."""

    node_affinity: NodeAffinity | None = None
    """Which nodes."""
    pod_affinity: PodAffinity | None = None
    """Beside which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which pods."""


class Toleration(ApiModel):
    """As in a pod."""

    rules: ClassVar = (
        Rule(
            "has(self.operator) && self.operator == 'Exists' ? !has(self.value) || self.value == '' : has(self.key)",
            "a toleration with operator Exists has no value, and any other one has a key",
            holds=lambda it: not it.value if it.operator == "Exists" else it.key is not None,
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds belongs to effect NoExecute",
            holds=lambda it: it.toleration_seconds is None or it.effect == "NoExecute",
        ),
    )

    key: QualifiedName | None = None
    """Taint key; absent with operator Exists tolerates every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How value is compared. Default: Equal."""
    value: LabelValue | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Absent tolerates every effect."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long a NoExecute taint is tolerated."""


class Spread(ApiModel):
    """As in a pod."""

    rules: ClassVar = (
        _beside_selector("matchLabelKeys"),
        Rule(
            "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            "minDomains belongs to whenUnsatisfiable DoNotSchedule",
            holds=lambda it: it.min_domains is None or it.when_unsatisfiable == "DoNotSchedule",
        ),
    )

    max_skew: Annotated[int, Field(ge=1, le=2_147_483_647)]
    """As in a pod."""
    topology_key: QualifiedName
    """Node label whose values are counted over."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """As in a pod."""
    label_selector: LabelSelector | None = None
    """Which pods are counted."""
    min_domains: Annotated[int, Field(ge=1, le=2_147_483_647)] | None = None
    """As in a pod."""
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """As in a pod."""
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """As in a pod."""
    match_label_keys: Annotated[list[QualifiedName], Field(max_length=8)] | None = None
    """As in a pod."""


class SELinuxOptions(ApiModel):
    """As in a pod."""

    user: Text | None = None
    """SELinux user."""
    role: Text | None = None
    """SELinux role."""
    type: Text | None = None
    """SELinux type."""
    level: Text | None = None
    """SELinux level."""


NULLABLE = {"nullable": True}
IdName = Literal["runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy"]
IDS: tuple[IdName, ...] = get_args(IdName)


class PodSecurityContext(ApiModel):
    """Ids of the pods; one that is not named stays as it is. Left out of the pod, so that the platform gives its own
    (OpenShift): an id in `unset`, an id that is null, and all ids where securityContext is empty. Of these a null is
    dropped on the way by `kubectl apply`, Helm and most tools that write YAML. runAsNonRoot, the seccomp profile and
    the container's own limits stay the operator's."""

    run_as_user: Annotated[Annotated[int, Field(ge=1, le=2_147_483_647)] | None, Field(json_schema_extra=NULLABLE)] = (
        None
    )
    """User id. Null: left out."""
    run_as_group: Annotated[GroupId | None, Field(json_schema_extra=NULLABLE)] = None
    """Group id. Null: left out."""
    fs_group: Annotated[GroupId | None, Field(json_schema_extra=NULLABLE)] = None
    """Group that volumes are given to. Null: left out."""
    fs_group_change_policy: Annotated[Literal["OnRootMismatch", "Always"] | None, Field(json_schema_extra=NULLABLE)] = (
        None
    )
    """As in a pod. Null: left out."""
    unset: Annotated[list[IdName], Field(max_length=4)] | None = None
    """Names of ids that are left out of the pod."""
    supplemental_groups: Annotated[list[GroupId], Field(max_length=16)] | None = None
    """More groups of the process."""
    supplemental_groups_policy: Literal["Merge", "Strict"] | None = None
    """As in a pod."""
    se_linux_options: SELinuxOptions | None = None
    """As in a pod."""

    @property
    def left_out(self) -> list[str]:
        """The ids that are taken away."""
        if not self.to_wire() and not self.model_fields_set:
            return list(IDS)
        nulls = [
            name for name in IDS if getattr(self, to_snake(name)) is None and to_snake(name) in self.model_fields_set
        ]
        return [*nulls, *(self.unset or [])]


class EphemeralStorage(ApiModel):
    """Disk of the node that a pod may use. A pod that exceeds its limit is evicted, by its own fault."""

    request: Quantity | None = None
    """What the scheduler counts. Default: the limit, if there is one; never more than that."""
    limit: Quantity | None = None
    """The most: of `/tmp`, of volumes of one's own on the node, and of the log together."""


def _told_apart(field: str, by: str) -> Rule:
    """No two items of a list have the same `by`: one of them would go unheard."""
    name, key = to_snake(field), to_snake(by)

    def holds(template: Any) -> bool:
        keys = [getattr(item, key) for item in getattr(template, name) or []]
        return len(keys) == len(set(keys))

    rule = f"!has(self.{field}) || self.{field}.all(one, self.{field}.exists_one(other, other.{by} == one.{by}))"
    return Rule(rule, f"{field}: two items have the same {by}", holds=holds)


class StageTemplate(ApiModel):
    """What may be said about the pods of a stage."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _told_apart("env", "name"),
        _told_apart("volumes", "name"),
        _told_apart("volumeMounts", "mountPath"),
    )

    metadata: PodMetadata | None = None
    """Labels and annotations."""
    service_account_name: DnsName | None = None
    """As in a pod. Its token is not mounted."""
    image_pull_secrets: Annotated[list[LocalReference], Field(max_length=8)] | None = None
    """As in a pod."""
    runtime_class_name: DnsName | None = None
    """As in a pod."""
    scheduler_name: DnsName | None = None
    """As in a pod."""
    affinity: Affinity | None = None
    """As in a pod."""
    topology_spread_constraints: Annotated[list[Spread], Field(max_length=8)] | None = None
    """As in a pod."""
    node_selector: NodeLabels | None = None
    """As in a pod."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = None
    """As in a pod."""
    security_context: PodSecurityContext | None = None
    """As in a pod, ids alone."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """Seconds for a last checkpoint after SIGTERM. Default: 120 in train, 30 in the others."""
    env: Annotated[list[Variable], Field(max_length=32)] | None = None
    """Variables of the trainer besides its own."""
    volumes: Annotated[list[Volume], Field(max_length=16)] | None = None
    """Volumes besides the trainer's own."""
    volume_mounts: Annotated[list[Mount], Field(max_length=16)] | None = None
    """Where they are mounted."""
    ephemeral_storage: EphemeralStorage | None = None
    """Request and limit of the node's disk."""


class Stages(ApiModel):
    """What differs in one stage. `prepare` and `publish` hold no GPU and need no GPU nodes."""

    prepare: StageTemplate | None = None
    """Fetches model and data: the only stage that needs the network and the credentials."""
    train: StageTemplate | None = None
    """Holds the GPU."""
    publish: StageTemplate | None = None
    """Writes the output."""


def _mounts_known(stage: str) -> Rule:
    """What is mounted in all stages, or in one, is a volume of the same template."""
    place = f".stages.{stage}" if stage else ""
    guard = f"!has(self.stages) || !has(self{place}) || " if stage else ""
    places = list(dict.fromkeys(["self", f"self{place}"]))
    known = " || ".join(f"has({it}.volumes) && {it}.volumes.exists(volume, volume.name == mount.name)" for it in places)
    mounts = f"self{place}.volumeMounts"

    def holds(template: Any) -> bool:
        own = getattr(template.stages, stage) if stage and template.stages else template
        volumes = [one.name for where in (template, own) if where is not None for one in where.volumes or []]
        return own is None or all(mount.name in volumes for mount in own.volume_mounts or [])

    message = f"{f'{place}.volumeMounts'.removeprefix('.')}: each names one of the volumes of podTemplate"
    return Rule(f"{guard}!has({mounts}) || {mounts}.all(mount, {known})", message, holds=holds)


class PodTemplate(StageTemplate):
    """What the pods of all stages look like, beyond what the operator decides. An edit counts from the next pod on.

    What is said for one stage outweighs what is said for all, and a job outweighs the platform's template. Maps are
    merged by key; env, volumes and imagePullSecrets by name, volumeMounts by path, topologySpreadConstraints by
    topologyKey and whenUnsatisfiable; tolerations add up; anything else is replaced as a whole. What
    scheduling says counts as if it were said here, for all stages."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *StageTemplate.rules,
        *(_mounts_known(stage) for stage in ("", *STAGES)),
    )

    stages: Stages | None = None
    """Per stage, what differs there."""
