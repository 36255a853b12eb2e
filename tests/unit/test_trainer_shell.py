"""How a stage ends, whatever happens in it: exit code, termination message, no traceback for a user's mistake."""

import errno
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preparing
from finetune_api import labels
from finetune_api.events import TERMINATION_LIMIT, ProgressReport, StageReport
from finetune_api.reasons import Reason
from finetune_api.status import EvaluationResult, Sample
from finetune_trainer.runtime import process
from finetune_trainer.runtime.failures import CODES, Failure
from finetune_trainer.runtime.files import new_folder, write_file
from finetune_trainer.runtime.progress import Progress, Server, serve


def ended(folder: Path, stage: Callable[..., StageReport]) -> tuple[int, dict[str, Any]]:
    """Exit code and termination message of a stage that does what `stage` does."""
    run = preparing.run_of(folder, "file:///none", model={"uri": "file:///none"})
    (folder / "run.json").write_text(json.dumps(run.to_wire()))
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = process.run_stage("train", lambda _: stage, folder / "run.json", 0, folder / "termination")
    finally:
        signal.signal(signal.SIGTERM, before)
    return code, json.loads((folder / "termination").read_bytes())


def raising(error: BaseException) -> Callable[..., StageReport]:
    def stage(*arguments: Any) -> StageReport:
        raise error

    return stage


def test_a_run_file_that_was_replaced_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod was told the digest of the run that it is for; another try may find the right file."""
    monkeypatch.setenv(labels.RUN_DIGEST_VARIABLE, "sha256:another")
    code, told = ended(tmp_path, lambda *_: StageReport(stage="train"))
    assert (code, told["reason"]) == (70, "RunChanged")
    assert "the job was frozen with sha256:another" in told["message"]


def test_memory_that_was_edited_since_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan has to fit into is what this pod has, not what the job asked for when it was frozen."""
    monkeypatch.setenv(labels.MEMORY_VARIABLE, "77Gi")
    seen = []
    ended(tmp_path, lambda run, *_: seen.append(run.spec.resources.memory) or StageReport(stage="train"))
    assert seen == ["77Gi"]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "code", "reason", "message"),
    [
        (Failure(Reason.DATASET_INVALID, "a.jsonl:3: no"), 65, "DatasetInvalid", "a.jsonl:3: no"),
        (Failure(Reason.MODEL_UNAVAILABLE, "busy", transient=True), 70, "ModelUnavailable", "busy"),
        (MemoryError(), 137, "OutOfMemory", "out of memory"),
        (OutOfMemoryError("CUDA out of memory"), 137, "OutOfMemory", "out of memory: CUDA out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/model/a", None, "/w/a"), 73, "OutputNotWritable",
         "no space left for /w/a: make room, or raise resources.workspace.size"),
        (OSError(errno.ENOSPC, "No space left on device", "/w/x"), 73, "OutputNotWritable",
         "no space left for /w/x: make room, or raise resources.workspace.size"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 73, "OutputNotWritable",
         "no space left for the workspace: make room, or raise resources.workspace.size"),
        (KeyboardInterrupt(), 75, "Preempted", "stopped by the user; the same command goes on from here"),
    ],
)  # fmt: skip
def test_a_failure_with_a_name_is_told_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, reason: str, message: str
) -> None:
    found, report = ended(tmp_path, raising(error))
    assert (found, report["reason"], report["message"]) == (code, reason, message)
    told = capfd.readouterr().err
    assert f"train: {reason}: {message}" in told
    assert "Traceback" not in told


def test_an_error_of_the_disk_is_told_by_its_place(tmp_path: Path) -> None:
    """Whether an exception of the system, or a library's that tells of one."""
    gone, workspace = str(tmp_path / "workspace" / "x"), f"workspace: {tmp_path}/workspace: {tmp_path}/workspace"
    told = f'Error while serializing: I/O error: Read-only file system (os error {errno.EROFS}) at path "{gone}"'
    code, report = ended(tmp_path, raising(RuntimeError(told)))
    assert (code, report["reason"], report["message"]) == (
        73,
        "OutputNotWritable",
        f"{workspace}/x: the volume is read-only",
    )

    code, report = ended(tmp_path, raising(OSError(errno.EIO, "Input/output error")))
    assert (code, report["reason"]) == (70, "OutputNotWritable"), "it may be tried again"
    assert report["message"] == f"{workspace}: Input/output error: the storage does not answer"

    for path in ("/proc/none", gone):
        code, report = ended(tmp_path, raising(FileNotFoundError(errno.ENOENT, "No such file", path)))
        assert (code, report["reason"]) == (70, "InternalError"), "nobody named it, or it was ours"


def test_what_nobody_foresaw_leaves_a_traceback_and_a_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, report = ended(tmp_path, raising(ZeroDivisionError("division by zero")))
    assert (code, report["reason"]) == (70, "InternalError")
    assert report["message"] == "ZeroDivisionError: division by zero"
    assert "Traceback (most recent call last)" in capfd.readouterr().err


def test_what_others_wrote_is_escaped_in_a_report(tmp_path: Path) -> None:
    """Messages and samples go into a status, Events and terminals; an escape makes nothing too long to be read."""
    evil = "\x1b[2J\u202e" * 200
    samples = [Sample(prompt=evil, before="\x9b31m", after="a\nb")]

    def stage(*arguments: Any) -> StageReport:
        return StageReport(stage="train", evaluation=EvaluationResult(samples=samples, split="test\x07"))

    found = StageReport.model_validate(ended(tmp_path, stage)[1])
    assert found.evaluation is not None
    assert found.evaluation.samples[0].prompt.startswith(r"\x1b[2J\u202e\x1b")
    assert (found.evaluation.samples[0].before, found.evaluation.samples[0].after) == (r"\x9b31m", "a\nb")
    assert found.evaluation.split == r"test\x07"
    assert ended(tmp_path, raising(Failure(Reason.BAD_SPEC, "\x1b[2J\nno")))[1]["message"] == "\\x1b[2J\nno"


def test_what_libraries_print_is_escaped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They have handlers and prints of their own, and quote models and servers in them."""

    def stage(*arguments: Any) -> StageReport:
        theirs = logging.getLogger("a library's")
        theirs.addHandler(logging.StreamHandler())
        theirs.propagate = False
        theirs.warning("logged \x1b[2J")
        print("printed \x1b[2J")
        sys.stderr.writelines(["written \x1b[2J\n", "10 %\r20 %\n"])
        raise ValueError("raised \x1b[2J")

    ended(tmp_path, stage)
    told = "".join(capfd.readouterr())
    assert "\x1b" not in told
    assert "\r" not in told
    for word in ("logged", "printed", "written", "raised"):
        assert rf"{word} \x1b[2J" in told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bars_are_drawn_on_a_terminal_alone() -> None:
    """There they begin, and are wiped, by going back to the line's beginning; in a log each is a line."""
    for stream, expected in ((Terminal(), "\r 10 %\r 20 %\r    \ra\nb"), (io.StringIO(), "\n 10 %\n 20 %\n    \na\nb")):
        printable = process.Printable(stream)
        for text in ("\r 10 %", "\r 20 %", "\r    \r", "a\rb"):
            assert printable.write(text) == len(text)
        printable.flush()
        assert stream.getvalue() == expected


def test_success_leaves_its_report_in_both_places(tmp_path: Path) -> None:
    def stage(run: Any, workspace: Any, progress: Progress) -> StageReport:
        progress.update(step=3, total_steps=3, loss=0.5)
        return StageReport(stage="train")

    code, report = ended(tmp_path, stage)
    assert code == 0
    assert "reason" not in report
    assert (report["progress"]["step"], report["progress"]["activity"]) == (3, "done")
    assert json.loads((tmp_path / "workspace" / "train.report.json").read_bytes()) == report


def test_a_termination_signal_ends_the_stage_with_its_report(tmp_path: Path) -> None:
    """The first process of a container gets no default action: without a handler it would be killed after the grace."""

    def stage(*arguments: Any) -> StageReport:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    code, report = ended(tmp_path, stage)
    assert (code, report["reason"]) == (75, "Preempted")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the run file {path}: No such file or directory"),
        ("{}", "{path}: name: Field required; uid: Field required; spec: Field required"),
        ('{"name": "a", "uid": "b", "spec": {"model": {"uri": "x"}}}', "{path}: spec.model.uri: "),
    ],
)
def test_a_bad_run_file_is_a_bad_spec(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    before = signal.getsignal(signal.SIGTERM)
    code = process.run_stage("prepare", lambda _: raising(AssertionError()), path, 0, tmp_path / "termination")
    signal.signal(signal.SIGTERM, before)
    report = json.loads((tmp_path / "termination").read_bytes())
    assert (code, report["reason"]) == (64, "BadSpec")
    assert report["message"].startswith(message.replace("{path}", str(path)))


def test_every_failure_that_the_trainer_can_name_has_a_code() -> None:
    """A reason without one would turn a clear failure into a KeyError."""
    assert Failure(Reason.UNSUPPORTED, "").code == 78
    assert all(int(code) != 0 for code in CODES.values())


@pytest.mark.parametrize("text", ["x", "é", "😀", '"', "\n"])
def test_a_report_always_fits_into_a_termination_message(text: str) -> None:
    """Samples go first; what is left of the message is its beginning."""
    samples = [Sample(prompt="p" * 4000, before=text * 300, after="") for _ in range(8)]
    report = StageReport(
        stage="train", message=process.bounded("begin " + text * 5000), evaluation=EvaluationResult(samples=samples)
    )
    assert len(report.message) <= 2048
    body = process.encoded(report)
    assert len(body) <= TERMINATION_LIMIT
    parsed = StageReport.model_validate_json(body)
    assert parsed.message.startswith("begin")
    assert parsed.evaluation is not None
    assert parsed.evaluation.samples == []


def test_progress_is_served_as_json_and_as_metrics() -> None:
    """What is not a number is left out; other paths are nothing."""
    progress = Progress("train")
    progress.update(activity="training", step=7, total_steps=9, loss=float("nan"), eval_loss=1.5)
    server = Server(progress, 0, "127.0.0.1")
    try:
        page = get(server, "/progress")
        assert ProgressReport.model_validate_json(page) == progress.snapshot()
        assert json.loads(page) == {
            "stage": "train", "activity": "training", "step": 7, "totalSteps": 9, "resumedFromStep": 0, "epoch": 0,
            "evalLoss": 1.5, "checkpointStep": 0,
        }  # fmt: skip
        metrics = get(server, "/metrics").decode()
        assert 'finetune_trainer_step{stage="train"} 7.0' in metrics
        assert "finetune_trainer_loss{" not in metrics
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(server, "/")
    finally:
        server.close()


def get(server: Server, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        body: bytes = answer.read()
        return body


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_page_is_served_to_either_family_of_addresses(host: str) -> None:
    """A pod's only address may be of IPv6: one socket takes both."""
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this kernel has no IPv6")
    server = Server(Progress("train"), 0)
    try:
        with urllib.request.urlopen(f"http://{host}:{server.port}/progress", timeout=10) as answer:
            assert json.loads(answer.read())["stage"] == "train"
    finally:
        server.close()


def test_a_port_that_is_taken_costs_the_page_only(caplog: pytest.LogCaptureFixture) -> None:
    first = Server(Progress("train"), 0)
    try:
        assert serve(Progress("train"), first.port) is None
        assert "no progress page" in caplog.text
    finally:
        first.close()
    assert serve(Progress("train"), 0) is None


def test_a_file_or_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    """A crash while writing leaves what was there before."""
    write_file(tmp_path / "a", "old")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").write_text("")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "f") as draft:
        (draft / "none" / "new").write_text("")
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["old"]
    with new_folder(tmp_path / "f") as draft:
        (draft / "new").write_text("")
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["new"]
    with pytest.raises(TypeError):
        write_file(tmp_path / "a", 3)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "f"]


@pytest.mark.parametrize("name", ["*", "a?", "[ab]*", "**"])
def test_a_folders_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    """What a killed process left of an output goes, and of others' folders nothing."""
    for other in ("ab.tmp-1", "ab.tmp-old-1", f"{name}.tmp-old-1"):
        (tmp_path / other).mkdir()
    with new_folder(tmp_path / name) as draft:
        (draft / "new").write_text("")
    assert {path.name for path in tmp_path.iterdir()} == {"ab.tmp-1", "ab.tmp-old-1", name}


def test_the_shell_and_the_data_work_import_neither_torch_nor_transformers() -> None:
    """Each stage pays only for what it uses: torch takes seconds and half a gigabyte."""
    code = (
        "import sys, finetune_trainer.__main__, finetune_trainer.stages.prepare;"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
