"""The prepare stage as it runs in a pod: a process, a real model architecture, parameters counted by torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import preparing
import tiny


def stage(folder: Path, **spec: Any) -> tuple[int, dict[str, Any], str]:
    """Exit code, termination message and log of `python -m finetune_trainer prepare`."""
    run = preparing.run_of(folder, tiny.jsonl(folder / "a.jsonl", spec.pop("rows", tiny.completions(60))), **spec)
    (folder / "run.json").write_text(json.dumps(run.to_wire()))
    command = [sys.executable, "-m", "finetune_trainer", "prepare", "--run", str(folder / "run.json"), "--port", "0"]
    command += ["--termination-log", str(folder / "termination")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    return done.returncode, json.loads((folder / "termination").read_bytes()), done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.llama(folder / "llama")
    tiny.bert(folder / "bert")
    return folder


def test_parameters_are_those_of_the_model_and_its_method(tmp_path: Path, models: Path) -> None:
    """Rank 4 on the seven linear layers of two blocks of the tiny Llama."""
    code, report, log = stage(tmp_path, model={"uri": f"file://{models}/llama"}, method={"lora": {"rank": 4}})
    assert code == 0, log
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert report["plan"]["trainableParameters"] == 2 * 4 * sum(a + b for a, b in shapes)
    assert report["data"]["trainExamples"] == 54
    assert "Traceback" not in log


def test_the_new_head_of_a_classifier_is_counted(tmp_path: Path, models: Path) -> None:
    """Its size is known only when the classes are."""
    spec: dict[str, Any] = {"objective": {"classification": {}}, "method": {"full": {}}, "rows": tiny.labelled(60)}
    code, report, log = stage(tmp_path, model={"uri": f"file://{models}/bert"}, **spec)
    assert code == 0, log
    assert report["data"]["labels"] == 3
    assert report["plan"]["trainableParameters"] == report["plan"]["totalParameters"] > 100_000


def test_target_modules_that_match_nothing_are_refused_before_training(tmp_path: Path, models: Path) -> None:
    """With the names that would match; no traceback, and no data is left that looks complete."""
    method = {"lora": {"targetModules": ["query_key_value"]}}
    code, report, log = stage(tmp_path, model={"uri": f"file://{models}/llama"}, method=method)
    assert (code, report["reason"]) == (64, "BadSpec")
    assert "query_key_value" in report["message"]
    assert "q_proj" in report["message"]
    assert "Traceback" not in log


def test_an_encoder_cannot_learn_to_write(tmp_path: Path, models: Path) -> None:
    rows = tiny.texts(60)
    code, report, _ = stage(tmp_path, model={"uri": f"file://{models}/bert"}, rows=rows)
    assert (code, report["reason"]) == (78, "Unsupported")
    assert "encoder" in report["message"]
