"""Why a pod ended, and what a pod waits for: each word that Kubernetes uses, as a reason of ours."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.labels import STAGE_LABEL
from finetune_api.reasons import Reason
from finetune_operator.diagnosis import ending, has_field, obstacle, refused, stage_report, unmade
from finetune_operator.observed_state import Waiting, lacks_a_pod
from finetune_operator.observed_state import pod as read_pod
from unit.observed import NOW, at, ended, pod, running, stage_job


def test_a_running_pod_has_not_ended() -> None:
    """No ending, no obstacle."""
    assert ending(running("train")) is None
    assert obstacle(running("train"), NOW) is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, Reason.SUCCEEDED),
        (64, Reason.BAD_SPEC),
        (65, Reason.DATASET_INVALID),
        (66, Reason.INPUT_UNAVAILABLE),
        (70, Reason.INTERNAL_ERROR),
        (73, Reason.OUTPUT_NOT_WRITABLE),
        (75, Reason.PREEMPTED),
        (76, Reason.DIVERGED),
        (77, Reason.ACCESS_DENIED),
        (78, Reason.UNSUPPORTED),
        (137, Reason.OUT_OF_MEMORY),
        (143, Reason.PREEMPTED),
        (1, Reason.INTERNAL_ERROR),
        (255, Reason.INTERNAL_ERROR),
    ],
)
def test_an_exit_code_without_a_report(code: int, reason: Reason) -> None:
    """The contract's codes mean what they say; every other one is a defect."""
    end = ending(ended("train", code))
    assert end is not None
    assert end.reason is reason


def test_a_write_that_fails_in_publish_is_a_failed_push() -> None:
    """The same code means another thing where the output is written."""
    end = ending(ended("publish", 73))
    assert end is not None
    assert end.reason is Reason.ARTIFACT_PUSH_FAILED


def test_a_disrupted_pod_is_preempted_whatever_its_code() -> None:
    """Killed for want of time after an eviction, it is still not out of memory."""
    end = ending(ended("train", 137, disruption="node is drained"))
    assert end is not None
    assert (end.reason, end.message) == (Reason.PREEMPTED, "node is drained")


@pytest.mark.parametrize("code", [75, 137, 143])
def test_a_deleted_pod_was_stopped_and_not_out_of_memory(code: int) -> None:
    """Killed because its grace was over, it did not need too much memory; unless the kubelet says so."""
    end = ending(ended("train", code, is_deleting=True))
    oom = ending(ended("train", 137, is_deleting=True, reason="OOMKilled"))
    assert end is not None
    assert oom is not None
    assert (end.reason, oom.reason) == (Reason.PREEMPTED, Reason.OUT_OF_MEMORY)


def test_the_kernels_kill_outweighs_a_report_of_a_defect() -> None:
    """When only a child of the trainer was killed, the trainer sees a defect; the kubelet knows better."""
    message = json.dumps({"stage": "prepare", "reason": "InternalError", "message": "a worker died"})
    end = ending(ended("prepare", 70, reason="OOMKilled", message=message))
    assert end is not None
    assert end.reason is Reason.OUT_OF_MEMORY


def test_a_pod_that_is_lost_without_a_container() -> None:
    """Evicted before it ran: it is tried again, in the kubelet's words."""
    end = ending(pod("train", phase="Failed", end_reason="Evicted", end_message="disk pressure"))
    assert end is not None
    assert (end.reason, end.message) == (Reason.RETRYING, "Evicted: disk pressure")


@pytest.mark.parametrize("group", ["containerStatuses", "initContainerStatuses"])
def test_a_pod_that_fails_before_its_trainer_runs(group: str) -> None:
    """Another container has failed, by its name and its words; unless the pod was told to end."""
    init = {"name": "vault-init", "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no token"}}}
    waiting = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
    statuses = {"containerStatuses": [waiting]}
    statuses[group] = [init, *statuses.get(group, [])]
    body = {
        "metadata": {"name": "a", "uid": "u", "labels": {STAGE_LABEL: "train"}},
        "status": {"phase": "Failed", **statuses},
    }
    failed = read_pod(body)
    end, told = ending(failed), ending(replace(failed, is_deleting=True))
    assert end is not None
    assert told is not None
    assert (end.reason, end.message) == (
        Reason.POD_NOT_STARTING,
        "container vault-init ended with exit code 1: no token",
    )
    assert told.reason is Reason.PREEMPTED


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        json.dumps({"stage": "publish"}),
        json.dumps({"stage": "train", "plan": {"totalSteps": 2**60}}),
        json.dumps(
            {"stage": "train", "evaluation": {"samples": [{"prompt": "a", "before": "b", "after": "c" * 5000}]}}
        ),
    ],
)
def test_what_is_not_a_report_of_this_stage_is_none(message: str) -> None:
    """Garbage, another stage's, or what the API server would refuse: as if nothing had been left."""
    assert stage_report(ended("train", 0, message=message)) is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", Reason.UNSCHEDULABLE),
        ("0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.", Reason.UNSCHEDULABLE),
        ("pod has unbound immediate PersistentVolumeClaims.", Reason.VOLUME_NOT_READY),
        ('persistentvolumeclaim "datasets" not found.', Reason.VOLUME_NOT_READY),
        ('persistentvolumeclaim "datasets" bound to non-existent persistentvolume "pv"', Reason.VOLUME_NOT_READY),
        (
            "0/3 nodes are available: 3 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).",
            Reason.VOLUME_NOT_READY,
        ),
        (
            "0/3 nodes are available: 1 node(s) had untolerated taint, 2 node(s) did not have enough free storage.",
            Reason.VOLUME_NOT_READY,
        ),
        (
            "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access "
            "mode already in-use by another pod.",
            Reason.VOLUME_NOT_READY,
        ),
    ],
)
def test_the_schedulers_refusals(words: str, reason: Reason) -> None:
    """A claim that is not there, not bound, lost or too large is a volume that is not ready; else no node fits."""
    found = obstacle(pod("train", refused_since=at(-10), refusal=words), NOW)
    assert found is not None
    assert (found.reason, found.message) == (reason, words)


@pytest.mark.parametrize(
    "words",
    [
        "1 node(s) had volume node affinity conflict",
        "1 node(s) didn't match PersistentVolume's node affinity",
        "1 node(s) had no available volume zone",
    ],
)
def test_a_zone_conflict_in_the_words_of_every_release(words: str) -> None:
    """Whatever else holds other nodes back, and with the name of the volume that most likely is meant."""
    words = f"0/3 nodes are available: {words}, 2 Insufficient nvidia.com/gpu."
    found = obstacle(pod("train", refused_since=at(-10), refusal=words, workspace="a-workspace"), NOW)
    assert found is not None
    assert found.reason is Reason.VOLUME_ZONE_CONFLICT
    assert found.message.startswith(words)
    assert "a-workspace" in found.message


@pytest.mark.parametrize("reason", ["SchedulerError", "SchedulingGated"])
def test_a_pod_that_no_node_was_looked_for(reason: str) -> None:
    """Whichever reason the condition has; what its words tell more exactly is told so."""
    gated = pod("train", refused_since=at(-10), refusal_reason=reason, refusal="example.com/gate")
    found = obstacle(gated, NOW)
    assert found is not None
    assert (found.reason, found.message) == (Reason.NOT_SCHEDULED, f"{reason}: example.com/gate")
    lost = obstacle(replace(gated, refusal='persistentvolumeclaim "a" not found'), NOW)
    assert lost is not None
    assert lost.reason is Reason.VOLUME_NOT_READY


def test_a_pod_that_no_scheduler_looks_at() -> None:
    """After the time that one takes it is said, with the name of the one that should."""
    unseen = pod("train", scheduler="volcano")
    assert obstacle(unseen, NOW + timedelta(seconds=10)) is None
    found = obstacle(unseen, NOW + timedelta(seconds=20))
    assert found is not None
    assert (found.reason, found.message.endswith("named volcano")) == (Reason.NOT_SCHEDULED, True)


def test_a_scheduler_that_tells_it_in_events_alone() -> None:
    """They count as its condition would, until there is a node."""
    told = pod("train", complaints=("FailedScheduling: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",))
    found = obstacle(told, NOW)
    assert found is not None
    assert (found.reason, found.message.startswith("0/3")) == (Reason.UNSCHEDULABLE, True)
    assert obstacle(replace(told, is_scheduled=True), NOW) is None


def test_a_refusal_counts_after_a_moment() -> None:
    """While a fresh volume is being bound the scheduler refuses for a second or two: that is no news."""
    refused = pod("train", refused_since=at(0), refusal="pod has unbound immediate PersistentVolumeClaims.")
    assert obstacle(refused, NOW + timedelta(seconds=2)) is None
    assert obstacle(refused, NOW + timedelta(seconds=4)) is not None


@pytest.mark.parametrize(
    ("waiting", "message", "reason"),
    [
        ("ErrImagePull", "denied", Reason.IMAGE_PULL_FAILED),
        ("ImagePullBackOff", "Back-off", Reason.IMAGE_PULL_FAILED),
        ("ErrImageNeverPull", "absent", Reason.IMAGE_PULL_FAILED),
        ("CreateContainerConfigError", 'secret "hub" not found', Reason.SECRET_NOT_FOUND),
        ("CreateContainerConfigError", 'configmap "c" not found', Reason.CONFIG_MAP_NOT_FOUND),
        ("CreateContainerConfigError", "couldn't find key token in Secret team/hub", Reason.SECRET_NOT_FOUND),
        ("CreateContainerConfigError", "couldn't find key a in ConfigMap team/c", Reason.CONFIG_MAP_NOT_FOUND),
        ("CreateContainerError", "no such user", Reason.POD_NOT_STARTING),
        ("SignatureValidationFailed", "no valid signature", Reason.IMAGE_PULL_FAILED),
        ("PostStartHookError", "exec: not found", Reason.POD_NOT_STARTING),
        ("RunInitContainerError", "exited", Reason.POD_NOT_STARTING),
        ("ReasonOfALaterRelease", "whatever", Reason.POD_NOT_STARTING),
    ],
)
def test_what_the_container_waits_for(waiting: str, message: str, reason: Reason) -> None:
    """The kubelet's waiting reasons."""
    found = obstacle(pod("train", is_scheduled=True, waits=(Waiting("trainer", waiting, message),)), NOW)
    assert found is not None
    assert found.reason is reason


def test_a_cache_that_lags_is_no_obstacle() -> None:
    """A fresh pod's kubelet says once that its caches are not synchronised, and goes on."""
    fresh = pod("train", is_scheduled=True, waits=(Waiting("trainer", "ContainerCreating"),))
    lagging = replace(fresh, complaints=("failed to sync configmap cache: timed out",))
    assert obstacle(fresh, NOW) is None
    assert obstacle(lagging, NOW) is None


@pytest.mark.parametrize(
    ("status", "message", "fields", "reason"),
    [
        (422, "spec.template.spec.tolerations[0].key: Invalid", ("spec.template.spec.tolerations[0].key",), "BadSpec"),
        (422, "spec.template.spec.containers[1].image: Required value", (), "PolicyDenied"),
        (422, "ValidatingAdmissionPolicy 'x' denied request: no team", (), "PolicyDenied"),
        (422, 'admission webhook "v.example" denied the request: no', ("spec.template",), "PolicyDenied"),
        (400, 'admission webhook "v.example" denied the request: no', (), "PolicyDenied"),
        (403, 'jobs.batch "a" is forbidden: namespace a is being terminated', (), "PolicyDenied"),
        (403, "exceeded quota: t, requested: count/jobs.batch=1, used: count/jobs.batch=5", (), "JobQuotaExceeded"),
        (
            403,
            "exceeded quota: team, requested: requests.storage=20Gi, used: 0, limited: requests.storage=3Gi",
            (),
            "QuotaExceeded",
        ),
        (403, "failed quota: team: must specify limits.cpu for: istio-proxy", (), "QuotaExceeded"),
        (403, "maximum memory usage per Container is 1Gi, but limit is 8Gi", (), "LimitRange"),
        (403, "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi", (), "LimitRange"),
        (
            403,
            'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs"',
            (),
            "OperatorForbidden",
        ),
        (500, 'failed calling webhook "v.example": connection refused', (), "ServerUnavailable"),
        (504, "context deadline exceeded", (), "ServerUnavailable"),
        (409, 'Operation cannot be fulfilled on resourcequotas "team": modified', (), "ServerUnavailable"),
        (409, 'admission webhook "v.example" denied the request: not now', (), "PolicyDenied"),
        (429, "too many requests", (), "ServerUnavailable"),
        (0, "TimeoutError()", (), "ServerUnavailable"),
    ],
)
def test_what_a_refused_child_means(status: int, message: str, fields: tuple[str, ...], reason: str) -> None:
    """Only what the server blames a field of ours for is the spec's fault, and ends the job; all else is waited for."""
    assert refused(status, message, fields).reason == reason


@pytest.mark.parametrize(
    ("path", "is_ours"),
    [
        ("spec.template.spec.containers[0].image", True),
        ("spec.template.spec.containers[0].resources.requests[nvidia.com/gpu]", True),
        ("spec.template.labels", True),
        ("metadata.labels", True),
        ("spec.template.spec.containers[1].image", False),
        ("spec.template.spec.containers[0].args", False),
        ("spec.template.spec.containers[0].image.name", False),
        ("<nil>", False),
        ("", False),
    ],
)
def test_which_fields_are_ours(path: str, is_ours: bool) -> None:
    """Those of the manifest that was sent; what a mutating policy has added to it, nobody can mend in the spec."""
    container = {"name": "trainer", "image": "i", "resources": {"requests": {"nvidia.com/gpu": 1}}}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    assert has_field({"metadata": {"labels": {}}, "spec": {"template": template}}, path) is is_ours


def event(type: str, reason: str, seconds: float, message: str = "") -> dict[str, Any]:
    return {"type": type, "reason": reason, "message": message, "lastTimestamp": at(seconds)}


ATTACH = 'AttachVolume.Attach failed for volume "pv-a" : timed out'
ATTACHED = 'AttachVolume.Attach succeeded for volume "pv-{}"'


@pytest.mark.parametrize(
    ("later", "stands"),
    [
        ([], True),
        ([("Normal", "SuccessfulAttachVolume", 9, ATTACHED.format("a"))], False),
        ([("Normal", "SuccessfulAttachVolume", 9, ATTACHED.format("b"))], True),
        ([("Normal", "Pulling", 5, "")], False),
        ([("Normal", "Pulled", 9, "")], False),
        ([("Normal", "Pulling", 4, "")], True),
        ([("Normal", "NotTriggerScaleUp", 9, "")], True),
        ([("Warning", "FailedToRetrieveImagePullSecret", 9, "")], True),
        ([("Warning", "DNSConfigForming", 9, "Search Line limits were exceeded")], True),
        ([("Normal", "Pulling", 9, ""), ("Warning", "FailedAttachVolume", 12, ATTACH)], True),
    ],
)
def test_a_warning_stands_until_something_shows_that_it_is_over(
    later: list[tuple[str, str, float, str]], stands: bool
) -> None:
    """Events stay for an hour. In one second the trouble came first: it would be told again."""
    events = [event("Warning", "FailedAttachVolume", 5, ATTACH), *(event(*one) for one in later)]
    body = {"metadata": {"name": "a", "uid": "u", "labels": {STAGE_LABEL: "train"}}, "status": {"phase": "Pending"}}
    found = obstacle(replace(read_pod(body, events), is_scheduled=True), NOW)
    assert (found is not None and found.reason is Reason.VOLUME_NOT_READY and ATTACH in found.message) is stands


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ('MountVolume.SetUp failed for volume "auth" : references non-existent secret key: token', "SecretNotFound"),
        ('MountVolume.SetUp failed for volume "data" : references non-existent config key: a', "ConfigMapNotFound"),
        ('MountVolume.SetUp failed for volume "data" : configmap "c" not found', "ConfigMapNotFound"),
        ('MountVolume.SetUp failed for volume "data" : mount failed: exit status 32', "VolumeNotReady"),
    ],
)
def test_what_cannot_be_mounted(words: str, reason: str) -> None:
    """A Secret or ConfigMap that lacks a key is not a claim that is missing."""
    found = obstacle(pod("train", is_scheduled=True, complaints=(f"FailedMount: {words}",)), NOW)
    assert found is not None
    assert found.reason == reason


def test_a_container_that_never_started_keeps_a_pod_alive_too() -> None:
    """A sidecar whose image cannot be pulled, beside a trainer that has ended."""
    states = {"trainer": {"terminated": {"exitCode": 0}}, "mesh": {"waiting": {"reason": "ImagePullBackOff"}}}
    states["done"] = {"terminated": {"exitCode": 0}}
    body = {
        "metadata": {"name": "a", "uid": "u", "labels": {STAGE_LABEL: "train"}},
        "status": {"containerStatuses": [{"name": name, "state": state} for name, state in states.items()]},
    }
    assert read_pod(body).others == ("mesh",)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ('Internal error occurred: failed calling webhook "v.example": connect: refused', "ServerUnavailable"),
        ("Timeout: request did not complete within requested timeout - context deadline exceeded", "ServerUnavailable"),
        ("etcdserver: request timed out", "ServerUnavailable"),
        ("etcdserver: leader changed", "ServerUnavailable"),
        ("the server is currently unable to handle the request", "ServerUnavailable"),
        ('Post "https://10.0.0.1/api/v1/namespaces/a/pods": dial tcp 10.0.0.1:443: i/o timeout', "ServerUnavailable"),
        ('admission webhook "v.example" denied the request: lookup: context deadline exceeded', "PolicyDenied"),
        ('pods "a-timeout" is forbidden: violates PodSecurity "restricted:latest"', "PolicyDenied"),
        ('pods "a" is forbidden: exceeded quota: team, requested: cpu=4, used: cpu=8', "QuotaExceeded"),
        ('pods "a" is forbidden: no PriorityClass with name gold was found', "PodReferenceNotFound"),
        (
            'pods "a" is forbidden: error looking up service account a/x: serviceaccount "x" not found',
            "PodReferenceNotFound",
        ),
        ('pods "a" is forbidden: pod rejected: RuntimeClass "kata" not found', "PodReferenceNotFound"),
        ('Post "https://10.0.0.1/api/v1/pods": stream error: stream ID 9; INTERNAL_ERROR', "ServerUnavailable"),
        ('Post "https://10.0.0.1/api/v1/pods": http2: client connection lost', "ServerUnavailable"),
        ('Post "https://api/api/v1/pods": x509: certificate has expired', "ServerUnavailable"),
        (
            'admission webhook "images.corp" denied the request: Get "https://registry/v2/": no such host',
            "PolicyDenied",
        ),
    ],
)
def test_why_a_kubernetes_job_makes_no_pod(words: str, reason: str) -> None:
    """Only the Event's words tell a server that fails from a policy, and from a name in the spec that means nothing."""
    job = stage_job("train", complaints=(f"FailedCreate: Error creating: {words}",), complained_at=at(0))
    found = unmade(job)
    assert found is not None
    assert (found.reason, words in found.message) == (reason, True)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            "AlreadyMountedVolume",
            "The requested fsGroup is 1000660000, but the volume models has GID 10001. The volume…",
        ),
        ("DNSConfigForming", "Search Line limits were exceeded, some search paths have been omitted"),
        ("MissingClusterDNS", "kubelet does not have ClusterDNS IP configured and cannot create Pod using it"),
        ("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (regcred)"),
        ("FailedMount", "MountVolume.SetUp failed: failed to sync configmap cache: timed out waiting"),
    ],
)
def test_a_warning_that_stops_nothing_is_no_obstacle(reason: str, words: str) -> None:
    """The pod starts in spite of it; meanwhile nobody is told to mend anything."""
    body = {"metadata": {"name": "a", "uid": "u", "labels": {STAGE_LABEL: "train"}}, "status": {"phase": "Pending"}}
    assert obstacle(replace(read_pod(body, [event("Warning", reason, 5, words)]), is_scheduled=True), NOW) is None


def test_which_kubernetes_jobs_lack_a_pod() -> None:
    """Those that have failed pods too, or were suspended once; none that is suspended, has a pod or is over."""
    fresh = {"spec": {}}
    tried = {"spec": {}, "status": {"failed": 1, "conditions": [{"type": "Suspended", "status": "False"}]}}
    at_work = {"spec": {}, "status": {"active": 1}}
    done = {"spec": {}, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    bodies = [fresh, tried, at_work, done, {"spec": {"suspend": True}}]
    assert [lacks_a_pod(body) for body in bodies] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("words", "is_own"),
    [
        ('Usage of EmptyDir volume "tmp" exceeds the limit "4Gi". ', True),
        ('Container trainer exceeded its local ephemeral storage limit "2Gi". ', True),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ", True),
        (
            "The node was low on resource: memory. Container trainer was using 9Gi, has larger consumption of memory. ",
            True,
        ),
        (
            "The node was low on resource: memory. Container istio was using 9Gi, has larger consumption of memory. ",
            False,
        ),
        ("The node was low on resource: ephemeral-storage. ", False),
        ("The node had condition: [DiskPressure]. ", False),
    ],
)
def test_whose_fault_an_eviction_is(words: str, is_own: bool) -> None:
    """What the pod used itself counts as a try, whatever code its trainer ended with; a full node does not."""
    evicted = ended("train", 143, end_reason="Evicted", end_message=words, disruption="" if is_own else "evicted")
    end = ending(evicted)
    assert end is not None
    assert end.reason is (Reason.EVICTED if is_own else Reason.PREEMPTED)


def test_a_gated_pod_as_the_api_server_shows_it() -> None:
    """The condition alone does not name the gates."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "is blocked"}
    body = {
        "metadata": {"name": "a", "uid": "u", "labels": {STAGE_LABEL: "train"}, "creationTimestamp": at(-10)},
        "spec": {"schedulingGates": [{"name": "example.com/gate"}], "schedulerName": "volcano"},
        "status": {"phase": "Pending", "conditions": [condition]},
    }
    seen = read_pod(body)
    assert (seen.refusal_reason, seen.refusal) == ("SchedulingGated", "is blocked: example.com/gate")
    assert (seen.refused_since, seen.scheduler) == (at(-10), "volcano")
