"""`finetune plan`: a table over the methods for one job, without a cluster, weights or data."""

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tiny
from finetune_cli.commands.plan import PARTS
from finetune_cli.main import app
from finetune_trainer.planning import method_comparison

CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip


def job(folder: Path, **spec: Any) -> Path:
    stanzas = {
        "model": {"uri": "hf://org/model"},
        "dataset": {"train": [{"uri": "pvc://data/a.jsonl"}]},
        "output": {"uri": "pvc://models/x"},
        "method": {"ia3": {}},
        "training": {"maxLength": 64},
    }
    document = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "x"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(document | {"spec": stanzas | spec}))
    return folder / "job.yaml"


def plan(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four methods instead of all: one that this model refuses among them."""
    monkeypatch.setattr("finetune_cli.commands.plan.METHODS", ["lora", "ia3", "bitFit", "full"])


def test_a_config_is_enough(tmp_path: Path, few: None) -> None:
    """Rows for what the model allows, the reason for what it refuses, and what was assumed."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    done = plan(job(tmp_path), "--model", tmp_path, "--gpu-memory", "24Gi")
    assert done.exit_code == 0, done.output
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["method", "trainable", "share", *PARTS, "peak", "microBatchSize", "fits"]
    assert [line.split()[0] for line in lines[:3]] == ["lora", "ia3", "full"]
    assert all(line.split()[-2:] == ["16", "yes"] for line in lines[:3])
    assert "100 %" in lines[2]
    assert lines[3].startswith("bitFit: spec.method.bitFit: 'llama' models have no biases")
    assert lines[4] == "estimated for rows of 64 tokens at most; memory: 24Gi on the GPU"


def test_libraries_print_nothing_that_acts_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process behind the command writes to its terminal."""
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"train": [{"uri": "hf://a/b"}]}, "output": {"uri": "pvc://a/b"}}
    question = json.dumps({"model": ".", "spec": spec, "methods": []}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(question)))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back afterwards
    assert method_comparison.main() == 0
    logging.StreamHandler().stream.write("\x1b[2J")
    print("\x1b[3J")
    assert capfd.readouterr() == ("", "\\x1b[2J\\x1b[3J\n")


@pytest.mark.slow
def test_what_a_model_says_does_not_act_on_the_terminal(
    tmp_path: Path, few: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """A config that cannot be read is told with its name, without a traceback."""
    evil = {"rope_parameters": {"rope_type": "linear", "factor": "\x1b[31mEVIL"}, "id2label": {"\x1b[2J": "\x1b[2J"}}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | evil))
    done = plan(job(tmp_path), "--model", tmp_path)
    told = done.output + "".join(capfd.readouterr())
    assert f"{tmp_path}/config.json" in told
    assert "Traceback" not in told
    assert "\x1b" not in told


@pytest.mark.slow
def test_json_has_the_same_figures(tmp_path: Path, few: None) -> None:
    """One object a method; parts add up, and options of the job's own method are the job's."""
    model = tiny.llama(tmp_path / "model")
    source = job(tmp_path, model={"uri": f"file://{model}"}, method={"lora": {"rank": 4}}, resources={"gpus": 0})
    done = plan(source, "--json")
    assert done.exit_code == 0, done.output
    rows = {row["method"]: row for row in json.loads(done.stdout)}
    assert sum(rows["lora"]["memory"].values()) == rows["lora"]["totalBytes"]
    assert rows["lora"]["trainableParameters"] * 4 == rows["lora"]["memory"]["trainableWeightsBytes"]
    assert rows["full"]["trainableParameters"] == rows["full"]["totalParameters"]
    assert rows["lora"]["limitBytes"] == 8 << 30
    assert "biases" in rows["bitFit"]["refused"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "hf://org/model is not on this machine: name a folder with the model's config.json, --model FOLDER"),
        (["--model", "nowhere"], "nowhere has no config.json"),
        (["--gpu-memory", "much"], "--gpu-memory much: expected a quantity such as 24Gi"),
    ],
)
def test_what_is_missing_is_asked_for(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = plan(job(tmp_path), *arguments)
    assert done.exit_code == 64
    assert told in done.stderr


def test_a_wrong_job_is_refused_as_by_validate(tmp_path: Path) -> None:
    done = plan(job(tmp_path, training={"batchSize": 0}))
    assert done.exit_code == 64
    assert "spec.training.batchSize" in done.stderr
