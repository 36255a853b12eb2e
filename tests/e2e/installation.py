"""What a platform team does before the first job: a cluster, the two images, the chart, a namespace.

It runs the commands that the documentation names. It knows no job.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.kubectl import Kubectl, KubectlError

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
RELEASE = "finetune-operator"
SYSTEM_NAMESPACE = "finetune-system"


@dataclass(frozen=True)
class Images:
    """The names under which the cluster pulls the two images."""

    operator: str
    trainer: str


def is_current() -> bool:
    """Whether CLUSTER=current asks for the cluster that kubectl talks to."""
    return os.environ.get("CLUSTER") == "current"


def local_cluster(*verb: str, seconds: float = 1800) -> str:
    """What `python3 tests/cluster VERB` says; its messages go where ours go."""
    command = [sys.executable, str(ROOT / "tests/cluster"), *verb]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=seconds).stdout.strip()


@contextmanager
def connected_cluster() -> Iterator[Kubectl]:
    """The current cluster, or the local one: brought up, and taken down again, unless it was up before."""
    if is_current():
        yield Kubectl(shutil.which("kubectl") or local_cluster("binaries", "kubectl"), {})
        return
    was_up = local_cluster("status") == "up"
    local_cluster("up")
    kubeconfig = local_cluster("kubeconfig")
    cache = str(Path(kubeconfig).parent / "kubectl")
    try:
        yield Kubectl(local_cluster("binaries", "kubectl"), {"KUBECONFIG": kubeconfig, "KUBECACHEDIR": cache})
    finally:
        if not was_up:
            local_cluster("down")


def available_images() -> Images:
    """Images named by OPERATOR_IMAGE and TRAINER_IMAGE, else built now and pushed to the local cluster's registry."""
    names = [os.environ.get(name, "") for name in ("OPERATOR_IMAGE", "TRAINER_IMAGE")]
    if all(names):
        return Images(*names)
    if is_current():
        raise KubectlError("CLUSTER=current needs OPERATOR_IMAGE and TRAINER_IMAGE: images that its nodes can pull")
    built = dict(line.split("=", 1) for line in local_cluster("images").splitlines())
    return Images(built["OPERATOR_IMAGE"], built["TRAINER_IMAGE"])


@contextmanager
def installed_operator(kubectl: Kubectl, images: Images) -> Iterator[Kubectl]:
    """The chart installed as a user would install it; yields kubectl in its namespace."""
    helm = shutil.which("helm") or local_cluster("binaries", "helm")
    system = kubectl.within(SYSTEM_NAMESPACE)

    def run(*arguments: str) -> str:
        environment = {**os.environ, **kubectl.environment}
        done = subprocess.run(
            [helm, *arguments, "--namespace", SYSTEM_NAMESPACE], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise KubectlError(f"helm {arguments[0]}: {done.stderr.strip()}\n{operator_log(system)}")
        return done.stdout

    was_there = RELEASE in run("list", "--short")
    run(
        "upgrade",
        "--install",
        RELEASE,
        str(CHART),
        "--create-namespace",
        "--wait",
        "--timeout=180s",
        *image_values(images),
        "--set=trainer.containerGraceSeconds=5",
    )
    try:
        yield system
    finally:
        if not was_there:
            run("uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout=120s")


def image_values(images: Images) -> list[str]:
    """The chart's options that name the images."""
    options = []
    for prefix, image in (("image", images.operator), ("trainer.image", images.trainer)):
        repository, _, tag = image.rpartition(":")
        options += ["--set", f"{prefix}.repository={repository}", "--set-string", f"{prefix}.tag={tag}"]
    return options


@contextmanager
def restricted_namespace(kubectl: Kubectl, name: str) -> Iterator[Kubectl]:
    """A new namespace that admits only pods of the strictest security standard; gone when the block ends."""
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=180s", seconds=200)
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    try:
        yield kubectl.within(name)
    finally:
        kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def operator_log(system: Kubectl, lines: int = 60) -> str:
    """The last lines of the operator's log, or why there are none."""
    try:
        return system("logs", f"deployment/{RELEASE}", f"--tail={lines}")
    except (KubectlError, subprocess.TimeoutExpired) as problem:
        return str(problem)
