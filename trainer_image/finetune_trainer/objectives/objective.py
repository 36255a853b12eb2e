"""What a run learns: how records become batches, the loss of a batch, and what is measured of a model.

An objective is no trainer: it knows no step, no optimizer and no method, and keeps no model. Each call is given the
model to work on, so that whatever is wrapped around it, as for several processes, is part of the pass.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from finetune_api.status import Metric
from finetune_trainer.models.loading import Head

Row = list[dict[str, Any]]
"""The records that share a row of a batch: one, or several that are packed."""
Batch = dict[str, Any]
"""What is made of rows: tensors for the model, and the plain numbers `tokens` (read) and `items` (learnt)."""


@dataclass(frozen=True)
class LossOutput:
    """What one batch says about the model."""

    loss: torch.Tensor
    """Sum over the batch's items, a scalar with a gradient where gradients are on."""
    predicted: torch.Tensor | None = None
    """int64 [records], the class of each, where the objective has classes."""
    expected: torch.Tensor | None = None
    """int64 [records]."""


class Objective:
    """Made once for a run, after the method was applied."""

    def __init__(self, model: nn.Module, pad_token_id: int, dtype: torch.dtype) -> None:
        """`model` is only looked at; it may be on the meta device, where a run is planned. `dtype` is that of the run's
        products."""
        self.pad_token_id, self.dtype = pad_token_id, dtype

    @classmethod
    def suited(cls, config: PretrainedConfig) -> "type[Objective]":
        """The objective for models of this kind: this class, or one of its own."""
        return cls

    @classmethod
    def head(cls, labels: tuple[str, ...]) -> Head:
        """What it asks of the base model."""
        raise NotImplementedError

    def collate(self, rows: list[Row]) -> Batch:
        """A batch of rows, on the CPU."""
        raise NotImplementedError

    def compute_loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        """The loss of a batch by `model`, under the caller's autocast."""
        raise NotImplementedError

    def metrics(self, loss: float, outputs: list[LossOutput]) -> tuple[dict[Metric, float], dict[str, Any]]:
        """Held-out metrics, given the mean loss over all items, and the details that are too large for a status."""
        raise NotImplementedError

    def autocast(self, device: torch.device) -> Any:
        """The arithmetic of the run's products."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not torch.float32)


def padded(rows: list[np.ndarray], fill: int) -> torch.Tensor:
    """int64 [rows, longest], filled up on the right."""
    block = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for line, row in zip(block, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(block)
