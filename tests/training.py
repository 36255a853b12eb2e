"""What the tests of the train stage share: each pair of objective and method on a tiny model, prepared for real."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import preparing
import tiny
from finetune_api.run import Run
from finetune_trainer.objectives.objective import Objective, Row
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.stop import StopRequest
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.stages.train import assemble, train
from finetune_trainer.training.batching import Rows
from finetune_trainer.training.context import Stage, stage_of
from finetune_trainer.training.trainer import FineTuneTrainer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread only costs on models of this size

MODELS = {"llama": tiny.llama, "gpt2": tiny.gpt2, "bert": tiny.bert, "t5": tiny.t5}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8, "dropout": 0.1},
    "qlora": {"rank": 8, "dropout": 0.1},
    "qaLora": {"rank": 4, "groupSize": 16},
    "adaLora": {"initialRank": 6, "targetRank": 4, "everySteps": 1, "dropout": 0.1},
    "ia3": {},
    "bitFit": {"addBiases": True},
    "promptTuning": {"tokens": 8, "initText": "the word in capitals"},
    "prefixTuning": {"tokens": 6, "projectionSize": 32},
    "pTuning": {"tokens": 8, "encoder": "lstm", "encoderSize": 32},
    "pTuningV2": {"tokens": 6},
    "adapter": {"placement": "houlsby", "reductionFactor": 4, "dropout": 0.1},
    "uniPelt": {"rank": 4, "prefixTokens": 5, "prefixProjectionSize": 32, "bottleneckSize": 8},
    "full": {},
}
STEPS = 8
TRAINING = {
    "maxSteps": STEPS,
    "batchSize": 8,
    "microBatchSize": 4,
    "learningRate": 3e-3,
    "precision": "fp32",
    "maxLength": 128,
}

RATES = {
    "adaLora": 1e-2,
    "ia3": 3e-2,
    "pTuning": 2e-2,
    "pTuningV2": 3e-2,
}
"""Where a method needs another learning rate to get anywhere in so few steps."""


@dataclass(frozen=True)
class Pair:
    """One model with one objective and one method."""

    model: str
    objective: str
    method: str

    def __str__(self) -> str:
        return f"{self.model}-{self.objective}-{self.method}"


PAIRS = [
    *(
        Pair(model, objective, method)
        for model in ("llama", "gpt2")
        for objective in ("sft", "classification")
        for method in METHODS
    ),
    *(Pair("bert", "classification", method) for method in METHODS),
    *(Pair("t5", "sft", method) for method in METHODS),
]
MADE_FOR_ENCODERS = ("bitFit", "adapter", "uniPelt")
OF_ENCODER_DECODERS = ("lora", "full", "prefixTuning", "adapter")
"""Of each kind one: a layer beside others, all weights, a cache, and a layer of ours in both halves."""


def is_core(pair: Pair) -> bool:
    """Every pair of the two plainest methods, and of each other method the one that its paper would begin with."""
    if pair.model == "t5":
        return pair.method in OF_ENCODER_DECODERS
    home = Pair("bert", "classification", pair.method) if pair.method in MADE_FOR_ENCODERS else None
    return pair.method in ("lora", "full") or pair == (home or Pair("llama", "sft", pair.method))


@dataclass(frozen=True)
class Prepared:
    """A run and the workspace that prepare left for it."""

    run: Run
    workspace: Workspace

    def train(self, progress: Progress | None = None, stop: StopRequest | None = None) -> Any:
        return train(self.run, self.workspace, progress or Progress("train"), stop)

    def stage(self) -> Stage:
        return stage_of(self.run, self.workspace, Progress("train"), StopRequest())

    def trainer(self) -> FineTuneTrainer:
        """As `train` would put it together."""
        torch.manual_seed(self.run.spec.training.seed)
        return assemble(self.stage())

    def copy(self, folder: Path) -> "Prepared":
        """The same run on a workspace of its own."""
        shutil.copytree(self.workspace.root, folder)
        return Prepared(self.run.model_copy(update={"workspace": str(folder)}), Workspace(folder))


class StopAfter(Progress):
    """Asks the run to stop once `step` steps are reported; `ask` does the asking."""

    def __init__(self, step: int, ask: Any) -> None:
        super().__init__("train")
        self._stop_at, self._ask = step, ask

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        if fields.get("step", 0) >= self._stop_at and fields.get("loss") is not None:
            self._ask()


def prepared(
    folder: Path, pair: Pair, records: int = 40, dataset: dict[str, Any] | None = None, **spec: Any
) -> Prepared:
    """A prepared run of `pair`; `spec` adds stanzas, whose keys replace those that are there."""
    model = MODELS[pair.model](folder / "model")
    rows = tiny.completions(records) if pair.objective == "sft" else tiny.labelled(records)
    rate = {"learningRate": RATES.get(pair.method, TRAINING["learningRate"])}
    stanzas = {
        "objective": {pair.objective: {}},
        "method": spec.pop("method", {pair.method: METHODS[pair.method]}),
        "training": TRAINING | rate | spec.pop("training", {}),
        "evaluation": {"everySteps": 2} | spec.pop("evaluation", {}),
        "dataset": {"validation": {"fraction": 0.2}, "test": {"fraction": 0.2}} | (dataset or {}),
    }
    run = preparing.run_of(
        folder, tiny.jsonl(folder / "data.jsonl", rows), model={"uri": f"file://{model}"}, **stanzas, **spec
    )
    run = run.model_copy(update={"spec": run.spec.resolved()})
    _, _, workspace = preparing.prepared(run)
    return Prepared(run, workspace)


def some(run: Prepared, count: int) -> list[list[dict[str, Any]]]:
    rows: Rows = run.stage().rows("train")
    return [rows[index] for index in range(count)]


def cut(record: dict[str, Any], length: int) -> dict[str, Any]:
    """The record's first tokens; what is learnt moves to its end."""
    short = record | {"input_ids": record["input_ids"][:length]}
    return with_learnt(short, 2) if "loss_mask" in record else short


def with_learnt(record: dict[str, Any], count: int) -> dict[str, Any]:
    size = len(record["input_ids"])
    return record | {"loss_mask": np.arange(size) >= size - count}


def loss_of(objective: Objective, model: nn.Module, rows: list[Row]) -> torch.Tensor:
    """Of these rows as one batch."""
    return objective.compute_loss(model, objective.collate(rows)).loss


def gradient_of(trainer: FineTuneTrainer, micro_batches: list[list[list[dict[str, Any]]]]) -> torch.Tensor:
    """The gradient of one optimizer step over these micro-batches, as the Trainer's loop takes it."""
    batches = [trainer.objective.collate(rows) for rows in micro_batches]
    items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    training = trainer.model.training
    trainer.model.zero_grad()
    for batch in batches:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=items).backward()
    trainer.model.train(training)
    return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters() if p.requires_grad])
