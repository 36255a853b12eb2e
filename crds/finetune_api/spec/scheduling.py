"""`spec.resources`, `spec.scheduling`, `spec.retry`: what the pods need, where they run, how often they are tried."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.schema import ApiModel, DnsLabel, DnsName, ExtendedResource, Quantity, Rule
from finetune_api.spec.pod_template import NodeLabels, Toleration


class Reclaim(ApiModel):
    """What becomes of the workspace volume when the job has ended. It may be edited until then."""

    on_success: Literal["Delete", "Retain"] = "Delete"
    """`Delete`: once the result is published and read back, the volume is deleted. `Retain`: it stays as long as the
    job."""
    on_failure: Literal["Delete", "Retain"] = "Retain"
    """`Retain`: the volume, with its checkpoints, outlives the job too, and is deleted by hand. `Delete`: it is deleted
    when the job has failed."""


class Workspace(ApiModel):
    """The volume that the stages share: prepared data, checkpoints, the result before it is published."""

    rules: ClassVar = (
        Rule(
            "!has(self.accessModes) || !('ReadWriteOncePod' in self.accessModes) || self.accessModes.size() == 1",
            "accessModes: ReadWriteOncePod stands alone",
        ),
    )

    size: Quantity = "20Gi"
    """Requested size."""
    storage_class_name: DnsName | None = None
    """Default: the cluster's default class."""
    # No defaults in the CRD: an operator that runs on through an upgrade of it would refuse fields that it never saw.
    access_modes: (
        Annotated[
            list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]], Field(min_length=1, max_length=2)
        ]
        | None
    ) = None
    """What the claim asks of its class. Default: ReadWriteOnce. With ReadWriteMany the stages may run on nodes, and in
    zones, apart."""
    reclaim: Reclaim | None = None
    """Default: deleted after success, kept after a failure."""

    def is_deleted_after(self, success: bool) -> bool:
        """Whether the volume goes when the job has succeeded, or failed."""
        reclaim = self.reclaim or Reclaim()
        return (reclaim.on_success if success else reclaim.on_failure) == "Delete"


class Resources(ApiModel):
    """What each stage's pod asks for; only `train` asks for GPUs."""

    gpus: Annotated[int, Field(ge=0, le=1)] = 1
    """GPUs of the training pod; 0 trains on CPU. One process trains, so more than one would stand idle."""
    gpu_resource: ExtendedResource = "nvidia.com/gpu"
    """Name of the extended resource that counts GPUs."""
    gpu_memory: Quantity | None = None
    """What the GPU has, such as `24Gi`. `prepare` then chooses the largest microBatchSize that fits, and refuses a job
    that cannot fit before it holds a GPU. Unknown unless set: nothing is checked."""
    cpu: Quantity = "2"
    """CPU cores, as request and limit."""
    memory: Quantity = "8Gi"
    """Memory, as request and limit. A job without a GPU that would need much more is refused by `prepare`."""
    workspace: Workspace = Field(default_factory=Workspace)


class Scheduling(ApiModel):
    """Where the pods may run. All stages share it, because they share a volume."""

    queue: DnsLabel | None = None
    """Kueue LocalQueue: the train Job is created suspended with this queue's label, and Kueue admits it."""
    priority_class_name: DnsName | None = None
    """As in a pod."""
    node_selector: NodeLabels = {}
    """As in a pod, of all stages; what podTemplate says of the same label outweighs it."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """As in a pod, of all stages, besides those of podTemplate."""


class Retry(ApiModel):
    """What happens after a failure that another try may heal. Preemption, eviction and other requests to stop are not
    counted, unless the pod was evicted for what it used itself."""

    limit: Annotated[int, Field(ge=0, le=20)] = 3
    """Failures of a stage, after its first, in which the checkpoint got no further. A job that failed by it goes on
    when it is raised."""
