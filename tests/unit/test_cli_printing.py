"""Theory: a terminal shows what clusters, pods and files say, and does nothing of it; nor can they write a line, or a
style, that looks like ours.
"""

import io
import json
import logging
import sys
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from finetune_api.text import LETTERS
from finetune_cli.cluster import ClusterError
from finetune_cli.commands.validate import report
from finetune_cli.manifest.validation import check, only_job
from finetune_cli.stored import StoredJob, stored_job
from finetune_cli.views import job_table
from finetune_cli.views.description import description
from finetune_cli.views.summary import failure
from finetune_cli.views.terminal import Screen
from finetune_operator.logs import JsonLines
from finetune_trainer.runtime import process

NOW = datetime(2026, 1, 2, tzinfo=UTC)
EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\x7f\u202e\u2028[red]x[/red]\r\nbot: Succeeded"


def acting(text: str) -> set[str]:
    """The characters of `text` that do something else than be seen; our own line ends are none."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {char for char in text if unicodedata.category(char) in hidden and char not in LETTERS + "\n"}


def hostile() -> StoredJob:
    """A job in whose status every text is as its pods and servers want it."""
    time = "2026-01-01T00:00:00Z"
    condition = {"type": "Failed", "status": "True", "reason": EVIL, "message": EVIL, "lastTransitionTime": time}
    sample = {"prompt": EVIL, "before": EVIL, "after": EVIL}
    status: dict[str, Any] = {
        "phase": EVIL,
        "conditions": [condition],
        "evaluation": {"split": EVIL, "base": {"loss": 1}, "tuned": {"loss": 1}, "samples": [sample]},
        "attempts": [{"number": 1, "pod": EVIL, "startedAt": time, "finishedAt": time, "reason": EVIL}],
        "artifact": {"uri": EVIL, "digest": EVIL, "kind": "adapter", "sizeBytes": 1},
        "progress": {"stage": EVIL, "step": 1},
        "plan": {"precision": EVIL, "totalSteps": 1},
    }
    spec = {
        "model": {"uri": "hf://org/model", "revision": EVIL},
        "dataset": {"train": [{"uri": "https://host/" + EVIL.replace("\r\n", "")}]},
        "output": {"uri": "pvc://models/" + EVIL.replace("\r\n", "")},
    }
    return stored_job({"metadata": {"name": "bot"}, "spec": spec, "status": status})


def printed(*renderables: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=400, color_system=None).print(*renderables)
    return file.getvalue()


def test_a_description_is_all_that_is_seen() -> None:
    told = printed(description(hostile(), NOW))
    assert not acting(told)
    assert "[red]x[/red]" in told
    assert r"\x1b]0;title\x07" in told
    assert not [line for line in told.splitlines() if line.startswith("bot: ")]


def test_the_table_and_the_lines_of_jobs_are_too() -> None:
    assert not acting(printed(job_table.table([hostile()], NOW, all_namespaces=True)))
    assert not acting(job_table.line(hostile()))
    assert "\n" not in job_table.line(hostile())


def test_a_failure_cannot_pose_as_a_line_of_its_own() -> None:
    told = printed(failure(f"failed: {EVIL}", EVIL, None))
    assert not acting(told)
    assert all(line.startswith(("✗", "  ")) for line in told.splitlines())


def test_a_screen_lets_no_control_character_through() -> None:
    """Whatever was forgotten on the way: of a table's cell, of a string, of an error."""
    file = io.StringIO()
    screen = Screen(file=file, width=200, color_system=None)
    table = Table()
    table.add_column("\x9b2J")
    table.add_row("\x1b[2Ja\u202e")
    screen.print(table, "\x1b]0;t\x07", markup=False)
    assert not acting(file.getvalue())
    assert r"\x1b" in file.getvalue()


def test_what_a_cluster_refuses_with_is_quoted_on_one_line() -> None:
    assert str(ClusterError("no\x1b[2J\nno")) == r"no\x1b[2J no"


def test_what_is_wrong_in_a_file_is_quoted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text(
        "kind: FineTuneJob\napiVersion: finetune.dev/v1alpha1\nmetadata: {name: a}\n"
        'spec: {"\\e[2J\\u202E": 1, model: {uri: "\\e]0;t\\a"}}\n'
    )
    source = only_job(str(tmp_path / "job.yaml"))
    report(source, check(source))
    told = capsys.readouterr().err
    assert "job.yaml:" in told
    assert not acting(told)


def test_a_line_of_the_operators_log_is_readable_json() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "%s", (EVIL,), None)
    line = JsonLines().format(record)
    assert not acting(line)
    assert r"\x9b31m" in json.loads(line)["message"]


def test_a_line_of_the_trainers_log_cannot_pose_as_another(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(process.Lines("%(asctime)s train: %(message)s", "%H:%M:%S"))
    log = logging.getLogger("test-of-lines")
    log.addHandler(handler)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("%s\n12:00:00 train: %s", EVIL, "forged")
    finally:
        log.removeHandler(handler)
    told = capsys.readouterr().err
    assert not acting(told)
    first, *rest = told.splitlines()
    assert " train: " in first
    assert all(line.startswith(("    ", "Traceback (most recent call last):")) for line in rest)
