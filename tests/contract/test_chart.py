"""The Helm chart renders what was reviewed, says what the code needs and no more, and refuses wrong values.

Rendered manifests are compared with tests/golden/chart: rewrite them with UPDATE_GOLDEN=1, then read the diff.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from pydantic.alias_generators import to_snake

from contract.chart import CHART, JOB_VERBS, LEASE_VERBS, ROOT, VALUE_SETS, granted, helm, manifests, only, template
from finetune_api import labels
from finetune_api.run import Downloads
from finetune_api.spec.pod_template import IDS, ValueSource, Volume
from finetune_api.stages import STAGES, StageName
from finetune_operator import metrics, pods, settings
from unit.observed import METADATA, spec

GOLDEN = ROOT / "tests/golden/chart"


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


WHOLE = {("resources",), ("podSecurityContext",), ("securityContext",), ("trainer", "podTemplate")}
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
        ({"trainer": {"downloads": {"allow": "a"}}}, "at '/trainer/downloads/allow': got string, want array"),
        ({"trainer": {"downloads": {"maxBytes": 0}}}, "at '/trainer/downloads/maxBytes'"),
        ({"trainer": {"containerGraceSeconds": -1}}, "at '/trainer/containerGraceSeconds'"),
        ({"logLevel": "loud"}, "at '/logLevel': value must be one of 'debug', 'info', 'warning', 'error'"),
        ({"podMonitor": {"interval": "often"}}, "at '/podMonitor/interval'"),
        ({"nodeSelector": {"gpu": True}}, "at '/nodeSelector/gpu': got boolean, want string"),
        ({"trainer": {"podTemplate": {"nodeSelektor": {}}}}, "additional properties 'nodeSelektor' not allowed"),
        (
            {"trainer": {"podTemplate": {"stages": {"train": {"image": "mine"}}}}},
            "at '/trainer/podTemplate/stages/train': additional properties 'image' not allowed",
        ),
        (
            {"trainer": {"podTemplate": {"securityContext": {"runAsUser": 0}}}},
            "at '/trainer/podTemplate/securityContext/runAsUser'",
        ),
        (
            {"trainer": {"podTemplate": {"volumeMounts": [{"name": "a", "mountPath": "/etc"}]}}},
            "at '/trainer/podTemplate/volumeMounts/0/mountPath'",
        ),
        ({"trainer": {"proxy": {"https": "proxy:3128"}}}, "at '/trainer/proxy/https'"),
        ({"trainer": {"copyLabels": ["*"]}}, "at '/trainer/copyLabels/0'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], complaint: str) -> None:
    """A value that is misspelt or of the wrong type stops the installation with a message that names it."""
    done = template(values)

    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_operator_understands_its_flags(name: str) -> None:
    """The operator parses the arguments of the Deployment to the settings that the values mean."""
    values = VALUE_SETS[name]
    container = only("Deployment", manifests(values))["spec"]["template"]["spec"]["containers"][0]

    parsed = settings.parse(container["args"], {one["name"]: one["value"] for one in container.get("env", [])})

    assert parsed.namespaces == tuple(values.get("namespaces", ()))
    assert parsed.leader_elect
    downloads = values.get("trainer", {}).get("downloads")
    assert parsed.downloads == (Downloads.model_validate(downloads) if downloads else Downloads())
    grace = values.get("trainer", {}).get("containerGraceSeconds", settings.Settings("").container_grace)
    assert parsed.container_grace == grace
    assert (parsed.lease_namespace, parsed.lease_name) == ("finetune", "ft-finetune-operator")
    assert parsed.port == container["ports"][0]["containerPort"]
    if name == "platform":
        assert parsed.copy_labels == ("team", "example.com/*")
        assert parsed.copy_annotations == ("sidecar.istio.io/inject",)
        assert parsed.pod_template is not None
        assert parsed.pod_template.security_context is not None
        assert parsed.pod_template.security_context.left_out == list(IDS)
    if name == "high-availability":
        assert parsed.trainer_image == "registry.example.com/ml/finetune-trainer:1.2.3"
        assert parsed.image_pull_secrets == ("pull", "other")
        assert parsed.workers == 48


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "trainer_image/Dockerfile"])
def test_images_and_pods_agree_on_the_user(dockerfile: str) -> None:
    """The images run as the user that the operator gives to trainer pods and the chart to the operator's pod."""
    text = (ROOT / dockerfile).read_text()

    assert re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE) == [(str(pods.USER), str(pods.USER))]
    assert VALUES["podSecurityContext"]["runAsUser"] == pods.USER


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "trainer_image/Dockerfile"])
def test_what_a_dockerfile_copies_is_there(dockerfile: str) -> None:
    """Every source of a COPY exists in the repository."""
    sources = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / dockerfile).read_text(), re.MULTILINE)

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_policies_select_the_labels_and_ports_of_trainer_pods() -> None:
    """Monitor and network policy name the label and the port that `pods` gives to a trainer pod."""
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


def test_cluster_wide_the_operator_gets_one_cluster_role() -> None:
    """Exactly the verbs that it uses, no Secrets, no wildcard."""
    documents = manifests({})

    assert granted(only("ClusterRole", documents, "finetune.ft-finetune-operator")) == JOB_VERBS
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


def egress(values: dict[str, Any], stage: StageName) -> tuple[dict[str, str], set[str]]:
    """The environment of a stage's pod under these values of the chart, and where its volumes are mounted."""
    arguments = only("Deployment", manifests(values))["spec"]["template"]["spec"]["containers"][0]["args"]
    # As the kubelet does: `$$(` is a literal `$(`.
    platform = settings.parse([argument.replace("$$(", "$(") for argument in arguments], {})
    pod = pods.pod_template(METADATA, spec(), stage, "image", platform)["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    return environment, {mount["mountPath"] for mount in container["volumeMounts"]}


def test_what_leads_out_of_the_cluster_is_given_to_prepare_alone() -> None:
    """Proxy, certificates and hub reach the stage that fetches; what podTemplate says of a variable outweighs."""
    environment, mounts = egress(VALUE_SETS["platform"], "prepare")
    assert environment["HTTPS_PROXY"] == "http://proxy.example.com:3128"
    assert environment["https_proxy"] == "http://other.example.com:3128"
    assert environment["NO_PROXY"] == environment["no_proxy"] == ".svc,.example.com"
    assert environment["HF_ENDPOINT"] == "https://hub.example.com"
    assert environment["SSL_CERT_FILE"] == environment["REQUESTS_CA_BUNDLE"] == "/mnt/ca-bundle/ca.crt"
    assert environment["NOTE"] == "<$(POD)>"
    assert "/mnt/ca-bundle" in mounts
    assert "HTTP_PROXY" not in environment
    for stage in ("train", "publish"):
        environment, mounts = egress(VALUE_SETS["platform"], stage)
        assert not {"HTTPS_PROXY", "SSL_CERT_FILE", "HF_ENDPOINT"} & set(environment)
        assert "/mnt/ca-bundle" not in mounts


NAMING = {
    "uri": {
        "spec.model.uri",
        "spec.dataset.train[].uri",
        "spec.dataset.validation.sources[].uri",
        "spec.dataset.test.sources[].uri",
        "spec.method.lora.startFrom.adapters[].uri",
        "spec.output.uri",
    },
    "secretName": {
        "spec.model.auth.secretName",
        "spec.dataset.train[].auth.secretName",
        "spec.dataset.validation.sources[].auth.secretName",
        "spec.dataset.test.sources[].auth.secretName",
        "spec.method.lora.startFrom.adapters[].auth.secretName",
        "T.volumes[].secret.secretName",
    },
    "secretKeyRef": {"T.env[].valueFrom.secretKeyRef"},
    "configMapKeyRef": {"T.env[].valueFrom.configMapKeyRef"},
    "configMap": {"T.volumes[].configMap"},
    "claimName": {"T.volumes[].persistentVolumeClaim.claimName"},
    "serviceAccountName": {"T.serviceAccountName"},
    "imagePullSecrets": {"T.imagePullSecrets"},
}
"""Fields that name an object of the namespace, and where they are; T is podTemplate and each of its stages."""
TEMPLATES = ("spec.podTemplate", *(f"spec.podTemplate.stages.{stage}" for stage in STAGES))


def test_the_policy_knows_every_place_that_can_name_an_object() -> None:
    """A new place in the schema must be added to the policy and to the test that asks it."""

    def places(schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, below in schema.get("properties", {}).items():
            yield from [f"{path}.{name}"] if name in NAMING else places(below, f"{path}.{name}")
        yield from places(schema["items"], path + "[]") if "items" in schema else ()

    listed = {place for group in NAMING.values() for place in group}
    expected = {place.replace("T", template, 1) for place in listed if place.startswith("T") for template in TEMPLATES}
    expected |= {place for place in listed if not place.startswith("T")}

    generated = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())
    schema = generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    assert set(places(schema["properties"]["spec"], "spec")) == expected


VOLUME_SOURCES = {"configMap", "secret", "persistentVolumeClaim", "emptyDir"}


def test_the_policy_knows_every_kind_of_volume_and_of_value() -> None:
    """A volume or a variable of another kind would name what nobody has checked."""
    assert set(Volume.model_fields) - {"name"} == {to_snake(name) for name in VOLUME_SOURCES}
    assert set(ValueSource.model_fields) == {"secret_key_ref", "config_map_key_ref"}
