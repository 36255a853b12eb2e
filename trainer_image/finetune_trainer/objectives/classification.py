"""Single-label text classification: cross-entropy of a linear head over the model's summary of a record.

Record: {"input_ids": int32[n], "label": int}.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from finetune_api.status import Metrics
from finetune_trainer.models.loading import Head, fresh_modules, is_encoder
from finetune_trainer.training.trainer import Batch, FineTuner, Judgement, padded


class ClassificationTrainer(FineTuner):
    """One item is one record. The model pools for itself: an encoder its first token, a decoder its last but padding.

    Rows are padded on the right, which a decoder never sees; an encoder is told by a mask. Behind virtual tokens that a
    method put in front, a decoder cannot tell padding from tokens and would take the last position: there it is told.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sees_padding = is_encoder(self.model.config)

    @classmethod
    def head(cls, labels: tuple[str, ...]) -> Head:
        return Head("AutoModelForSequenceClassification", peft_task="SEQ_CLS", generates=False, labels=labels)

    def collate(self, rows: list[list[dict[str, Any]]]) -> Batch:
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

    def judge(self, batch: Batch) -> Judgement:
        logits = (self._of_encoder(batch) if self.sees_padding else self._of_decoder(batch)).float()
        loss = functional.cross_entropy(logits, batch["expected"], reduction="sum")
        return Judgement(loss, predicted=logits.detach().argmax(-1), expected=batch["expected"])

    def _of_encoder(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    def _of_decoder(self, batch: Batch) -> torch.Tensor:
        width, ends = batch["input_ids"].shape[1], batch["attention_mask"].sum(1) - 1
        said: list[torch.Tensor] = []
        with self._new_head().register_forward_hook(lambda _, inputs, output: said.append(output)):
            logits: torch.Tensor = self.model(input_ids=batch["input_ids"]).logits
        everywhere = said[0]  # of every position, [rows, virtual tokens + width, classes]
        is_longer = everywhere.dim() == 3 and everywhere.shape[1] > width
        return everywhere[:, -width:][torch.arange(len(ends), device=ends.device), ends] if is_longer else logits

    def _new_head(self) -> nn.Module:
        """The layer from hidden states to classes."""
        model: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        layer: nn.Module = model.get_submodule(fresh_modules(model, self.head(()))[-1])
        return layer

    def metrics(self, loss: float, judgements: list[Judgement]) -> tuple[Metrics, dict[str, Any]]:
        classes = self.model.config.num_labels
        matrix = np.zeros((classes, classes), dtype=np.int64)
        for judgement in judgements:
            assert judgement.expected is not None
            assert judgement.predicted is not None
            np.add.at(matrix, (judgement.expected.cpu().numpy(), judgement.predicted.cpu().numpy()), 1)
        names = [self.model.config.id2label[number] for number in range(classes)]
        scores = Metrics(loss=loss, accuracy=float(matrix.trace() / matrix.sum()), macro_f1=macro_f1(matrix))
        return scores, {"labels": names, "confusionMatrix": matrix.tolist()}


def macro_f1(matrix: np.ndarray) -> float:
    """Mean over the classes that occur of F1 = 2·hits / (expected + predicted).

    `matrix` counts records, int [expected, predicted]; a class occurs that is expected or predicted at least once.
    """
    hits, present = matrix.diagonal(), matrix.sum(0) + matrix.sum(1)
    occurs = present > 0
    return float((2 * hits[occurs] / present[occurs]).mean()) if occurs.any() else 0.0
