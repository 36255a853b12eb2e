"""What the architectures call the parts of a transformer block.

It decides on which architectures our own methods know their places, and refuses the others. It knows no method.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import Reason
from finetune_trainer.failures import Failure
from finetune_trainer.modelling import LoadedModel


@dataclass(frozen=True)
class Names:
    """Module names, relative to a block unless they say otherwise."""

    blocks: str
    """The list of blocks, within the model."""
    attention: str
    """What attends. It is called with the states that it reads and, by keyword, with `attention_mask`."""
    queries: str
    """The linear layer whose first outputs are the queries."""
    values: str
    """The linear layer whose last outputs are the values; where queries, keys and values are one layer, the same."""
    attention_end: str
    """The last module of the attention sublayer, before the residual is added."""
    feedforward_end: str
    """The last module of the feed-forward sublayer, before the residual is added."""


LLAMA = Names("layers", "self_attn", "self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
PHI3 = Names(
    "layers", "self_attn", "self_attn.qkv_proj", "self_attn.qkv_proj", "resid_attn_dropout", "resid_mlp_dropout"
)
GPT2 = Names("h", "attn", "attn.c_attn", "attn.c_attn", "attn.resid_dropout", "mlp.dropout")
BERT = Names(
    "layer", "attention.self", "attention.self.query", "attention.self.value", "attention.output.dropout",
    "output.dropout",
)  # fmt: skip

ARCHITECTURES: dict[str, Names] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "granite": LLAMA,
    "olmo": LLAMA,
    "smollm3": LLAMA,
    "phi3": PHI3,
    "gpt2": GPT2,
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": BERT,
}
"""By `model_type` of the config."""


def names(base: LoadedModel, field: str) -> Names:
    """What this model calls its parts; raises Failure, which names `field`, where nobody knows."""
    kind = base.model.config.model_type
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise Failure(
            Reason.UNSUPPORTED,
            f"{field}: its places in {kind!r} models are not known; they are in: {known}; or choose lora",
        )
    return ARCHITECTURES[kind]


def blocks(base: LoadedModel, own: Names) -> Iterator[str]:
    """Full names of the model's blocks, in order."""
    block = re.compile(rf"(.+\.)?{own.blocks}\.\d+")
    return (name for name in [name for name, _ in base.model.named_modules()] if block.fullmatch(name))


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model."""

    queries: int
    keys: int
    """Heads of keys and values: fewer than `queries` where several queries share one."""
    width: int


def heads(config: PretrainedConfig) -> Heads:
    """The same for every block."""
    count = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // count
    return Heads(count, getattr(config, "num_key_value_heads", None) or count, width)


def widths(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer; GPT-2's keep their weight the other way round."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
