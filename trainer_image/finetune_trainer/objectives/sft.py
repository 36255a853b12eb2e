"""Supervised fine-tuning: next-token cross-entropy at the tokens that are learnt, and logits nowhere else.

Record: {"input_ids": int32[n], "loss_mask": bool[n]}; `loss_mask[j]` says that token j is learnt, from position j - 1.
For an encoder-decoder it says that token j is the decoder's to write; the encoder reads the others.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from finetune_api.status import Metric
from finetune_trainer.models.loading import Head, unwrapped
from finetune_trainer.objectives.linear_cross_entropy import linear_cross_entropy
from finetune_trainer.objectives.objective import Batch, LossOutput, Objective, Row, padded

LARGEST_EXPONENT = 60.0
"""A perplexity above e^60 says no more than e^60 does."""
SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Fields of a config that say that logits are more than what a linear output layer gives."""


class Sft(Objective):
    """One item is one learnt token.

    Rows are padded on the right and attention is causal, so no token that counts ever sees padding, and no attention
    mask is needed. Records that share a row are kept apart by positions that start at 0 again, which transformers turns
    into a block-diagonal mask as long as no cache is in use.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, dtype: torch.dtype) -> None:
        super().__init__(model, pad_token_id, dtype)
        self.plain_head = self._has_plain_head(model, output_layer(model))

    @classmethod
    def suited(cls, config: PretrainedConfig) -> type[Objective]:
        return EncoderDecoderSft if config.is_encoder_decoder else cls

    @classmethod
    def head(cls, labels: tuple[str, ...]) -> Head:
        known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        return Head("AutoModelForCausalLM", "CAUSAL_LM", known, generates=True)

    def collate(self, rows: list[Row]) -> Batch:
        ids = [np.concatenate([record["input_ids"] for record in row]) for row in rows]
        masks = [np.concatenate([_without_first(record["loss_mask"]) for record in row]) for row in rows]
        input_ids = padded(ids, self.pad_token_id)
        learnt = np.concatenate([np.flatnonzero(mask) + line * input_ids.shape[1] for line, mask in enumerate(masks)])
        batch = {
            "input_ids": input_ids,
            "positions": torch.from_numpy(learnt - 1),
            "targets": input_ids.flatten()[learnt],
        }
        if any(len(row) > 1 for row in rows):
            positions = [np.concatenate([np.arange(len(record["input_ids"])) for record in row]) for row in rows]
            batch["position_ids"] = _counting_on(positions, input_ids.shape[1])
        return {**batch, "items": len(learnt), "tokens": sum(len(row) for row in ids)}

    def compute_loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        places = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
        inputs = {"input_ids": batch["input_ids"], **places}
        return LossOutput(self._loss(model, batch, batch["input_ids"].shape[1], inputs))

    def _loss(self, model: nn.Module, batch: Batch, width: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of `targets` at `positions` of the rows, `width` tokens each, that the output layer is given."""
        selected = _Selection(batch["positions"], width, skip_head=self.plain_head)
        layer = output_layer(unwrapped(model))
        with selected.at(layer):
            output = model(**inputs, use_cache=False)
        if not self.plain_head:
            return functional.cross_entropy(output.logits.float(), batch["targets"], reduction="sum")
        bias = getattr(layer, "bias", None)
        return linear_cross_entropy(selected.hidden, layer.weight, bias, batch["targets"], self.dtype)

    def _has_plain_head(self, model: Any, layer: nn.Module) -> bool:
        """Whether logits are exactly what a linear output layer gives: some models scale or squash them afterwards."""
        if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
            return False
        device = layer.weight.device
        if device.type == "meta":  # there are no logits to compare
            config = model.config.get_text_config()
            return not any(getattr(config, name, None) for name in SCALED_LOGITS)
        was_training = model.training
        probe = torch.arange(4, device=device).unsqueeze(0)
        inputs = {"input_ids": probe} | ({"decoder_input_ids": probe} if model.config.is_encoder_decoder else {})
        selected = _Selection(torch.arange(4, device=device), width=4, skip_head=False)
        with torch.no_grad(), self.autocast(device):
            with selected.at(layer):
                logits = model.eval()(**inputs, use_cache=False).logits
            expected = layer(selected.hidden)
        model.train(was_training)
        return torch.equal(logits, expected)

    def metrics(self, loss: float, outputs: list[LossOutput]) -> tuple[dict[Metric, float], dict[str, Any]]:
        return {Metric.LOSS: loss, Metric.PERPLEXITY: math.exp(min(loss, LARGEST_EXPONENT))}, {}


class EncoderDecoderSft(Sft):
    """The same where one half of the model reads the input and the other writes the answer, token by token.

    Both are padded on the right. The encoder looks both ways, so it is told what is padding; the decoder needs no mask,
    as above. It is given the answer shifted by one: its start token, and all but the answer's last token.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, dtype: torch.dtype) -> None:
        super().__init__(model, pad_token_id, dtype)
        self.start = model.config.decoder_start_token_id

    @classmethod
    def head(cls, labels: tuple[str, ...]) -> Head:
        known = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        return Head("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", known, generates=True)

    def collate(self, rows: list[Row]) -> Batch:
        """Rows hold one record each: encoder-decoders do not pack."""
        records = [record for row in rows for record in row]
        inputs = [record["input_ids"][~record["loss_mask"]] for record in records]
        answers = [record["input_ids"][record["loss_mask"]] for record in records]
        targets = padded(answers, self.pad_token_id)
        written = padded([np.ones(len(answer)) for answer in answers], 0).flatten().bool()
        before = functional.pad(targets[:, :-1], (1, 0), value=self.start)
        items = sum(len(answer) for answer in answers)
        return {
            "input_ids": padded(inputs, self.pad_token_id),
            "attention_mask": padded([np.ones(len(row)) for row in inputs], 0),
            "decoder_input_ids": before,
            "positions": torch.arange(targets.numel())[written],
            "targets": targets.flatten()[written],
            "items": items,
            "tokens": items + sum(len(row) for row in inputs),
        }

    def compute_loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
        return LossOutput(self._loss(model, batch, batch["decoder_input_ids"].shape[1], inputs))


class _Selection:
    """Lets only chosen positions through the output layer, by a hook: the model's own code stays as it is."""

    def __init__(self, positions: torch.Tensor, width: int, skip_head: bool) -> None:
        self.positions, self.width, self.skip_head = positions, width, skip_head
        self.hidden: torch.Tensor = torch.empty(0)

    def at(self, layer: nn.Module) -> Any:
        return layer.register_forward_pre_hook(self._select)

    def _select(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        """`inputs[0]` [rows, length, width]; virtual tokens that a method put in front are left out."""
        states = inputs[0][:, -self.width :]
        self.hidden = states.reshape(-1, states.shape[-1])[self.positions]
        return (self.hidden[:0] if self.skip_head else self.hidden,)


def output_layer(model: Any) -> Any:
    """The layer that turns hidden states into logits."""
    owner = model if hasattr(model, "get_output_embeddings") else model.base_model
    return owner.get_output_embeddings()


def _without_first(mask: np.ndarray) -> np.ndarray:
    """Nothing predicts the first token of a record."""
    learnt = np.array(mask, dtype=bool)
    learnt[:1] = False
    return learnt


def _counting_on(rows: list[np.ndarray], width: int) -> torch.Tensor:
    """Positions, int64 [rows, width]. Padding counts as one more record, so that no record sees it and it sees none."""
    block = np.tile(np.arange(width), (len(rows), 1))
    for line, row in zip(block, rows, strict=True):
        line[: len(row)] = row
        line[len(row) :] = np.arange(width - len(row))
    return torch.from_numpy(block)
