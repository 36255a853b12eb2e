"""The chart against the real API server: what it renders is taken, the rights that it gives suffice and no more."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control_plane import ControlPlane
from cluster.paths import ClusterError
from contract.chart import CHART, JOB_VERBS, LEASE_VERBS, VALUE_SETS, bundle, helm, manifests, only
from finetune_api import labels
from integration.kubelet import JOBS, Api, Job, eventually, install_definition

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROMETHEUS_OPERATOR = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
ACCOUNT = "system:serviceaccount:finetune:ft-finetune-operator"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [ACCOUNT]}, {"level": "None"}],
}
"""What the operator asks for is written down, one line of JSON each."""


@pytest.fixture(scope="module")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "log"


@pytest.fixture(scope="module")
def prepared(audit_log: Path) -> Iterator[ControlPlane]:
    """An API server of our own, which audits, with the CRD and the namespaces that the value sets name."""
    policy = audit_log.with_name("policy.yaml")
    policy.write_text(yaml.safe_dump(AUDIT_POLICY))
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespaces = [{"name": name, "labels": enforced} for name in ("finetune", "team-a", "team-b")]
    items = [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata} for metadata in namespaces]
    flags = (f"--audit-policy-file={policy}", f"--audit-log-path={audit_log}")
    # As on OpenShift: who makes a child must be allowed to hold up its owner's deletion (finetunejobs/finalizers).
    strict = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement"
    with ControlPlane(api_server_flags=(*flags, strict)) as plane:
        install_definition(plane)
        plane.kubectl("apply", "-f", "-", document=bundle(items))
        yield plane


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_api_server_takes_every_manifest(name: str, prepared: ControlPlane) -> None:
    """Server-side apply, dry run, strict about unknown fields."""
    documents = [one for one in manifests(VALUE_SETS[name]) if one["kind"] not in PROMETHEUS_OPERATOR]

    said = prepared.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"),
        document=bundle(documents),
    )

    assert said.count("serverside-applied") == len(documents)


def test_the_operator_pod_meets_the_restricted_standard(prepared: ControlPlane) -> None:
    """The Deployment's pod, made by hand in a namespace that enforces `restricted`, is admitted."""
    template = only("Deployment", manifests({"serviceAccount": {"create": False}}))["spec"]["template"]
    template["metadata"]["name"] = "probe"

    said = prepared.kubectl(
        *("-n", "finetune", "apply", "--dry-run=server", "-f", "-"),
        document=json.dumps({"apiVersion": "v1", "kind": "Pod", **template}),
    )

    assert "pod/probe created" in said


IN_FORCE = {
    *("ServiceAccount", "Role", "RoleBinding", "ClusterRole"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
}
LIMIT = 24
"""Different objects that a job may name."""
HERS = [f"hers-{number}" for number in range(LIMIT)]
"""The Secrets, ConfigMaps and claims that Alice may read, and the service accounts that she may act as."""


@pytest.fixture(scope="module")
def installed(prepared: ControlPlane) -> Iterator[ControlPlane]:
    """The chart's roles and policy for team-a, in force; and Alice, who writes jobs and sees no Secret but her own."""
    documents = manifests({"namespaces": ["team-a"]})
    items = bundle([one for one in documents if one["kind"] in IN_FORCE])
    prepared.kubectl("apply", "--server-side", "-f", "-", document=items)
    for namespace in ("team-a", "team-b"):
        author = ("create", "role", "author", "--verb=create,get,patch", "--resource=finetunejobs.finetune.dev")
        prepared.kubectl("-n", namespace, *author)
        prepared.kubectl("-n", namespace, "create", "rolebinding", "author", "--role=author", "--user=alice")
    rights = (("read", "get", "secrets,configmaps,persistentvolumeclaims"), ("act", "impersonate", "serviceaccounts"))
    for role, verb, resources in rights:
        own = (f"--verb={verb}", f"--resource={resources}", *(f"--resource-name={name}" for name in HERS))
        prepared.kubectl("-n", "team-a", "create", "role", role, *own)
        prepared.kubectl("-n", "team-a", "create", "rolebinding", role, f"--role={role}", "--user=alice")
    prepared.wait_for("the policy", lambda: refusal(prepared, {"model": "theirs"}) != "")
    yield prepared
    prepared.kubectl("delete", "-f", "-", document=items)


OUTPUT = f"pvc://{HERS[0]}/a"


def refusal(
    plane: ControlPlane, secrets: dict[str, str], namespace: str = "team-a", template: dict[str, Any] | None = None
) -> str:
    """What the API server says to Alice's job that names these Secrets and has this podTemplate; empty when it would
    take it."""
    train = [source("hf://org/data/a.jsonl", secret) for place, secret in secrets.items() if place.startswith("train")]
    dataset: dict[str, Any] = {"train": train or [source("hf://org/data/a.jsonl")]}
    for split in ("validation", "test"):
        if split in secrets:
            dataset[split] = {"sources": [source("hf://org/data/b.jsonl", secrets[split])]}
    adapters = [source("hf://org/adapter", secret) for place, secret in secrets.items() if place == "adapter"]
    spec = {
        "model": source("hf://org/model", secrets.get("model")),
        "dataset": dataset,
        "method": {"lora": {"startFrom": {"adapters": adapters}} if adapters else {}},
        "output": {"uri": OUTPUT},
        "podTemplate": template,
    }
    return answer(plane, spec, namespace)


def source(uri: str, secret: str | None = None) -> dict[str, Any]:
    return {"uri": uri} | ({"auth": {"secretName": secret}} if secret else {})


def answer(plane: ControlPlane, spec: dict[str, Any], namespace: str = "team-a") -> str:
    """What the API server says to a job of Alice's; empty when it would take it."""
    metadata = {"name": f"hers-{time.monotonic_ns()}", "namespace": namespace}
    job = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": metadata, "spec": spec}
    try:
        plane.kubectl("create", "--as=alice", "--dry-run=server", "-f", "-", document=json.dumps(job))
    except ClusterError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize("place", ["model", "train", "validation", "test", "adapter"])
def test_nobody_can_have_a_secret_mounted_that_they_cannot_read(installed: ControlPlane, place: str) -> None:
    """Wherever a job names a Secret, its author must be allowed to get it; the refusal names the Secret."""
    said = refusal(installed, {place: "theirs"})

    assert "you may not get secrets/theirs in namespace team-a" in said
    assert refusal(installed, {place: HERS[0]}) == ""


URIS: dict[str, Callable[[str], dict[str, Any]]] = {
    "model": lambda uri: {"model": {"uri": uri}},
    "train": lambda uri: {"dataset": {"train": [source("hf://org/data/a.jsonl"), source(uri)]}},
    "validation": lambda uri: {"dataset": NAMES_NOTHING["dataset"] | {"validation": {"sources": [source(uri)]}}},
    "test": lambda uri: {"dataset": NAMES_NOTHING["dataset"] | {"test": {"sources": [source(uri)]}}},
    "adapter": lambda uri: {"method": {"lora": {"startFrom": {"adapters": [source(uri)]}}}},
    "output": lambda uri: {"output": {"uri": uri}},
}
"""A spec's fields with the URI, for each place that has one."""
NAMES_NOTHING: dict[str, Any] = {
    "model": source("hf://org/model"),
    "dataset": {"train": [source("hf://org/data/a.jsonl")]},
    "output": {"uri": OUTPUT},
}


@pytest.mark.parametrize("place", URIS)
def test_nobody_can_have_a_claim_mounted_that_they_may_not_get(installed: ControlPlane, place: str) -> None:
    """Whether it is read or written: `get` of the claim is the only right that Kubernetes has for it."""
    said = answer(installed, NAMES_NOTHING | URIS[place]("pvc://theirs/a/b.jsonl"))

    assert "you may not get persistentvolumeclaims/theirs in namespace team-a" in said
    assert answer(installed, NAMES_NOTHING | URIS[place](f"pvc://{HERS[1]}/a/b.jsonl")) == ""


@pytest.mark.parametrize("place", ["train", "validation", "test"])
def test_nobody_can_have_a_config_map_mounted_that_they_cannot_read(installed: ControlPlane, place: str) -> None:
    """Its keys are data, as the files of a claim are."""
    said = answer(installed, NAMES_NOTHING | URIS[place]("configmap://theirs/a.jsonl"))

    assert "you may not get configmaps/theirs in namespace team-a" in said
    assert answer(installed, NAMES_NOTHING | URIS[place](f"configmap://{HERS[1]}/a.jsonl")) == ""


TEMPLATES: dict[str, tuple[str, dict[str, Any]]] = {
    "env Secret": ("get secrets", {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "X", "key": "k"}}}]}),
    "env ConfigMap": (
        "get configmaps",
        {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "X", "key": "k"}}}]},
    ),
    "Secret": ("get secrets", {"volumes": [{"name": "a", "secret": {"secretName": "X"}}]}),
    "ConfigMap": ("get configmaps", {"volumes": [{"name": "a", "configMap": {"name": "X"}}]}),
    "claim": ("get persistentvolumeclaims", {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "X"}}]}),
    "service account": ("impersonate serviceaccounts", {"serviceAccountName": "X"}),
    "pull secret": ("get secrets", {"imagePullSecrets": [{"name": "X"}]}),
}
"""Each way in which a podTemplate names an object X, and the right that it takes."""


def naming(way: str, name: str, stage: str | None) -> dict[str, Any]:
    template = json.loads(json.dumps(TEMPLATES[way][1]).replace('"X"', json.dumps(name)))
    return {"stages": {stage: template}} if stage else template


@pytest.mark.parametrize("stage", [None, "prepare", "train", "publish"])
@pytest.mark.parametrize("way", TEMPLATES)
def test_a_pod_template_names_nothing_that_its_author_may_not_use(
    installed: ControlPlane, way: str, stage: str | None
) -> None:
    """Secrets, ConfigMaps and claims she has to read, a service account to act as, also for one stage."""
    said = refusal(installed, {}, template=naming(way, "theirs", stage))

    right, _, kind = TEMPLATES[way][0].partition(" ")
    assert f"you may not {right} {kind}/theirs in namespace team-a" in said
    assert refusal(installed, {}, template=naming(way, HERS[0], stage)) == ""


def test_an_edit_is_looked_at_like_a_new_job(installed: ControlPlane) -> None:
    """Who may edit a job may not make it name more than they may use; an edit that names nothing new is let through."""
    source = {"uri": "hf://org/model", "auth": {"secretName": "theirs"}}
    spec = {"model": source, "dataset": {"train": [{"uri": "pvc://d/a.jsonl"}]}, "output": {"uri": "pvc://out/a"}}
    job = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": {"name": "edited"}, "spec": spec}
    installed.kubectl("-n", "team-a", "create", "-f", "-", document=json.dumps(job))

    def edit(**fields: Any) -> None:
        patch = ("patch", "ftj", "edited", "--type=merge", "-p", json.dumps({"spec": fields}))
        installed.kubectl("-n", "team-a", "--as=alice", *patch)

    edit(suspend=True)
    edit(podTemplate=naming("Secret", HERS[0], "train"))
    edit(podTemplate={"nodeSelector": {"zone": "a"}})
    with pytest.raises(ClusterError, match="you may not get secrets/theirs"):
        edit(podTemplate=naming("Secret", "theirs", "train"))
    installed.kubectl("-n", "team-a", "delete", "ftj", "edited")


def test_one_foreign_secret_among_own_ones_is_enough_to_be_refused(installed: ControlPlane) -> None:
    """Each Secret is checked, not just the first."""
    said = refusal(installed, {"model": HERS[0], "train": HERS[1], "test": "theirs"})

    assert "you may not get secrets/theirs" in said
    assert refusal(installed, {"model": HERS[0], "train": HERS[1], "test": HERS[0]}) == ""


def test_a_job_names_a_limited_number_of_objects(installed: ControlPlane) -> None:
    """The check has a limit, which is said; the same Secret in 32 places counts once. The output's claim counts too."""
    places = {f"train-{number}": name for number, name in enumerate(HERS)}

    assert f"a job may name at most {LIMIT} different Secrets" in refusal(installed, places)
    assert refusal(installed, dict(list(places.items())[: LIMIT - 1])) == ""
    assert refusal(installed, {f"train-{number}": HERS[0] for number in range(32)}) == ""


def test_the_largest_job_is_within_the_budget_of_the_check(installed: ControlPlane) -> None:
    """Every list of the schema full, and as many different objects as may be named: the API server counts costs."""
    sources = [source(f"pvc://{HERS[0]}/{'long/' * 200}", HERS[number % (LIMIT - 1)]) for number in range(32)]
    shape = {
        "env": [{"name": f"A{n}", "valueFrom": {"secretKeyRef": {"name": HERS[0], "key": "k"}}} for n in range(32)],
        "volumes": [{"name": f"v{n}", "secret": {"secretName": HERS[0]}} for n in range(16)],
        "imagePullSecrets": [{"name": HERS[n]} for n in range(8)],
    }
    largest = {
        "dataset": {"train": sources, "validation": {"sources": sources}, "test": {"sources": sources}},
        "method": {"lora": {"startFrom": {"adapters": sources[:16]}}},
        "podTemplate": shape | {"stages": dict.fromkeys(("prepare", "train", "publish"), shape)},
    }

    assert answer(installed, NAMES_NOTHING | largest) == ""


def test_namespaces_that_are_not_served_are_left_alone(installed: ControlPlane) -> None:
    """The policy of an operator for team-a says nothing about team-b."""
    assert refusal(installed, {"model": "theirs"}, namespace="team-b") == ""


def test_the_policy_fits_the_schema(installed: ControlPlane) -> None:
    """The API server's type check of the policy's expressions against the CRD finds nothing."""
    policy = ("get", "validatingadmissionpolicy", "finetune.ft-finetune-operator-secrets", "-o", "json")

    installed.wait_for("the type check", lambda: "typeChecking" in json.loads(installed.kubectl(*policy))["status"])

    assert json.loads(installed.kubectl(*policy))["status"]["typeChecking"] == {}


def test_the_operator_deletes_no_claim_but_workspaces(installed: ControlPlane) -> None:
    """Its role cannot say which claims; the policy can."""
    uid = "0a1b2c3d-0000-4000-8000-000000000000"
    claims = {
        "models": {},
        "bot-0a1b2-workspace": {"finetune.dev/job-uid": uid},
        "forged": {"finetune.dev/job-uid": uid},
    }
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    for name, found in claims.items():
        body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec}
        metadata = {"name": name, "namespace": "team-a", "labels": found}
        installed.kubectl("apply", "-f", "-", document=json.dumps({**body, "metadata": metadata}))
    who = ("--as", "system:serviceaccount:finetune:ft-finetune-operator", "-n", "team-a")

    def answer(name: str) -> str:
        try:
            return installed.kubectl("delete", "pvc", name, "--dry-run=server", *who)
        except ClusterError as problem:
            return str(problem)

    installed.wait_for("the policy", lambda: "changes no claim but" in answer("models"))
    assert "changes no claim but the workspaces" in answer("forged")
    assert "deleted" in answer("bot-0a1b2-workspace")


def test_the_service_account_may_do_what_its_role_says_and_no_more(installed: ControlPlane) -> None:
    """Asked of the API server: every verb of the table in its namespaces, and nothing that an attacker would like."""
    allowed = [(verb, group, resource, "team-a") for (group, resource), verbs in JOB_VERBS.items() for verb in verbs]
    allowed += [("update", "coordination.k8s.io", "leases:ft-finetune-operator", "finetune")]
    denied = [
        ("get", "", "secrets", "team-a"),
        ("create", "", "pods", "team-a"),
        ("create", "", "pods/exec", "team-a"),
        ("list", "", "configmaps", "team-a"),
        ("deletecollection", "", "persistentvolumeclaims", "team-a"),
        ("bind", "rbac.authorization.k8s.io", "roles", "team-a"),
        ("patch", "finetune.dev", "finetunejobs", "team-a"),
        ("list", "finetune.dev", "finetunejobs", "team-b"),
        ("create", "batch", "jobs", "team-b"),
        ("update", "coordination.k8s.io", "leases:another", "finetune"),
    ]

    answers = reviews(installed, "system:serviceaccount:finetune:ft-finetune-operator", [*allowed, *denied])

    assert [question for question in allowed if not answers[question]] == []
    assert [question for question in denied if answers[question]] == []


Question = tuple[str, str, str, str]
"""Verb, API group, `resource[/subresource][:name]`, namespace."""


def reviews(plane: ControlPlane, user: str, questions: list[Question]) -> dict[Question, bool]:
    """What `user` may do, as the API server sees it."""

    def review(verb: str, group: str, resource: str, namespace: str) -> dict[str, Any]:
        kind, _, name = resource.partition(":")
        kind, _, subresource = kind.partition("/")
        where = {"group": group, "resource": kind, "subresource": subresource, "name": name, "namespace": namespace}
        spec = {"user": user, "resourceAttributes": {"verb": verb, **where}}
        return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}

    document = bundle([review(*question) for question in questions])
    answers = plane.kubectl("create", "-f", "-", '-o=jsonpath={.status.allowed}{" "}', document=document).split()
    return {question: answer == "true" for question, answer in zip(questions, answers, strict=True)}


@contextmanager
def deployed_operator(plane: ControlPlane, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The operator as the Deployment would run it: its arguments, and no more rights than its service account has."""
    deployment = only("Deployment", manifests({"namespaces": ["team-a"]}))
    pod = deployment["spec"]["template"]["spec"]
    token = plane.kubectl("-n", "finetune", "create", "token", pod["serviceAccountName"]).strip()
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    kubeconfig = log.with_name("kubeconfig")
    kubeconfig.write_text(yaml.safe_dump(config))
    arguments = [*pod["containers"][0]["args"], "--port=0"]
    command = [sys.executable, "-m", "finetune_operator", *arguments]
    with log.open("wb") as output:
        environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_those_rights_suffice_and_each_is_used(installed: ControlPlane, audit_log: Path, tmp_path: Path) -> None:
    """A job lives its whole life, trouble and suspension included, from the Lease to its deletion after its time."""
    job = Job(Api(installed), "team-a", "whole-life")
    job.api.create("/api/v1/nodes", {"metadata": {"name": "played"}})

    with deployed_operator(installed, tmp_path / "log") as process:
        live(job)
        assert process.poll() is None

    requests = [json.loads(line) for line in audit_log.read_text().splitlines()]
    assert [one["requestURI"] for one in requests if one["responseStatus"]["code"] == 403] == []
    # The admission plugin asks for this right within the server, which audits no such question.
    finalizers = ("finetune.dev", "finetunejobs/finalizers")
    assert used(requests) == {key: verbs for key, verbs in (JOB_VERBS | LEASE_VERBS).items() if key != finalizers}


def live(job: Job) -> None:
    """From trouble through suspension, failure and return to success and deletion, so that the operator needs all
    that it may do."""
    model, data = {"uri": "pvc://models/base"}, {"train": [{"uri": "configmap://data/train.jsonl"}]}
    spec = {"model": model, "dataset": data, "output": {"uri": "pvc://out/a"}, "ttlSecondsAfterFinished": 5}
    body = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": {"name": job.name}, "spec": spec}
    job.api.create(JOBS.format(job.namespace), body)
    pod = job.new_pod("prepare")
    pod.complain('configmap "data" not found')
    job.wait_reason("ConfigMapNotFound")
    pod.start()
    pod.end(0, {"stage": "prepare"})
    pod = job.new_pod("train")
    pod.start()
    job.edit(suspend=True)
    eventually(lambda: pod.reload().is_deleting(), "the pod is told to end")
    pod.end(75, {"stage": "train", "reason": "Preempted"})
    job.wait_phase("Suspended")
    job.edit(suspend=False)
    job.run_stage("train")
    pod = job.new_pod("publish")
    pod.start()
    pod.end(77)
    job.wait_phase("Failed")
    job.edit(restarts=1)
    job.run_stage("publish", artifact={"uri": "pvc://out/a", "digest": "sha256:abc"})
    eventually(lambda: job.api.get(job.path) is None, "the job is deleted after its time")


def used(requests: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """Verbs by API group and resource, as an audit log tells them; requests that name no resource are left out."""
    verbs: dict[tuple[str, str], set[str]] = {}
    for request in requests:
        about = request.get("objectRef", {})
        if "resource" in about:
            parts = [about["resource"], *([about["subresource"]] if "subresource" in about else [])]
            verbs.setdefault((about.get("apiGroup", ""), "/".join(parts)), set()).add(request["verb"])
    return verbs


def test_uninstalling_leaves_the_jobs(prepared: ControlPlane) -> None:
    """`helm install`, `upgrade` and `uninstall` for real: everything goes but the definition, and with it the jobs."""
    spec = {"model": {"uri": "hf://org/model"}, "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]}}
    job = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": {"name": "stays", "namespace": "team-b"}}
    job["spec"] = {**spec, "output": {"uri": "pvc://out/a"}}
    prepared.kubectl("apply", "-f", "-", document=json.dumps(job))

    def run(*arguments: str) -> None:
        done = helm(*arguments, "--namespace=finetune", KUBECONFIG=str(prepared.kubeconfig))
        assert done.returncode == 0, done.stderr

    def names(kinds: str, namespace: str = "finetune") -> str:
        return prepared.kubectl("-n", namespace, "get", kinds, "-o", "name")

    # The definition is there already, applied by kubectl: Helm is told to take it over.
    run("install", "real", str(CHART), "--take-ownership", "--force-conflicts")
    run("upgrade", "real", str(CHART), "--set=replicas=2")
    assert "poddisruptionbudget.policy/real-finetune-operator" in names("poddisruptionbudgets")
    run("uninstall", "real")

    assert "real-" not in names("deployments,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets")
    assert names("finetunejobs", "team-b").split() == ["finetunejob.finetune.dev/stays"]
