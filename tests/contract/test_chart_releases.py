"""Several releases in one cluster, and one after another: the definition has one owner, and survives it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.control_plane import ControlPlane
from contract.chart import CHART, helm

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CRD = "crd/finetunejobs.finetune.dev"
PLACES = ("finetune", "other", "team-a", "team-b")


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(controller_manager=False) as running:
        for namespace in PLACES:
            running.kubectl("create", "namespace", namespace)
        yield running


@pytest.fixture
def empty(plane: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster without a definition and without releases."""
    yield plane
    for namespace in PLACES[:2]:
        done = helm("list", "--short", f"--namespace={namespace}", KUBECONFIG=str(plane.kubeconfig))
        for release in done.stdout.split():
            helm("uninstall", release, f"--namespace={namespace}", KUBECONFIG=str(plane.kubeconfig))
    plane.kubectl("delete", CRD, "--ignore-not-found")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart of the next version, whose definition has one more column."""
    chart = tmp_path_factory.mktemp("newer") / "finetune-operator"
    shutil.copytree(CHART, chart)
    about = chart / "Chart.yaml"
    about.write_text(re.sub(r"(?m)^(version|appVersion): .*", r"\1: 99.0.0", about.read_text()))
    file = chart / "files/finetunejobs.yaml"
    definition = yaml.safe_load(file.read_text())
    column = {"name": "Newer", "type": "string", "jsonPath": ".metadata.uid"}
    definition["spec"]["versions"][0]["additionalPrinterColumns"].append(column)
    file.write_text(yaml.safe_dump(definition))
    return chart


class Releases:
    """Helm on that cluster; each verb returns what Helm said when it failed, and raises nothing."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def __call__(self, verb: str, release: str, namespace: str, chart: Path | None = CHART, *more: str) -> str:
        target = [str(chart)] if chart else []
        done = helm(verb, release, *target, f"--namespace={namespace}", *more, KUBECONFIG=str(self._plane.kubeconfig))
        self.notes = done.stdout
        return "" if done.returncode == 0 else done.stderr

    def is_newer(self) -> bool:
        return "Newer" in self._plane.kubectl("get", CRD, "-o", "yaml")


@pytest.mark.parametrize(("name", "namespace"), [("second", "other"), ("second", "finetune"), ("first", "other")])
def test_two_releases_stand_beside_each_other(empty: ControlPlane, name: str, namespace: str) -> None:
    """Under any names in any namespaces, even under one name; the definition is the first one's, and outlives both."""
    run = Releases(empty)

    assert run("install", "first", "finetune", CHART, "--set=namespaces={team-a}") == ""
    assert run("install", name, namespace, CHART, "--set=namespaces={team-b}") == ""
    assert "belongs to release first in namespace finetune" in run.notes
    assert run("upgrade", name, namespace, CHART, "--set=namespaces={team-b}") == ""
    assert run("uninstall", name, namespace, None) == ""
    assert run("upgrade", "first", "finetune", CHART, "--set=namespaces={team-a}") == ""
    assert run("uninstall", "first", "finetune", None) == ""

    assert empty.kubectl("get", CRD, "-o", "name")


def test_the_owner_upgrades_the_definition_and_goes_first(empty: ControlPlane, newer: Path) -> None:
    """A newer operator on an older definition would lose what that does not know: it is refused, and told why."""
    run = Releases(empty)
    assert run("install", "first", "finetune", CHART, "--set=namespaces={team-a}") == ""
    assert run("install", "second", "other", CHART, "--set=namespaces={team-b}") == ""

    said = run("upgrade", "second", "other", newer, "--set=namespaces={team-b}")

    assert "belongs to release first in namespace finetune: upgrade that release first" in said
    assert not run.is_newer()
    assert run("upgrade", "first", "finetune", newer, "--set=namespaces={team-a}") == ""
    assert run.is_newer()
    assert run("upgrade", "second", "other", newer, "--set=namespaces={team-b}") == ""
    assert run("upgrade", "second", "other", CHART, "--set=namespaces={team-b}") == ""
    assert run.is_newer()


def test_the_advised_command_replaces_a_definition_that_a_release_owns(empty: ControlPlane, newer: Path) -> None:
    """Two managers of one field are a conflict, which kubectl refuses unless it is told otherwise."""
    run = Releases(empty)
    assert run("install", "first", "finetune", newer) == ""
    command = re.search(r"kubectl (apply [^`]+) crds/finetunejobs.yaml", (ROOT / "docs/troubleshooting.md").read_text())
    assert command is not None

    empty.kubectl(*command[1].split(), str(ROOT / "crds/finetunejobs.yaml"))

    assert not run.is_newer()


def test_a_kept_definition_is_upgraded_by_a_release_of_the_same_name(empty: ControlPlane, newer: Path) -> None:
    """Uninstalled and installed again: nothing to be told."""
    run = Releases(empty)
    assert run("install", "first", "finetune") == ""
    assert run("uninstall", "first", "finetune", None) == ""

    assert run("install", "first", "finetune", newer) == ""

    assert run.is_newer()


def test_a_kept_definition_is_used_by_another_release_and_taken_over_by_command(
    empty: ControlPlane, newer: Path
) -> None:
    """The command stands in the notes and in the refusal; afterwards the new release upgrades it."""
    run = Releases(empty)
    assert run("install", "first", "finetune") == ""
    assert run("uninstall", "first", "finetune", None) == ""
    assert run("install", "another", "other") == ""
    command = next(line.strip() for line in run.notes.splitlines() if "kubectl annotate" in line)

    said = run("upgrade", "another", "other", newer)

    assert command in said
    empty.kubectl(*command.split()[1:])
    assert run("upgrade", "another", "other", newer) == ""
    assert run.is_newer()
