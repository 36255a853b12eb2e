"""Single-label text classification: cross-entropy of a linear head over the model's summary of a record.

Record: {"input_ids": int32[n], "label": int}.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.models.auto import modeling_auto

from finetune_api.status import Metric
from finetune_trainer.models.loading import Head, fresh_modules, is_encoder, unwrapped
from finetune_trainer.objectives.objective import Batch, LossOutput, Objective, Row, padded


class Classification(Objective):
    """One item is one record. The model pools for itself: an encoder its first token, a decoder its last but padding.

    Rows are padded on the right, which a decoder never sees; an encoder is told by a mask. Behind virtual tokens that a
    method put in front, a decoder cannot tell padding from tokens and would take the last position: there it is told.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, dtype: torch.dtype) -> None:
        super().__init__(model, pad_token_id, dtype)
        self.sees_padding = is_encoder(model.config)
        self.labels = [model.config.id2label[number] for number in range(model.config.num_labels)]

    @classmethod
    def head(cls, labels: tuple[str, ...]) -> Head:
        known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        return Head("AutoModelForSequenceClassification", "SEQ_CLS", known, is_new=True, labels=labels)

    def collate(self, rows: list[Row]) -> Batch:
        records = [record for row in rows for record in row]
        lengths = np.array([len(record["input_ids"]) for record in records])
        input_ids = padded([record["input_ids"] for record in records], self.pad_token_id)
        mask = torch.from_numpy(np.arange(input_ids.shape[1]) < lengths[:, None]).long()
        labels = torch.tensor([record["label"] for record in records])
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "expected": labels,
            "items": len(records),
            "tokens": int(lengths.sum()),
        }

    def compute_loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        logits = (_of_encoder(model, batch) if self.sees_padding else self._of_decoder(model, batch)).float()
        loss = functional.cross_entropy(logits, batch["expected"], reduction="sum")
        return LossOutput(loss, predicted=logits.detach().argmax(-1), expected=batch["expected"])

    def _of_decoder(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        width, ends = batch["input_ids"].shape[1], batch["attention_mask"].sum(1) - 1
        outputs: list[torch.Tensor] = []
        with self._new_head(model).register_forward_hook(lambda _, inputs, output: outputs.append(output)):
            logits: torch.Tensor = model(input_ids=batch["input_ids"]).logits
        everywhere = outputs[0]  # of every position, [rows, virtual tokens + width, classes]
        is_longer = everywhere.dim() == 3 and everywhere.shape[1] > width
        return everywhere[:, -width:][torch.arange(len(ends), device=ends.device), ends] if is_longer else logits

    def _new_head(self, model: nn.Module) -> nn.Module:
        """The layer from hidden states to classes."""
        inner: Any = unwrapped(model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        layer: nn.Module = inner.get_submodule(fresh_modules(inner, self.head(()))[-1])
        return layer

    def metrics(self, loss: float, outputs: list[LossOutput]) -> tuple[dict[Metric, float], dict[str, Any]]:
        matrix = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        for output in outputs:
            assert output.expected is not None
            assert output.predicted is not None
            np.add.at(matrix, (output.expected.cpu().numpy(), output.predicted.cpu().numpy()), 1)
        accuracy = float(matrix.trace() / matrix.sum())
        scores = {Metric.LOSS: loss, Metric.ACCURACY: accuracy, Metric.MACRO_F1: macro_f1(matrix)}
        return scores, {"labels": self.labels, "confusionMatrix": matrix.tolist()}


def _of_encoder(model: nn.Module, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits


def macro_f1(matrix: np.ndarray) -> float:
    """Mean over the classes that occur of F1 = 2·hits / (expected + predicted).

    `matrix` counts records, int [expected, predicted]; a class occurs that is expected or predicted at least once.
    """
    hits, present = matrix.diagonal(), matrix.sum(0) + matrix.sum(1)
    occurs = present > 0
    return float((2 * hits[occurs] / present[occurs]).mean()) if occurs.any() else 0.0
