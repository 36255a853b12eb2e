"""The Helm chart says what the code needs and no more, the API server takes what it renders, wrong values are refused.

Rendered manifests are compared with tests/golden/chart (rewrite them with UPDATE_GOLDEN=1, then read the diff), and go
through the API server's own dry run. Kinds that no plain cluster knows (the Prometheus operator's) have the former.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from cluster.binaries import binary
from cluster.control_plane import ControlPlane
from cluster.paths import ClusterError
from finetune_api import labels
from finetune_operator import metrics, objects, settings
from integration.kubelet import JOBS, Api, Job, eventually

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
GOLDEN = ROOT / "tests/golden/chart"
VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one-namespace": {"namespaces": ["team-a"], "rbac": {"aggregate": False}},
    "several-namespaces": {"namespaces": ["team-a", "team-b"], "networkPolicy": {"enabled": True}},
    "no-cluster-objects": {
        "namespaces": ["team-a"],
        "crds": {"enabled": False},
        "admissionPolicy": {"enabled": False},
        "rbac": {"aggregate": False},
        "serviceAccount": {"create": False, "name": "given"},
    },
    "monitored": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        },
    },
    "high-availability": {
        "registry": "registry.example.com/ml",
        "image": {"digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "trainer": {"image": {"tag": "1.2.3"}, "imagePullSecrets": ["pull", "other"]},
        "replicas": 3,
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "extraEnv": [{"name": "FINETUNE_WORKERS", "value": "48"}],
        "podAnnotations": {"example.com/team": "ml"},
        "podLabels": {"team": "ml"},
        "commonLabels": {"cost-center": "42"},
        "serviceAccount": {"annotations": {"example.com/role": "none"}},
        "service": {"annotations": {"example.com/scrape": "true"}},
    },
}
PROMETHEUS_OPERATOR = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}

JOB_VERBS = {
    ("finetune.dev", "finetunejobs"): {"get", "list", "watch", "delete"},
    ("finetune.dev", "finetunejobs/status"): {"get", "patch"},
    ("finetune.dev", "finetunejobs/finalizers"): {"update"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "delete"},
    ("", "configmaps"): {"get", "create"},
    ("", "persistentvolumeclaims"): {"get", "create"},
    ("", "pods"): {"get", "list", "watch"},
    ("", "events"): {"list", "watch", "create"},
}
"""All that the operator may do where jobs are. A line more here is a decision."""
LEASE_VERBS = {("coordination.k8s.io", "leases"): {"get", "update", "create"}}


def helm(*arguments: str, document: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command, environ = [str(binary("helm")), *arguments], os.environ | environment
    return subprocess.run(command, input=document, capture_output=True, text=True, env=environ, check=False)


def template(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Render a release `ft` in namespace `finetune`."""
    release = ("template", "ft", str(CHART), "--namespace=finetune", "--kube-version=1.36.3", "--values=-")
    return helm(*release, document=yaml.safe_dump(values))


def manifests(values: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(_manifests(json.dumps(values)))


@cache
def _manifests(values: str) -> str:
    done = template(json.loads(values))
    assert done.returncode == 0, done.stderr
    return json.dumps([document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document])


def only(kind: str, documents: list[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    (found,) = [one for one in documents if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return found


def bundle(items: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


# Form


def test_helm_finds_nothing_to_complain_about() -> None:
    """`helm lint --strict` passes."""
    done = helm("lint", "--strict", str(CHART))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VALUE_SETS)
def test_what_is_rendered_is_what_was_reviewed(name: str) -> None:
    """Each value set renders to its golden file; the CRD, which has a test of its own, is left out of it."""
    documents = [one for one in manifests(VALUE_SETS[name]) if one["kind"] != "CustomResourceDefinition"]
    text = yaml.safe_dump_all(documents, sort_keys=False, width=120)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)

    assert text == golden.read_text()


def test_the_chart_installs_the_generated_definition() -> None:
    """The CRD of the chart is crds/finetunejobs.yaml, plus Helm's labels and the wish to be kept."""
    generated = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())

    rendered = only("CustomResourceDefinition", manifests({}))

    assert rendered["spec"] == generated["spec"]
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_definition_that_need_not_be_kept_goes_with_the_chart() -> None:
    """`crds.keep: false` leaves the annotation out."""
    rendered = only("CustomResourceDefinition", manifests({"crds": {"keep": False}}))

    assert "annotations" not in rendered["metadata"]


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every value that a person may set; a map that is a value as a whole (resources, selectors) counts as one."""
    for key, value in values.items():
        is_stanza = isinstance(value, dict) and value and (*path, key) not in WHOLE
        yield from leaves(value, (*path, key)) if is_stanza else [(*path, key)]


WHOLE = {("resources",), ("podSecurityContext",), ("securityContext",)}
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_every_value_has_a_schema_and_no_schema_lacks_its_value() -> None:
    """values.yaml and values.schema.json name the same values."""

    def properties(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, value in schema["properties"].items():
            value = SCHEMA["definitions"][value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else value
            is_stanza = "properties" in value and (*path, key) not in WHOLE
            yield from properties(value, (*path, key)) if is_stanza else [(*path, key)]

    assert set(properties(SCHEMA)) - {("global",)} == set(leaves(VALUES))


def test_every_value_is_explained() -> None:
    """A comment that starts with `# --` stands above each value."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    for path in leaves(VALUES):
        indent = "  " * (len(path) - 1)
        places = [number for number, line in enumerate(lines) if line.startswith(f"{indent}{path[-1]}:")]
        above = [lines[number - 1].strip() for number in places]
        assert above, f"{'.'.join(path)} is not on a line of its own"
        assert all(line.startswith("#") for line in above), f"{'.'.join(path)} has no comment"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replicas": "two"}, "at '/replicas': got string, want integer"),
        ({"images": {}}, "additional properties 'images' not allowed"),
        ({"crds": {"enable": True}}, "at '/crds': additional properties 'enable' not allowed"),
        ({"namespaces": ["Team_A"]}, "at '/namespaces/0'"),
        ({"namespaces": ["a", "a"]}, "at '/namespaces': items at 0 and 1 are equal"),
        ({"namespaces": "team-a"}, "at '/namespaces': got string, want array"),
        ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
        ({"image": {"repository": ""}}, "at '/image/repository'"),
        ({"trainer": {"image": {"pullPolicy": "Sometimes"}}}, "at '/trainer/image/pullPolicy': value must be one of"),
        ({"logLevel": "loud"}, "at '/logLevel': value must be one of 'debug', 'info', 'warning', 'error'"),
        ({"podMonitor": {"interval": "often"}}, "at '/podMonitor/interval'"),
        ({"nodeSelector": {"gpu": True}}, "at '/nodeSelector/gpu': got boolean, want string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], complaint: str) -> None:
    """A value that is misspelt or of the wrong type stops the installation with a message that names it."""
    done = template(values)

    assert done.returncode != 0
    assert complaint in done.stderr


# What the chart and the code agree on


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_operator_understands_its_flags(name: str) -> None:
    """The operator parses the arguments of the Deployment to the settings that the values mean."""
    values = VALUE_SETS[name]
    container = only("Deployment", manifests(values))["spec"]["template"]["spec"]["containers"][0]

    parsed = settings.parse(container["args"], {one["name"]: one["value"] for one in container.get("env", [])})

    assert parsed.namespaces == tuple(values.get("namespaces", ()))
    assert parsed.leader_elect
    assert (parsed.lease_namespace, parsed.lease_name) == ("finetune", "ft-finetune-operator")
    assert parsed.port == container["ports"][0]["containerPort"]
    if name == "high-availability":
        assert parsed.trainer_image == "registry.example.com/ml/finetune-trainer:1.2.3"
        assert parsed.image_pull_secrets == ("pull", "other")
        assert parsed.workers == 48


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "trainer_image/Dockerfile"])
def test_images_and_pods_agree_on_the_user(dockerfile: str) -> None:
    """The images run as the user that the operator gives to trainer pods and the chart to the operator's pod."""
    text = (ROOT / dockerfile).read_text()

    assert re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE) == [(str(objects.USER), str(objects.USER))]
    assert VALUES["podSecurityContext"]["runAsUser"] == objects.USER


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "trainer_image/Dockerfile"])
def test_what_a_dockerfile_copies_is_there(dockerfile: str) -> None:
    """Every source of a COPY exists in the repository."""
    sources = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / dockerfile).read_text(), re.MULTILINE)

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_policies_select_the_labels_and_ports_of_trainer_pods() -> None:
    """Monitor and network policy name the label and the port that `objects` gives to a trainer pod."""
    documents = manifests(VALUE_SETS["monitored"])

    monitor = only("PodMonitor", documents)["spec"]
    assert monitor["selector"] == {"matchExpressions": [{"key": labels.JOB_LABEL, "operator": "Exists"}]}
    assert monitor["podTargetLabels"] == [labels.JOB_LABEL, labels.STAGE_LABEL]
    assert monitor["podMetricsEndpoints"][0]["path"] == labels.METRICS_PATH
    to_trainers = only("NetworkPolicy", documents)["spec"]["egress"][-1]
    assert to_trainers["to"][0]["podSelector"] == monitor["selector"]
    assert to_trainers["ports"] == [{"port": labels.PROGRESS_PORT, "protocol": "TCP"}]


def test_alerts_ask_for_metrics_that_exist() -> None:
    """Every series that an alert names is one that the operator exports."""
    exported = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    exported |= {family.name for family in REGISTRY.collect()}
    rules = only("PrometheusRule", manifests(VALUE_SETS["monitored"]))["spec"]["groups"][0]["rules"]

    asked = {name for rule in rules for name in re.findall(r"\bfinetune_\w+", rule["expr"])}

    assert metrics.page()
    assert asked
    assert asked <= exported


# What the operator may do


def granted(role: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    verbs: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                verbs.setdefault((group, resource), set()).update(rule["verbs"])
    return verbs


def test_cluster_wide_the_operator_gets_one_cluster_role() -> None:
    """Exactly the verbs that it uses, no Secrets, no wildcard."""
    documents = manifests({})

    assert granted(only("ClusterRole", documents, "ft-finetune-operator")) == JOB_VERBS
    assert granted(only("Role", documents)) == LEASE_VERBS


@pytest.mark.parametrize("name", ["one-namespace", "several-namespaces"])
def test_in_named_namespaces_the_operator_gets_nothing_cluster_wide(name: str) -> None:
    """One Role and one RoleBinding in each namespace, with the same verbs, and no ClusterRoleBinding."""
    documents = manifests(VALUE_SETS[name])

    roles = {one["metadata"]["namespace"]: granted(one) for one in documents if one["kind"] == "Role"}
    assert roles == {"finetune": LEASE_VERBS, **dict.fromkeys(VALUE_SETS[name]["namespaces"], JOB_VERBS)}
    assert not [one for one in documents if one["kind"] == "ClusterRoleBinding"]


def test_a_tenant_without_cluster_rights_can_install() -> None:
    """With definition, policy and user roles left to the platform team, nothing cluster-scoped is rendered."""
    documents = manifests(VALUE_SETS["no-cluster-objects"])

    assert all("namespace" in one["metadata"] for one in documents)


# The real API server


@pytest.fixture(scope="module")
def prepared(control_plane: ControlPlane) -> ControlPlane:
    """The API server, with the namespaces that the value sets name, which enforce the restricted standard."""
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespaces = [{"name": name, "labels": enforced} for name in ("finetune", "team-a", "team-b")]
    items = [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata} for metadata in namespaces]
    control_plane.kubectl("apply", "-f", "-", document=bundle(items))
    return control_plane


@pytest.mark.integration
@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_api_server_takes_every_manifest(name: str, prepared: ControlPlane) -> None:
    """Server-side apply, dry run, strict about unknown fields."""
    documents = [one for one in manifests(VALUE_SETS[name]) if one["kind"] not in PROMETHEUS_OPERATOR]

    said = prepared.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"),
        document=bundle(documents),
    )

    assert said.count("serverside-applied") == len(documents)


@pytest.mark.integration
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
HERS = [f"hers-{number}" for number in range(9)]
"""The Secrets that Alice may read."""


@pytest.fixture(scope="module")
def installed(prepared: ControlPlane) -> Iterator[ControlPlane]:
    """The chart's roles and policy for team-a, in force; and Alice, who writes jobs and sees no Secret but her own."""
    documents = manifests({"namespaces": ["team-a"]})
    items = bundle([one for one in documents if one["kind"] in IN_FORCE])
    prepared.kubectl("apply", "--server-side", "-f", "-", document=items)
    for namespace in ("team-a", "team-b"):
        author = ("create", "role", "author", "--verb=create,get", "--resource=finetunejobs.finetune.dev")
        prepared.kubectl("-n", namespace, *author)
        prepared.kubectl("-n", namespace, "create", "rolebinding", "author", "--role=author", "--user=alice")
    own = ("--verb=get", "--resource=secrets", *(f"--resource-name={name}" for name in HERS))
    prepared.kubectl("-n", "team-a", "create", "role", "own-secrets", *own)
    prepared.kubectl("-n", "team-a", "create", "rolebinding", "own-secrets", "--role=own-secrets", "--user=alice")
    prepared.wait_for("the policy", lambda: refusal(prepared, {"model": "theirs"}) != "")
    yield prepared
    prepared.kubectl("delete", "-f", "-", document=items)


def refusal(plane: ControlPlane, secrets: dict[str, str], namespace: str = "team-a") -> str:
    """What the API server says to Alice's job that names these Secrets; empty when it would take it."""

    def source(uri: str, secret: str | None) -> dict[str, Any]:
        return {"uri": uri} | ({"auth": {"secretName": secret}} if secret else {})

    train = [source("hf://org/data/a.jsonl", secret) for place, secret in secrets.items() if place.startswith("train")]
    dataset: dict[str, Any] = {"train": train or [source("hf://org/data/a.jsonl", None)]}
    for split in ("validation", "test"):
        if split in secrets:
            dataset[split] = {"sources": [source("hf://org/data/b.jsonl", secrets[split])]}
    job = {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": f"secrets-{time.monotonic_ns()}", "namespace": namespace},
        "spec": {
            "model": source("hf://org/model", secrets.get("model")),
            "dataset": dataset,
            "output": {"uri": "pvc://out/a"},
        },
    }
    try:
        plane.kubectl("create", "--as=alice", "--dry-run=server", "-f", "-", document=json.dumps(job))
    except ClusterError as problem:
        return str(problem)
    return ""


@pytest.mark.integration
@pytest.mark.parametrize("place", ["model", "train", "validation", "test"])
def test_nobody_can_have_a_secret_mounted_that_they_cannot_read(installed: ControlPlane, place: str) -> None:
    """Wherever a job names a Secret, its author must be allowed to get it; the refusal names the Secret."""
    said = refusal(installed, {place: "theirs"})

    assert "you may not get the Secret theirs in namespace team-a" in said
    assert refusal(installed, {place: HERS[0]}) == ""


def test_the_policy_knows_every_place_that_can_name_a_secret() -> None:
    """A new `secretName` in the schema must be added to the policy and to the test above."""

    def places(schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, below in schema.get("properties", {}).items():
            yield from [f"{path}.{name}"] if name == "secretName" else places(below, f"{path}.{name}")
        yield from places(schema["items"], path + "[]") if "items" in schema else ()

    generated = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())
    schema = generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    assert set(places(schema["properties"]["spec"], "spec")) == {
        "spec.model.auth.secretName",
        "spec.dataset.train[].auth.secretName",
        "spec.dataset.validation.sources[].auth.secretName",
        "spec.dataset.test.sources[].auth.secretName",
    }


@pytest.mark.integration
def test_one_foreign_secret_among_own_ones_is_enough_to_be_refused(installed: ControlPlane) -> None:
    """Each Secret is checked, not just the first."""
    said = refusal(installed, {"model": HERS[0], "train": HERS[1], "test": "theirs"})

    assert "you may not get the Secret theirs" in said
    assert refusal(installed, {"model": HERS[0], "train": HERS[1], "test": HERS[0]}) == ""


@pytest.mark.integration
def test_a_job_may_name_eight_secrets_and_no_more(installed: ControlPlane) -> None:
    """The check has a limit, which is said; the same Secret in 32 places counts once."""
    places = {f"train-{number}": name for number, name in enumerate(HERS)}

    assert "a job may name at most 8 different Secrets" in refusal(installed, places)
    assert refusal(installed, dict(list(places.items())[:8])) == ""
    assert refusal(installed, {f"train-{number}": HERS[0] for number in range(32)}) == ""


@pytest.mark.integration
def test_namespaces_that_are_not_served_are_left_alone(installed: ControlPlane) -> None:
    """The policy of an operator for team-a says nothing about team-b."""
    assert refusal(installed, {"model": "theirs"}, namespace="team-b") == ""


@pytest.mark.integration
def test_the_policy_fits_the_schema(installed: ControlPlane) -> None:
    """The API server's type check of the policy's expressions against the CRD finds nothing."""
    policy = ("get", "validatingadmissionpolicy", "ft-finetune-operator-secrets", "-o", "json")

    installed.wait_for("the type check", lambda: "typeChecking" in json.loads(installed.kubectl(*policy))["status"])

    assert json.loads(installed.kubectl(*policy))["status"]["typeChecking"] == {}


@pytest.mark.integration
def test_the_service_account_may_do_what_its_role_says_and_no_more(installed: ControlPlane) -> None:
    """Asked of the API server: every verb of the table in its namespaces, and nothing that an attacker would like."""
    allowed = [(verb, group, resource, "team-a") for (group, resource), verbs in JOB_VERBS.items() for verb in verbs]
    allowed += [("update", "coordination.k8s.io", "leases:ft-finetune-operator", "finetune")]
    denied = [
        ("get", "", "secrets", "team-a"),
        ("create", "", "pods", "team-a"),
        ("create", "", "pods/exec", "team-a"),
        ("list", "", "configmaps", "team-a"),
        ("delete", "", "persistentvolumeclaims", "team-a"),
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


@pytest.mark.integration
def test_those_rights_suffice_for_a_whole_life(installed: ControlPlane, tmp_path: Path) -> None:
    """From the Lease to the deletion after ttlSecondsAfterFinished, the API server never says Forbidden."""
    api, log = Api(installed), tmp_path / "log"
    api.request("POST", "/api/v1/nodes", {"metadata": {"name": "played"}})
    job = Job(api, "team-a", "whole-life")
    body = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": {"name": job.name}}
    model, data = {"uri": "pvc://models/base"}, {"train": [{"uri": "configmap://data/train.jsonl"}]}
    spec = {"model": model, "dataset": data, "output": {"uri": "pvc://out/a"}, "ttlSecondsAfterFinished": 2}

    with deployed_operator(installed, log) as process:
        api.create(JOBS.format("team-a"), {**body, "spec": spec})
        # It complains at once: the operator has to read Events to say why.
        job.new_pod("prepare").complain('configmap "data" not found')
        job.wait_reason("ConfigMapNotFound")
        pod = job.pods("prepare")[0]
        pod.start()
        pod.end(0, {"stage": "prepare"})
        job.run_stage("train")
        job.run_stage("publish", artifact={"uri": "pvc://out/a", "digest": "sha256:abc"})
        job.wait_phase("Succeeded")
        assert "Succeeded" in job.events()
        eventually(lambda: api.get(job.path) is None, "the job is deleted after its time")
        assert process.poll() is None

    assert "forbidden" not in log.read_text().lower()


@pytest.mark.integration
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
