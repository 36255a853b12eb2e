"""What the architectures call the parts of a transformer block.

It decides on which architectures our own methods know their places, and refuses the others. It knows no method.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import Reason
from finetune_trainer.models.loading import LoadedModel
from finetune_trainer.runtime.failures import Failure


@dataclass(frozen=True)
class Names:
    """Module names, relative to a block unless they say otherwise."""

    blocks: str
    """The list of blocks, within the model."""
    attention: str
    """What attends to the block's own tokens. It is called with the states that it reads and, by keyword, with
    `attention_mask` or `mask`."""
    queries: str
    """The linear layer whose first outputs are the queries."""
    values: str
    """The linear layer whose last outputs are the values; where queries, keys and values are one layer, the same."""
    attention_end: str
    """The last module of the attention sublayer, before the residual is added."""
    feedforward_end: str
    """The last module of the feed-forward sublayer, before the residual is added."""
    cross_end: str | None = None
    """The last module of the sublayer that attends to an encoder; None: there is no such sublayer."""
    in_encoder: bool = False
    """Whether these blocks are an encoder-decoder's encoder, which reads in both directions."""


LLAMA = Names("layers", "self_attn", "self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
PHI3 = Names(
    "layers", "self_attn", "self_attn.qkv_proj", "self_attn.qkv_proj", "resid_attn_dropout", "resid_mlp_dropout"
)
GPT2 = Names("h", "attn", "attn.c_attn", "attn.c_attn", "attn.resid_dropout", "mlp.dropout")
BERT = Names(
    "layer", "attention.self", "attention.self.query", "attention.self.value", "attention.output.dropout",
    "output.dropout",
)  # fmt: skip
T5_ENCODER = Names(
    "encoder.block", "layer.0.SelfAttention", "layer.0.SelfAttention.q", "layer.0.SelfAttention.v", "layer.0.dropout",
    "layer.1.dropout", in_encoder=True,
)  # fmt: skip
T5_DECODER = replace(
    T5_ENCODER, blocks="decoder.block", feedforward_end="layer.2.dropout", cross_end="layer.1.dropout", in_encoder=False
)
BART_ENCODER = Names(
    "encoder.layers", "self_attn", "self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "fc2", in_encoder=True
)
BART_DECODER = replace(BART_ENCODER, blocks="decoder.layers", cross_end="encoder_attn.out_proj", in_encoder=False)
T5, BART = (T5_ENCODER, T5_DECODER), (BART_ENCODER, BART_DECODER)

ARCHITECTURES: dict[str, tuple[Names, ...]] = {
    "llama": (LLAMA,),
    "mistral": (LLAMA,),
    "qwen2": (LLAMA,),
    "qwen3": (LLAMA,),
    "gemma": (LLAMA,),
    "granite": (LLAMA,),
    "olmo": (LLAMA,),
    "smollm3": (LLAMA,),
    "phi3": (PHI3,),
    "gpt2": (GPT2,),
    "bert": (BERT,),
    "roberta": (BERT,),
    "xlm-roberta": (BERT,),
    "camembert": (BERT,),
    "electra": (BERT,),
    "t5": T5,
    "mt5": T5,
    "bart": BART,
}
"""By `model_type` of the config: one for each list of blocks."""


def blocks(base: LoadedModel, field: str) -> list[Names]:
    """The model's blocks, in order, each with full names in place of relative ones (`blocks` is its own name).

    Raises Failure, which names `field`, where nobody knows what this model calls its parts.
    """
    kind = base.model.config.model_type
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise Failure(
            Reason.UNSUPPORTED,
            f"{field}: its places in {kind!r} models are not known; they are in: {known}; or choose lora",
        )
    return [_within(block, own) for own in ARCHITECTURES[kind] for block in _found(base, own)]


def _found(base: LoadedModel, own: Names) -> Iterator[str]:
    block = re.compile(rf"(.+\.)?{re.escape(own.blocks)}\.\d+")
    return (name for name, _ in base.model.named_modules() if block.fullmatch(name))


def _within(block: str, own: Names) -> Names:
    return Names(
        blocks=block,
        attention=f"{block}.{own.attention}",
        queries=f"{block}.{own.queries}",
        values=f"{block}.{own.values}",
        attention_end=f"{block}.{own.attention_end}",
        feedforward_end=f"{block}.{own.feedforward_end}",
        cross_end=own.cross_end and f"{block}.{own.cross_end}",
        in_encoder=own.in_encoder,
    )


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model."""

    queries: int
    keys: int
    """Heads of keys and values: fewer than `queries` where several queries share one."""
    width: int


def heads(config: PretrainedConfig, in_encoder: bool = False) -> Heads:
    """The same for every block; of an encoder-decoder those of its decoder, or of its encoder."""
    own = None if in_encoder else getattr(config, "decoder_attention_heads", None)
    count = own or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // count
    return Heads(count, getattr(config, "num_key_value_heads", None) or count, width)


def decoder_layers(config: PretrainedConfig) -> int:
    """Blocks of what writes: of an encoder-decoder its decoder, where `num_hidden_layers` counts the encoder's."""
    layers: int = getattr(config, "num_hidden_layers", 0)
    own = [getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers")]
    return next((count for count in own if count and config.is_encoder_decoder), layers)


def widths(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer; GPT-2's keep their weight the other way round."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
