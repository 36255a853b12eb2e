"""The chart as the contract tests see it: rendered under a few sets of values, and the rights that it is to give."""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.binaries import binary

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
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
    "platform": {
        "trainer": {
            "podTemplate": {
                "securityContext": {},
                "env": [{"name": "NOTE", "value": "<$(POD)>"}],
                "stages": {
                    "prepare": {"env": [{"name": "https_proxy", "value": "http://other.example.com:3128"}]},
                    "train": {"nodeSelector": {"pool": "gpu"}},
                },
            },
            "copyLabels": ["team", "example.com/*"],
            "copyAnnotations": ["sidecar.istio.io/inject"],
            "proxy": {"https": "http://proxy.example.com:3128", "noProxy": ".svc,.example.com"},
            "caBundle": {"configMapName": "corporate-ca"},
            "hfEndpoint": "https://hub.example.com",
            "containerGraceSeconds": 120,
        },
    },
    "high-availability": {
        "registry": "registry.example.com/ml",
        "image": {"digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "trainer": {
            "image": {"tag": "1.2.3"},
            "imagePullSecrets": ["pull", "other"],
            "downloads": {"allow": ["*.example.com", "10.0.0.0/8"], "maxBytes": 1 << 40, "timeoutSeconds": 60},
        },
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

JOB_VERBS = {
    ("finetune.dev", "finetunejobs"): {"get", "list", "watch", "delete"},
    ("finetune.dev", "finetunejobs/status"): {"patch"},
    ("finetune.dev", "finetunejobs/finalizers"): {"update"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "delete"},
    ("", "configmaps"): {"get", "create"},
    ("", "persistentvolumeclaims"): {"get", "create", "patch", "delete"},
    ("", "pods"): {"list", "watch"},
    ("", "events"): {"list", "create"},
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


def granted(role: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    """Verbs by API group and resource."""
    verbs: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                verbs.setdefault((group, resource), set()).update(rule["verbs"])
    return verbs
