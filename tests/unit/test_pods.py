"""What a stage's pod looks like: what the operator decides stays, what platform and job may say is said.

Merging is seen where it counts, in the template of a pod.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.pod_template import IDS, PodMetadata, PodSecurityContext, PodTemplate, StageTemplate
from finetune_api.stages import STAGES, TRAIN, StageName
from finetune_operator import manifests, pods
from finetune_operator.stages import TRAITS
from unit.observed import METADATA, SETTINGS, spec
from unit.test_objects import SPECS, job_of

Object = dict[str, Any]
OTHER_IDS = {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3}


def template(
    wanted: FineTuneJobSpec, stage: StageName = "train", platform: Object | None = None, **metadata: Any
) -> Object:
    """The template of a stage's pods, under what the chart says and with this metadata of the job."""
    settings = replace(SETTINGS, pod_template=PodTemplate.model_validate(platform or {}))
    copied = {name: metadata.pop(name) for name in ("copy_labels", "copy_annotations") if name in metadata}
    job = METADATA.model_copy(update=metadata)
    return pods.pod_template(job, wanted, stage, "registry.example/trainer:1", replace(settings, **copied))


def pod(wanted: FineTuneJobSpec, stage: StageName = "train", platform: Object | None = None) -> Object:
    return dict(template(wanted, stage, platform)["spec"])


def container(pod: Object) -> Object:
    (only,) = pod["containers"]
    return dict(only)


def ids(pod: Object) -> Object:
    return {name: value for name, value in pod["securityContext"].items() if name in IDS}


def test_only_training_holds_gpus() -> None:
    """prepare and publish ask for none."""
    held = [container(pod(spec(resources={"gpus": 1}), stage))["resources"]["limits"] for stage in STAGES]
    assert ["nvidia.com/gpu" in limits for limits in held] == [False, True, False]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SPECS)
def test_every_pod_is_fit_for_a_restricted_namespace(name: str, stage: StageName) -> None:
    """No root, no capability, no writable root file system, no token of the API server."""
    made = pod(spec(**SPECS[name]), stage)
    assert made["securityContext"]["runAsNonRoot"]
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not made["automountServiceAccountToken"]
    assert container(made)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_claim_that_is_input_and_output_is_mounted_once(stage: StageName) -> None:
    """A volume can be mounted at one place only; where the stage writes, it is writable."""
    wanted = spec(model={"uri": "pvc://models/base"}, output={"uri": "pvc://models/tuned"})
    mounts = container(pod(wanted, stage))["volumeMounts"]
    (mount,) = [mount for mount in mounts if mount["mountPath"] == "/volumes/models"]
    assert mount.get("readOnly", False) == (stage == "train")


def test_credentials_and_data_are_mounted_in_prepare_alone() -> None:
    """What trains, and what publishes, never sees a token."""
    wanted = spec(**SPECS["everything"])
    paths = {stage: {mount["mountPath"] for mount in container(pod(wanted, stage))["volumeMounts"]} for stage in STAGES}
    assert {"/secrets/hub", "/volumes/datasets", "/configmaps/extra"} <= paths["prepare"]
    for stage in ("train", "publish"):
        assert not {path for path in paths[stage] if path.startswith(("/secrets", "/configmaps", "/volumes/datasets"))}


def test_the_run_file_says_where_everything_is_mounted() -> None:
    """The trainer finds by URI exactly what the pod mounts."""
    wanted = spec(**SPECS["everything"])
    run = manifests.frozen_run(METADATA, wanted, SETTINGS)
    mounted = {mount["mountPath"] for mount in container(pod(wanted, "prepare"))["volumeMounts"]}
    assert set(run.mounts.values()) <= mounted
    assert str(run.locate("configmap://extra/more.jsonl")) == "/configmaps/extra/more.jsonl"
    assert str(run.secret("hub")) == "/secrets/hub/token"


def test_the_hub_is_off_only_when_nothing_is_on_it() -> None:
    """An offline run never waits for a network that is not there."""
    names = [
        {one["name"] for one in container(pod(spec(**SPECS[name]), "prepare"))["env"]}
        for name in ("minimal", "offline-on-cpu")
    ]
    assert ["HF_HUB_OFFLINE" in one for one in names] == [False, True]


@pytest.mark.parametrize(("cpu", "threads"), [("500m", "1"), ("2", "2"), ("3500m", "4"), (4, "4")])
def test_arithmetic_uses_as_many_threads_as_there_are_cores(cpu: object, threads: str) -> None:
    """Libraries would count the node's cores."""
    made = container(pod(spec(resources={"cpu": cpu})))
    assert {"name": "OMP_NUM_THREADS", "value": threads} in made["env"]


def test_what_a_pod_writes_to_its_node_has_a_limit() -> None:
    """/tmp and /dev/shm: a pod that exceeds it is evicted by its own fault, and takes no other pod with it."""
    made = pod(spec(resources={"memory": "3Gi"}))
    limits = {one["name"]: one["emptyDir"]["sizeLimit"] for one in made["volumes"] if "emptyDir" in one}
    assert limits == {"tmp": pods.TMP_LIMIT, "shm": "1536Mi"}

    bounded = pod(spec(podTemplate={"ephemeralStorage": {"request": "1Gi", "limit": "9Gi"}}), "prepare")
    assert [one["emptyDir"]["sizeLimit"] for one in bounded["volumes"] if "emptyDir" in one] == ["9Gi"]
    resources = container(bounded)["resources"]
    assert (resources["requests"][pods.DISK], resources["limits"][pods.DISK]) == ("1Gi", "9Gi")


def test_a_request_of_disk_is_never_above_its_limit() -> None:
    """Whoever said which: a pod that asks for more than it may have is refused."""
    job, platform = {"ephemeralStorage": {"limit": "1Gi"}}, {"ephemeralStorage": {"request": "2000Mi"}}
    for made in (pod(spec(podTemplate=job), "train", platform), pod(spec(podTemplate=platform), "train", job)):
        resources = container(made)["resources"]
        assert (resources["requests"][pods.DISK], resources["limits"][pods.DISK]) == ("1Gi", "1Gi")


def test_the_more_specific_one_is_heard() -> None:
    """Of one value: operator, platform, platform's stage, job, job's stage, each outweighs those before it."""
    levels = [None, 10, 20, 40, 50]
    seen = []
    for number in range(1, len(levels) + 1):
        said = {place: {"terminationGracePeriodSeconds": value} for place, value in enumerate(levels[:number]) if value}
        platform = {**said.get(1, {}), "stages": {"train": said.get(2, {})}}
        job = {**said.get(3, {}), "stages": {"train": said.get(4, {})}}
        seen.append(pod(spec(podTemplate=job), "train", platform)["terminationGracePeriodSeconds"])
        assert pod(spec(podTemplate=job), "publish", platform)["terminationGracePeriodSeconds"] in (30, 10, 40)
    assert seen == [TRAITS[TRAIN].grace_seconds, 10, 20, 40, 50]


def test_maps_are_merged_by_key_and_lists_by_name() -> None:
    """What another level says of another label, variable, volume, path or taint stays."""
    platform = {
        "metadata": {"labels": {"team": "platform", "cost": "1"}},
        "nodeSelector": {"pool": "cpu", "zone": "a"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "env": [{"name": "A", "value": "platform"}, {"name": "B", "value": "platform"}],
        "imagePullSecrets": [{"name": "pull"}],
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "volumeMounts": [{"name": "cache", "mountPath": "/mnt/cache"}],
    }
    job = {
        "metadata": {"labels": {"team": "nlp"}},
        "env": [{"name": "A", "value": "job"}, {"name": "C", "value": "job"}],
        "imagePullSecrets": [{"name": "pull"}, {"name": "own"}],
        "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
        "stages": {"train": {"nodeSelector": {"pool": "gpu"}}},
    }
    wanted = spec(podTemplate=job, scheduling={"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "gpu"}]})
    found = template(wanted, "train", platform)
    made = found["spec"]
    assert {"team": "nlp", "cost": "1"}.items() <= found["metadata"]["labels"].items()
    assert made["nodeSelector"] == {"pool": "gpu", "zone": "a", "disk": "fast"}
    assert [one["key"] for one in made["tolerations"]] == ["spot", "gpu"]
    said = {one["name"]: one["value"] for one in container(made)["env"] if one["name"] in "ABC"}
    assert said == {"A": "job", "B": "platform", "C": "job"}
    assert made["imagePullSecrets"] == [{"name": "pull"}, {"name": "own"}]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}} in made["volumes"]
    assert pod(wanted, "prepare", platform)["nodeSelector"] == {"pool": "cpu", "zone": "a", "disk": "fast"}


FIELDS = sorted({name for model in (StageTemplate, PodMetadata, PodSecurityContext) for name in model.model_fields})


@pytest.mark.parametrize("field", [to_camel(name) for name in FIELDS])
def test_keys_are_words_and_no_fields(field: str) -> None:
    """A label, an annotation or a node label may be called as any field of a template is, at each level."""
    word = {field: "x"}
    said = {"metadata": {"labels": word, "annotations": word}, "nodeSelector": word}
    made = template(spec(podTemplate=said, scheduling={"nodeSelector": word}), "train", said)
    assert word.items() <= made["metadata"]["labels"].items()
    assert made["metadata"]["annotations"] == made["spec"]["nodeSelector"] == word


def test_a_variable_is_said_once() -> None:
    """Also one that the operator sets and that is not its alone: a list with a name twice is refused by some tools."""
    job = {"env": [{"name": "HF_XET_CHUNK_CACHE_SIZE_BYTES", "value": "1000000"}]}
    names = [one["name"] for one in container(pod(spec(podTemplate=job)))["env"]]
    assert len(names) == len(set(names))
    assert job["env"][0] in container(pod(spec(podTemplate=job)))["env"]


def test_a_volume_that_a_stage_mounts_nowhere_is_not_its_own() -> None:
    """prepare does not wait for a claim that only training needs."""
    job = {
        "volumes": [{"name": "scratch", "persistentVolumeClaim": {"claimName": "scratch"}}],
        "stages": {"train": {"volumeMounts": [{"name": "scratch", "mountPath": "/mnt/scratch"}]}},
    }
    names = {stage: [one["name"] for one in pod(spec(podTemplate=job), stage)["volumes"]] for stage in STAGES}
    assert [stage for stage in STAGES if "scratch" in names[stage]] == ["train"]


@pytest.mark.parametrize(
    "said",
    [{}, dict.fromkeys(OTHER_IDS), {"unset": list(IDS)}, {"runAsUser": None, "unset": ["runAsGroup", "fsGroup"]}],
    ids=["empty", "null", "unset", "both"],
)
def test_ids_can_be_left_to_the_platform(said: Object) -> None:
    """By job or chart, in each way of saying so; what is not an id stays, so the pod is still fit for `restricted`."""
    for made in (pod(spec(podTemplate={"securityContext": said})), pod(spec(), platform={"securityContext": said})):
        assert not set(OTHER_IDS) & set(made["securityContext"])
        assert made["securityContext"]["runAsNonRoot"]


def test_one_id_can_be_left_out_and_the_others_stay() -> None:
    """Null and unset are about one id; and a more specific level may set it again."""
    for said in ({"runAsUser": None}, {"unset": ["runAsUser"]}):
        assert "runAsUser" not in ids(pod(spec(podTemplate={"securityContext": said})))
        assert ids(pod(spec(podTemplate={"securityContext": said})))["fsGroup"] == pods.USER
        again = spec(podTemplate={"securityContext": {"runAsUser": 7}})
        assert ids(pod(again, platform={"securityContext": said}))["runAsUser"] == 7


def test_a_secret_can_be_read_by_whoever_the_platform_makes_the_trainer() -> None:
    """Without a group of ours its files are readable by all of the pod, which is the trainer alone."""
    for said, mode in (({"securityContext": {}}, 0o444), ({}, 0o440)):
        made = pod(spec(**SPECS["everything"], podTemplate=said), "prepare")
        assert [one["secret"]["defaultMode"] for one in made["volumes"] if "secret" in one] == [mode]


def test_our_labels_are_ours() -> None:
    """By them a pod is found: neither metadata of the job nor a list of the platform can say whose it is."""
    forged = {"finetune.dev/job": "another", "team": "nlp", "example.com/a": "1", "example.org/b": "2"}
    made = template(spec(), labels=forged, copy_labels=("team", "example.com/*", "finetune.dev/*"))
    assert made["metadata"]["labels"]["finetune.dev/job"] == METADATA.name
    assert {"team": "nlp", "example.com/a": "1"}.items() <= made["metadata"]["labels"].items()
    assert "example.org/b" not in made["metadata"]["labels"]


def test_metadata_of_the_job_reaches_its_pods_by_the_platforms_list() -> None:
    """Nothing without a list; the job's podTemplate outweighs what is copied."""
    said = {"karpenter.sh/do-not-disrupt": "true", "note": "secret"}
    assert "annotations" not in template(spec(), annotations=said)["metadata"]
    copied = template(spec(), annotations=said, copy_annotations=("karpenter.sh/*",))
    assert copied["metadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}
    wanted = spec(podTemplate={"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "false"}}})
    own = template(wanted, annotations=said, copy_annotations=("karpenter.sh/*",))
    assert own["metadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "false"}


QUEUED = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "prod"}


@pytest.mark.parametrize(
    ("found", "queue", "expected"),
    [
        ({}, None, {}),
        (QUEUED, None, QUEUED),
        (QUEUED, "team-b", QUEUED | {"kueue.x-k8s.io/queue-name": "team-b"}),
        ({}, "team-b", {"kueue.x-k8s.io/queue-name": "team-b"}),
        ({"kueue.x-k8s.io/priority-class": "prod"}, None, {"kueue.x-k8s.io/priority-class": "prod"}),
    ],
)
def test_kueue_is_told_by_the_labels_of_the_job(found: dict[str, str], queue: str | None, expected: Object) -> None:
    """As on every workload of Kueue; the queue of `scheduling` outweighs the label. Only the train Job is queued."""
    wanted, metadata = spec(scheduling={"queue": queue}), METADATA.model_copy(update={"labels": found})
    jobs = {stage: job_of(wanted, stage, owner=metadata) for stage in STAGES}
    told = {
        stage: {key: value for key, value in job["metadata"]["labels"].items() if "kueue" in key}
        for stage, job in jobs.items()
    }
    assert told == {"prepare": {}, "train": expected, "publish": {}}
    assert jobs["train"]["spec"].get("suspend", False) == ("kueue.x-k8s.io/queue-name" in expected)


def test_an_edit_of_the_template_counts_from_the_next_pod_on() -> None:
    """The frozen run says nothing about how pods look, and the Job says from which spec its pods are made."""
    edited = job_of(spec(podTemplate={"nodeSelector": {"pool": "gpu"}}), "train")
    assert edited["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert edited["metadata"]["annotations"] != job_of(spec(), "train")["metadata"]["annotations"]
