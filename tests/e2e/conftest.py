"""One cluster, one operator, one namespace with two volumes; what failed is shown with its surroundings."""

import os
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import tiny
from e2e.courier import Courier, courier
from e2e.installation import (
    ROOT,
    Images,
    available_images,
    connected_cluster,
    installed_operator,
    operator_log,
    restricted_namespace,
)
from e2e.jobs import Jobs
from e2e.kubectl import Kubectl, KubectlError

NAMESPACE = "finetune-e2e"
LOG_LINES = 25


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Kubectl]:
    with connected_cluster() as kubectl:
        yield kubectl


@pytest.fixture(scope="session")
def images(cluster: Kubectl) -> Images:
    return available_images()


@pytest.fixture(scope="session")
def operator(cluster: Kubectl, images: Images) -> Iterator[Kubectl]:
    """kubectl in the operator's namespace."""
    with installed_operator(cluster, images) as system:
        yield system


@pytest.fixture(scope="session")
def kubectl(cluster: Kubectl, operator: Kubectl) -> Iterator[Kubectl]:
    """kubectl in the namespace of the tests' jobs."""
    with restricted_namespace(cluster, NAMESPACE) as namespaced:
        yield namespaced


@pytest.fixture(scope="session")
def assets() -> Path:
    """The real models and data that the examples name, on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "finetune-operator" / "assets" / "out"
    subprocess.run([str(ROOT / ".venv/bin/python"), str(ROOT / "examples/assets.py"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def volumes(kubectl: Kubectl, images: Images, assets: Path) -> None:
    """The claims `datasets` and `models`, loaded by the script that the examples come with."""
    environment = {**os.environ, **kubectl.environment, "KUBECTL": kubectl.program, "IMAGE": images.trainer}
    subprocess.run(
        [str(ROOT / "examples/load.sh"), str(assets), "--namespace", kubectl.namespace], check=True, env=environment
    )


@pytest.fixture(scope="session")
def desk(kubectl: Kubectl, images: Images, volumes: None) -> Iterator[Courier]:
    """Access to both volumes."""
    with courier(kubectl, "desk", images.trainer, ["datasets", "models"]) as pod:
        yield pod


@pytest.fixture(scope="session")
def tiny_model(desk: Courier, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a model that trains in no time."""
    folder = tiny.llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    desk.put(folder, "models", folder.name)
    return f"pvc://models/{folder.name}"


@pytest.fixture(scope="module")
def jobs(kubectl: Kubectl, desk: Courier) -> Iterator[Jobs]:
    """Jobs that are gone when the module is done."""
    jobs = Jobs(kubectl)
    yield jobs
    jobs.delete_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fixtures = getattr(item, "funcargs", {})
    if report.failed and isinstance(jobs := fixtures.get("jobs"), Jobs):
        report.sections.append(("cluster", surroundings(jobs, fixtures.get("operator"))))
    return report


def surroundings(jobs: Jobs, system: Kubectl | None) -> str:
    """What a person would look at: the jobs in words, their pods, the ends of the logs."""
    kubectl = jobs.kubectl
    commands = [("get", "finetunejobs,jobs,pods", "--output=wide"), ("get", "events", "--sort-by=.lastTimestamp")]
    commands += [("describe", "finetunejob", name) for name in jobs.applied]
    pods = kubectl("get", "pods", "--selector=finetune.dev/job", "--output=name").split()
    commands += [("logs", pod, f"--tail={LOG_LINES}") for pod in pods]
    parts = [f"$ kubectl {' '.join(command)}\n{answer(kubectl, *command)}" for command in commands]
    return "\n".join(parts + ([f"operator:\n{operator_log(system)}"] if system else []))


def answer(kubectl: Kubectl, *command: str) -> str:
    try:
        return kubectl(*command)
    except (KubectlError, subprocess.TimeoutExpired) as problem:
        return str(problem)
