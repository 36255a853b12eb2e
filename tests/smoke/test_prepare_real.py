"""The prepare stage with real architectures, whose parameters torch counts; once as the process that a pod runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import preparing
import tiny
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_trainer.planning.client import Parameters
from finetune_trainer.runtime.failures import Failure

LORA = {"method": {"lora": {"rank": 4}}}
LORA_PARAMETERS = (
    2 * 4 * sum(a + b for a, b in [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)])
)
"""Rank 4 on the seven linear layers of the tiny Llama's two blocks."""


class CountHere(preparing.Count):
    """Counts in this process, which has torch already; `check` finds a failure as the other process would report it."""

    def __init__(self, model: Path, spec: FineTuneJobSpec) -> None:
        super().__init__(model, spec)
        self._model, self._spec = model, spec

    def result(self, load: dict[str, Any]) -> Parameters:
        from finetune_trainer.planning.memory import PlannedModel

        model = PlannedModel(self._model, self._spec, self.asked or [])
        return Parameters(model.total, model.trainable)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.llama(folder / "llama")
    tiny.bert(folder / "bert")
    return folder


def run_of(folder: Path, model: Path, rows: list[Any], **spec: Any) -> Any:
    return preparing.run_of(folder, tiny.jsonl(folder / "a.jsonl", rows), model={"uri": f"file://{model}"}, **spec)


@pytest.mark.slow
def test_the_stage_is_a_process_that_leaves_a_report(tmp_path: Path, models: Path) -> None:
    """Everything real: the data here, the count in a process beside it, the termination message."""
    run = run_of(tmp_path, models / "llama", tiny.completions(60), **LORA)
    (tmp_path / "run.json").write_text(json.dumps(run.to_wire()))
    command = [sys.executable, "-m", "finetune_trainer", "prepare", "--run", str(tmp_path / "run.json"), "--port", "0"]
    command += ["--termination-log", str(tmp_path / "termination")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "termination").read_bytes())
    assert report["plan"]["trainableParameters"] == LORA_PARAMETERS
    has_tiles = torch.cpu.get_capabilities()["amx_bf16"]
    assert report["plan"]["precision"] == ("bf16" if has_tiles else "fp32")
    assert report["plan"]["precisionBasis"] in done.stderr
    assert report["data"]["trainExamples"] == 54
    assert "Traceback" not in done.stderr


def test_the_new_head_of_a_classifier_is_counted(tmp_path: Path, models: Path) -> None:
    """Its size is known only when the classes are."""
    spec: dict[str, Any] = {"objective": {"classification": {}}, "method": {"full": {}}}
    report, page, _ = preparing.prepared(run_of(tmp_path, models / "bert", tiny.labelled(60), **spec), CountHere)
    assert len(page.labels) == 3
    assert report.plan is not None
    assert report.plan.trainable_parameters == report.plan.total_parameters


@pytest.mark.parametrize(
    ("model", "spec", "reason", "told"),
    [
        (
            "llama",
            {"method": {"lora": {"targetModules": ["query_key_value"]}}},
            "BadSpec",
            ["query_key_value", "q_proj"],
        ),
        ("bert", {}, "Unsupported", ["encoder", "classification"]),
    ],
)
def test_what_cannot_be_trained_is_refused_here(
    tmp_path: Path, models: Path, model: str, spec: dict[str, Any], reason: str, told: list[str]
) -> None:
    """Before a GPU is held, with what would have been possible."""
    with pytest.raises(Failure) as caught:
        preparing.prepared(run_of(tmp_path, models / model, tiny.texts(60), **spec), CountHere)
    assert caught.value.reason == reason
    assert all(word in caught.value.message for word in told), caught.value.message
