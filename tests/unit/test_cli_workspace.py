"""A workspace belongs to one run: it is gone on with, refused or discarded, never mixed up."""

import os
from pathlib import Path

import pytest

from finetune_api.events import StageReport
from finetune_api.job import FineTuneJob
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_cli.local.mounts import MountError, folders, mounts, needs
from finetune_cli.local.workspace import Workspace, WorkspaceError


def a_job(name: str = "bot", **spec: object) -> FineTuneJob:
    smallest = {
        "model": {"uri": "pvc://models/base"},
        "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
        "output": {"uri": "pvc://models/bot"},
    }
    return FineTuneJob.model_validate({"metadata": {"name": name}, "spec": smallest | spec})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "space").mkdir()
    return Workspace(tmp_path / "space")


def test_the_same_job_again_is_the_same_run(workspace: Workspace) -> None:
    """The uid, by which checkpoints know their run, stays; the spec is the resolved one."""
    first, second = workspace.freeze_run(a_job(), {}), workspace.freeze_run(a_job(), {})

    assert first == second
    assert first.spec.training.learning_rate is not None


def test_another_workspace_is_another_run(workspace: Workspace, tmp_path: Path) -> None:
    """Two folders never share a uid."""
    (tmp_path / "other").mkdir()

    assert workspace.freeze_run(a_job(), {}).uid != Workspace(tmp_path / "other").freeze_run(a_job(), {}).uid


def test_a_changed_spec_is_refused_by_name(workspace: Workspace) -> None:
    """The message names what changed and the three ways out."""
    workspace.freeze_run(a_job(), {})

    with pytest.raises(WorkspaceError, match=r"spec\.training changed.*--fresh.*--workspace"):
        workspace.freeze_run(a_job(training={"epochs": 1}), {})


def test_what_does_not_define_the_run_may_change(workspace: Workspace) -> None:
    """Pods' resources and retries mean nothing to local processes."""
    first = workspace.freeze_run(a_job(), {})

    assert workspace.freeze_run(a_job(resources={"gpus": 0}, retry={"limit": 1}), {}).uid == first.uid


def test_clearing_makes_room_for_another_run(workspace: Workspace) -> None:
    """`--fresh` discards all that the earlier run left, and nothing that is not a run's."""
    first = workspace.freeze_run(a_job(), {})
    (workspace.root / "checkpoints").mkdir()
    workspace.clear()

    assert list(workspace.root.iterdir()) == []
    assert workspace.freeze_run(a_job(training={"epochs": 1}), {}).uid != first.uid


def test_a_folder_of_somebody_else_is_never_touched(workspace: Workspace) -> None:
    """A folder with files and no run file is refused, with --fresh too."""
    (workspace.root / "thesis.txt").write_text("mine")

    with pytest.raises(WorkspaceError, match="not empty and no workspace"):
        workspace.clear()
    with pytest.raises(WorkspaceError, match="not empty and no workspace"):
        workspace.freeze_run(a_job(), {})
    assert (workspace.root / "thesis.txt").read_text() == "mine"


def test_a_broken_run_file_is_a_clear_error(workspace: Workspace) -> None:
    """Not a traceback."""
    workspace.run_file.write_text("{")

    with pytest.raises(WorkspaceError, match="cannot be read"):
        workspace.freeze_run(a_job(), {})


def test_two_runs_never_share_a_workspace_at_once(workspace: Workspace) -> None:
    """The second is told; when the first ends, the folder is free."""
    lock = workspace.acquire()
    with pytest.raises(WorkspaceError, match="another run is at work"):
        workspace.acquire()
    os.close(lock)

    os.close(workspace.acquire())


def test_a_workspace_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """A file stands in the way."""
    (tmp_path / "file").write_text("")

    with pytest.raises(WorkspaceError, match="cannot make the workspace"):
        Workspace(tmp_path / "file" / "space").acquire()


def test_an_old_report_is_not_taken_for_a_new_one(workspace: Workspace) -> None:
    """A stage's report is dropped before the stage is started again."""
    report = StageReport(stage="train", message="earlier")
    (workspace.root / "train.report.json").write_text(report.model_dump_json(by_alias=True))

    assert workspace.report("train") == report
    workspace.forget("train")
    assert workspace.report("train") is None
    workspace.forget("train")


def test_every_root_that_a_job_names_has_a_folder(tmp_path: Path) -> None:
    """Options become mounts; paths become absolute; an output's folder need not exist yet."""
    (tmp_path / "data").mkdir()
    given = folders("pvc", [f"data={tmp_path}/data", f"models={tmp_path}"])

    assert mounts(a_job().spec, given) == {"pvc://data": f"{tmp_path}/data", "pvc://models": str(tmp_path)}
    only_out = a_job(model={"uri": "hf://org/model"}).spec
    assert mounts(only_out, given | {"pvc://models": f"{tmp_path}/new"})["pvc://models"] == f"{tmp_path}/new"


@pytest.mark.parametrize(
    ("given", "message", "path"),
    [
        ([], "pvc://models has no folder on this machine: add --volume models=DIR", "spec.model.uri"),
        (["models={}"], "pvc://data has no folder on this machine: add --volume data=DIR", "spec.dataset.train[0].uri"),
        (["models={}", "data={}/none"], "no such folder", "spec.dataset.train[0].uri"),
        (["models={}", "data={}", "datas={}"], "--volume datas=…: the job names no pvc://datas", ""),
    ],
)
def test_what_is_missing_or_misspelt_is_named(tmp_path: Path, given: list[str], message: str, path: str) -> None:
    """The error tells the option to add, and the field that asks for it."""
    with pytest.raises(MountError) as error:
        mounts(a_job().spec, folders("pvc", [option.format(tmp_path) for option in given]))

    assert message in str(error.value)
    assert error.value.path == path


def test_secrets_are_asked_for_by_their_own_option() -> None:
    """A token is a file in a folder, as in a pod."""
    spec = a_job(model={"uri": "hf://org/model", "auth": {"secretName": "hub"}}).spec

    with pytest.raises(MountError, match="add --secret hub=DIR") as error:
        mounts(spec, {})
    assert error.value.path == "spec.model.auth.secretName"


@pytest.mark.parametrize("option", ["data", "data=", "=dir"])
def test_an_option_without_name_or_folder_is_refused(option: str) -> None:
    """`--volume data` says nothing."""
    with pytest.raises(MountError, match="expected name=DIR"):
        folders("pvc", [option])


def test_adapters_to_start_from_are_mounted_too(tmp_path: Path) -> None:
    """By claim and Secret; what a job publishes is known to a cluster alone, and the message says what to name."""
    auth = {"secretName": "hub"}
    adapters = [{"uri": "pvc://adapters/a"}, {"uri": "hf://org/b", "auth": auth}, {"uri": "job://first"}]

    def spec(*chosen: dict[str, object]) -> FineTuneJobSpec:
        return a_job(method={"lora": {"startFrom": {"adapters": list(chosen)}}}).spec

    assert [need.root for need in needs(spec(*adapters[:2]))][-3:] == ["pvc://adapters", "secret://hub", "pvc://models"]
    with pytest.raises(MountError, match="only a cluster knows other jobs") as refused:
        mounts(spec(*adapters), {})
    assert refused.value.path == "spec.method.lora.startFrom.adapters[2].uri"
