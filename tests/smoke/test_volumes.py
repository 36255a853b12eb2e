"""Theory: what a job names on a volume is read and written there or nowhere, whatever paths, patterns, links and the
files of a model say; and what cannot be read is told with the user who could not and the owner who can change it.
"""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import preparing
from adapters import adapter
from as_user import USER
from finetune_api.run import Run
from finetune_trainer.data.prepared import read_prepared
from finetune_trainer.pretrained.base_model import check_unchanged
from finetune_trainer.pretrained.tokenizer import load
from finetune_trainer.runtime import volumes
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.storage.output import check_output
from preparing import jsonl, prepared

ROWS = [{"prompt": f"q{number}", "completion": f"a{number}"} for number in range(40)]
HERE = Path(__file__).parent.parent


def claim(folder: Path) -> Path:
    """A volume with data, a model and an adapter."""
    (folder / "data").mkdir(parents=True)
    jsonl(folder / "data" / "a.jsonl", ROWS)
    preparing.model(folder / "model")
    adapter(folder / "adapter")
    return folder


def run_on(volume: Path, train: str = "pvc://c/data/a.jsonl", starts: bool = False, **stanzas: Any) -> Run:
    """A run of which everything lies on one volume."""
    places = {"model": {"uri": "pvc://c/model"}, "output": {"uri": "pvc://c/output"}}
    if starts:
        adapters = [{"uri": "pvc://c/adapter"}]
        stanzas["method"] = {"lora": {"startFrom": {"adapters": adapters}}}
    return preparing.run_of(volume.parent, train, mounts={"pvc://c": str(volume)}, **(places | stanzas))


def refusal(run: Run) -> tuple[str, str]:
    with pytest.raises(Failure) as caught:
        prepared(run)
    return caught.value.reason.value, caught.value.message


def moved(path: Path, elsewhere: Path) -> None:
    """Put `path` elsewhere and a link in its place."""
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


# --- where a path leads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    ["pvc://c//etc/passwd", "pvc://c/../x", "pvc://c/a/../../x", "pvc://c/a//b", "pvc://c/./a", "pvc://c/a\0b",
     "configmap://m/..", "pvc://c/a//"],
)  # fmt: skip
def test_a_path_that_is_not_plain_is_never_joined(tmp_path: Path, uri: str) -> None:
    run = run_on(claim(tmp_path / "c"))
    run = run.model_copy(update={"mounts": {"pvc://c": "/mnt", "configmap://m": "/mnt"}})
    with pytest.raises(ValueError, match="leaves its volume"):
        run.locate(uri)


@pytest.mark.parametrize(
    ("link", "train", "reason", "field"),
    [
        ("data/a.jsonl", "pvc://c/data/a.jsonl", "DatasetUnavailable", "spec.dataset.train[0].uri"),
        ("data", "pvc://c/data/a.jsonl", "DatasetUnavailable", "spec.dataset.train[0].uri"),
        ("data/a.jsonl", "pvc://c/data", "DatasetUnavailable", "spec.dataset.train[0].uri"),
        ("data/a.jsonl", "pvc://c/**/*.jsonl", "DatasetUnavailable", "spec.dataset.train[0].uri"),
        ("data", "pvc://c/*/a.jsonl", "DatasetUnavailable", "spec.dataset.train[0].uri"),
        ("model", "pvc://c/data", "ModelUnavailable", "spec.model.uri"),
        ("model/config.json", "pvc://c/data", "ModelUnavailable", "spec.model.uri"),
        ("model/tokenizer.json", "pvc://c/data", "ModelUnavailable", "spec.model.uri"),
        ("model/model.safetensors", "pvc://c/data", "ModelUnavailable", "spec.model.uri"),
        ("adapter", "pvc://c/data", "InputUnavailable", "spec.method.lora.startFrom.adapters[0].uri"),
        ("adapter/adapter_config.json", "pvc://c/data", "InputUnavailable",
         "spec.method.lora.startFrom.adapters[0].uri"),
        ("adapter/adapter_model.safetensors", "pvc://c/data", "InputUnavailable",
         "spec.method.lora.startFrom.adapters[0].uri"),
    ],
)  # fmt: skip
def test_a_link_that_leads_out_of_its_volume_is_refused(
    tmp_path: Path, link: str, train: str, reason: str, field: str
) -> None:
    """Naming the field, what it says and where it led."""
    volume = claim(tmp_path / "c")
    moved(volume / link, tmp_path / "secrets" / Path(link).name)
    found, message = refusal(run_on(volume, train, starts=True))
    assert found == reason
    assert message.startswith(f"{field}: pvc://c/")
    assert f"leads to {tmp_path}/secrets/" in message


@pytest.mark.parametrize(
    "link", ["data/a.jsonl", "data", "model", "model/model.safetensors", "model/config.json", "adapter"]
)
def test_a_link_that_stays_in_its_volume_is_followed(tmp_path: Path, link: str) -> None:
    """As in the cache of the hub's client, whose models are links to blobs."""
    volume = claim(tmp_path / "c")
    moved(volume / link, volume / "blobs" / Path(link).name)
    assert prepared(run_on(volume, starts=True))[1].data.train_examples == 36


def test_a_config_map_is_read_as_the_kubelet_lays_it_out(tmp_path: Path) -> None:
    volume, mounted = claim(tmp_path / "c"), tmp_path / "map"
    (mounted / "..2026_01_01").mkdir(parents=True)
    jsonl(mounted / "..2026_01_01" / "rows.jsonl", ROWS)
    (mounted / "..data").symlink_to("..2026_01_01")
    (mounted / "rows.jsonl").symlink_to("..data/rows.jsonl")
    run = run_on(volume, "configmap://m/rows.jsonl")
    run = run.model_copy(update={"mounts": {**run.mounts, "configmap://m": str(mounted)}})
    assert prepared(run)[1].data.train_examples == 36


@pytest.mark.parametrize("shard", ["/etc/passwd", "../../secrets/w.safetensors", "linked.safetensors/../x"])
def test_an_index_names_no_weights_outside_of_its_model(tmp_path: Path, shard: str) -> None:
    volume = claim(tmp_path / "c")
    preparing.write_json(volume / "model" / "model.safetensors.index.json", {"weight_map": {"w": shard}})
    assert refusal(run_on(volume)) == (
        "ModelInvalid",
        f"spec.model.uri: pvc://c/model: its index names weights outside of the folder: {shard}",
    )


def test_weights_in_a_folder_that_leads_out_are_refused(tmp_path: Path) -> None:
    volume, elsewhere = claim(tmp_path / "c"), tmp_path / "secrets"
    elsewhere.mkdir()
    save_file({"w": np.ones(1, np.float32)}, elsewhere / "w.safetensors")
    (volume / "model" / "shards").symlink_to(elsewhere)
    preparing.write_json(
        volume / "model" / "model.safetensors.index.json", {"weight_map": {"w": "shards/w.safetensors"}}
    )
    reason, message = refusal(run_on(volume))
    assert reason == "ModelUnavailable"
    assert f"leads to {elsewhere}/w.safetensors" in message


def test_a_config_that_names_weights_by_a_path_is_refused(tmp_path: Path) -> None:
    volume = claim(tmp_path / "c")
    preparing.write_json(volume / "model" / "config.json", {"transformers_weights": "x/../../w.safetensors"})
    assert refusal(run_on(volume))[0] == "ModelInvalid"


def test_a_tokenizer_config_names_no_files(tmp_path: Path) -> None:
    """Old ones name files of the machine that saved them, and a forged one whatever it likes."""
    folder = preparing.model(tmp_path / "model")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    forged = {"vocab_file": "/etc/passwd", "fast_tokenizer_files": ["../../tokenizer.1.json"]}
    preparing.write_json(folder / "tokenizer_config.json", told | forged)
    run = preparing.run_of(tmp_path, jsonl(tmp_path / "a.jsonl", ROWS))
    _, _, workspace = prepared(run)
    kept = json.loads((workspace.prepared / "tokenizer" / "tokenizer_config.json").read_text())
    assert not {"vocab_file", "fast_tokenizer_files"} & set(kept)
    assert load(workspace.prepared / "tokenizer", "it", None).eos is not None


@pytest.mark.parametrize("output", ["link/result", "link", "out/../../x", "/result", "here"])
def test_a_result_is_never_written_outside_of_its_volume(tmp_path: Path, output: str) -> None:
    """Not through a link, nor as the volume itself: beside which nothing is ours. And no GPU waits for that."""
    volume, elsewhere = claim(tmp_path / "c"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (volume / "link").symlink_to(elsewhere)
    (volume / "here").symlink_to(".")
    reason, message = refusal(run_on(volume, output={"uri": f"pvc://c/{output}"}))
    assert reason in ("OutputNotWritable", "BadSpec")
    assert message.startswith(f"spec.output.uri: pvc://c/{output} leaves its volume")
    assert not list(elsewhere.iterdir())


def test_a_result_goes_through_a_link_that_stays_in_its_volume(tmp_path: Path) -> None:
    volume = claim(tmp_path / "c")
    (volume / "disk").mkdir()
    (volume / "link").symlink_to("disk")
    assert check_output(run_on(volume, output={"uri": "pvc://c/link/result"})) == volume / "disk" / "result"


def test_a_circle_of_links_is_told_as_such(tmp_path: Path) -> None:
    volume = claim(tmp_path / "c")
    (volume / "a").symlink_to("b")
    (volume / "b").symlink_to("a")
    assert refusal(run_on(volume, "pvc://c/a/x.jsonl"))[0] == "DatasetUnavailable"
    assert refusal(run_on(volume, output={"uri": "pvc://c/a/x"}))[0] == "OutputNotWritable"


# --- what a user may not read ---------------------------------------------------------------------------------------


DATASET, MODEL = ("DatasetUnavailable", "spec.dataset.train[0].uri"), ("ModelUnavailable", "spec.model.uri")
ADAPTER = ("InputUnavailable", "spec.method.lora.startFrom.adapters[0]")
OUTPUT, FILE = ("OutputNotWritable", "spec.output.uri"), ("DatasetUnavailable", "pvc://c/data/a.jsonl")
CASES = [
    ("data/a.jsonl", 0o000, "readable", "pvc://c/data/a.jsonl", FILE),
    ("data/a.jsonl", 0o000, "readable", "pvc://c/*/*.jsonl", FILE),
    ("data", 0o000, "searchable", "pvc://c/data/a.jsonl", DATASET),
    ("data", 0o000, "readable", "pvc://c/data", DATASET),
    ("data", 0o000, "readable", "pvc://c/**/*.jsonl", DATASET),
    ("data", 0o444, "searchable", "pvc://c/data", DATASET),
    ("model", 0o000, "readable", "pvc://c/data", MODEL),
    ("model", 0o444, "searchable", "pvc://c/data", MODEL),
    ("model/config.json", 0o000, "readable", "pvc://c/data", MODEL),
    ("model/tokenizer.json", 0o000, "readable", "pvc://c/data", MODEL),
    ("model/model.safetensors", 0o000, "readable", "pvc://c/data", MODEL),
    ("adapter", 0o000, "searchable", "pvc://c/data", ADAPTER),
    ("adapter/adapter_config.json", 0o000, "readable", "pvc://c/data", ADAPTER),
    ("adapter/adapter_model.safetensors", 0o000, "readable", "pvc://c/data", ADAPTER),
    ("output", 0o555, "writable", "pvc://c/data", OUTPUT),
    ("output", 0o000, "readable", "pvc://c/data", OUTPUT),
    ("../workspace", 0o555, "writable", "pvc://c/data", ("OutputNotWritable", "workspace")),
]
"""What on the volume is closed, its mode, what it then is not, the data that is asked for, and the reason and place
that the report begins with."""


def open_to_all(folder: Path, train: str = "pvc://c/data") -> Path:
    """A folder with a run and a volume that every user may use."""
    volume = claim(folder / "c")
    for path in (folder / "workspace", volume / "output"):
        path.mkdir()
        path.chmod(0o777)
    (volume / "lost+found").mkdir(mode=0o000)
    for path in volume.rglob("*.safetensors"):  # which the library closes to others
        path.chmod(0o644)
    (folder / "run.json").write_text(json.dumps(run_on(volume, train, starts=True).to_wire()))
    (folder / "ended").touch()
    (folder / "ended").chmod(0o666)
    return folder


@pytest.fixture(scope="module")
def endings() -> Iterator[list[tuple[Path, int, dict[str, Any]]]]:
    """What was closed, the exit code and the report of each case: all of one process, which starts slowly. Not in
    pytest's own folders, where no other user may go."""
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        folders = [open_to_all(Path(root, str(number)), case[3]) for number, case in enumerate(CASES)]
        paths = [(folder / "c" / case[0]).resolve() for folder, case in zip(folders, CASES, strict=True)]
        for path, case in zip(paths, CASES, strict=True):
            path.chmod(case[1])
        command = [
            sys.executable,
            str(HERE / "as_user.py"),
            str(open_to_all(Path(root, "warm"), "pvc://c/**/*.jsonl")),
            *map(str, folders),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        for path in paths:
            path.chmod(0o777)
        assert "Traceback" not in process.stderr, process.stderr
        whole, *codes = map(int, process.stdout.split())
        assert whole == 0, "what is open to all, beside a lost+found that is not"
        reports = [json.loads((folder / "ended").read_bytes()) for folder in folders]
        yield list(zip(paths, codes, reports, strict=True))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case[0]} {case[1]:03o} {case[3]}" for case in CASES])
def test_what_a_user_may_not_touch_is_told_with_its_owner(
    endings: list[tuple[Path, int, dict[str, Any]]], number: int
) -> None:
    """Never as a defect of the trainer: the field, who could not, and whose it is."""
    _, mode, word, _, (reason, place) = CASES[number]
    path, code, report = endings[number]
    user = USER if os.geteuid() == 0 else os.geteuid()
    assert (report["reason"], code) == (reason, 73 if reason == "OutputNotWritable" else 66)
    assert report["message"].startswith(place)
    assert f"{path} is not {word} for uid {user}, gid " in report["message"]
    assert f"it belongs to uid {os.geteuid()}, gid {os.getegid()}, mode {mode:04o}; " in report["message"]


def refusals_after_prepare(run: Run) -> set[tuple[str, str]]:
    """How the stages that open the model after prepare end."""
    from finetune_trainer.artifacts.merge import reopened
    from finetune_trainer.stages.train import train

    workspace, found = Workspace(Path(run.workspace)), set()
    page = read_prepared(workspace)
    assert page is not None
    for stage in (lambda: train(run, workspace, Progress("train")), lambda: reopened(run, page, workspace)):
        with pytest.raises(Failure) as caught:
            stage()
        found.add((caught.value.reason.value, caught.value.message))
    return found


@pytest.mark.parametrize(
    "link", ["", "config.json", "generation_config.json", "part.safetensors", "deep/b.safetensors"]
)
def test_a_model_that_is_linked_away_after_prepare_is_refused(tmp_path: Path, link: str) -> None:
    """A job can wait for days between its stages, while others write to the volume; whatever may be opened counts."""
    volume = claim(tmp_path / "c")
    model, shards = volume / "model", ("part.safetensors", "deep/b.safetensors")
    (model / "deep").mkdir()
    for shard in shards:
        save_file({shard[0]: np.ones(4, dtype=np.float32)}, model / shard)
    (model / "model.safetensors").unlink()
    index = {"weight_map": {shard[0]: shard for shard in shards}}
    preparing.write_json(model / "model.safetensors.index.json", index)
    preparing.write_json(model / "generation_config.json", {})
    run = run_on(volume)
    prepared(run)
    moved(model / link, tmp_path / "secrets" / "x")
    ((reason, message),) = refusals_after_prepare(run)
    assert reason == "ModelUnavailable"
    assert message.startswith("spec.model.uri: pvc://c/model leaves its volume: ")
    assert f"leads to {tmp_path}/secrets/x" in message


def test_weights_that_are_exchanged_after_prepare_are_refused(tmp_path: Path) -> None:
    """What counts is what they are: weights that were only touched are read once more, and taken."""
    run = run_on(claim(tmp_path / "c"))
    _, page, _ = prepared(run)
    weights = tmp_path / "c" / "model" / "model.safetensors"
    os.utime(weights, (1, 1))
    check_unchanged(run, Path(page.model_path), page.model_stamp, page.model_revision)
    save_file({"weight": np.zeros(4, dtype=np.float32)}, weights)
    told = "holds other weights than when the run was prepared: put those back, or apply the job under a new name"
    assert refusals_after_prepare(run) == {("CheckpointMismatch", f"spec.model.uri: pvc://c/model {told}")}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_a_model_that_only_prepare_could_read_is_told_in_train(name: str) -> None:
    """Stages may run as different users, and libraries call a file that they may not read a missing one."""
    from finetune_trainer.models.loading import config_of

    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        folder = preparing.model(Path(root, "model"))
        (folder / "model.safetensors").chmod(0o644)
        (folder / name).chmod(0)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setgid(USER)
                    os.setuid(USER)
                config_of(folder)
            except BaseException as error:
                os.write(writing, f"{getattr(error, 'reason', None)} {error}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as said:
            message = said.read()
        os.waitpid(child, 0)
        (folder / name).chmod(0o700)
    assert message.startswith(f"ModelUnavailable spec.model.uri: {folder / name} is not readable for uid ")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_storage_that_does_not_answer_may_at_the_next_try(tmp_path: Path, number: int) -> None:
    volume = claim(tmp_path / "c")
    path = volume / "model" / "model.safetensors"
    failure = volumes.told(run_on(volume), OSError(number, os.strerror(number), str(path)))
    assert failure is not None
    assert (failure.reason.value, failure.transient) == ("ModelUnavailable", True)
    assert (
        failure.message == f"spec.model.uri: pvc://c/model: {path}: {os.strerror(number)}: the storage does not answer"
    )


def test_an_error_belongs_to_the_deepest_place_that_holds_it(tmp_path: Path) -> None:
    """A model and data may lie in one folder, and an error elsewhere is nobody's."""
    run = run_on(
        claim(tmp_path / "c"), "pvc://c/model/data", model={"uri": "pvc://c"}, output={"uri": "pvc://c/model/out"}
    )

    def owner(path: Path) -> str | None:
        failure = volumes.told(run, PermissionError(errno.EACCES, "no", str(path)))
        return failure and failure.message.partition(":")[0]

    assert owner(tmp_path / "c" / "config.json") == "spec.model.uri"
    assert owner(tmp_path / "c" / "model" / "data" / "a.jsonl") == "spec.dataset.train[0].uri"
    assert owner(tmp_path / "c" / "model" / "out" / "x") == "spec.output.uri"
    assert owner(tmp_path / "workspace" / "x") == "workspace"
    assert owner(Path("/proc/version")) is None
