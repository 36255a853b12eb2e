"""Bottleneck adapters: h + up(activation(down(h))) behind the sublayers of every block, before the residual is added.

Behind attention and feed-forward (Houlsby et al. 2019, arXiv:1902.00751) or behind the feed-forward alone (Pfeiffer et
al. 2020, arXiv:2005.00247); the decoder of an encoder-decoder attends twice, and then has one behind each. One adapter
has 2·m·d + m + d parameters for width d and bottleneck m. The up-projection starts at zero, so that an untrained
adapter changes nothing; layer norms stay frozen.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finetune_api.reasons import Reason
from finetune_api.spec.methods import Adapter as Options
from finetune_trainer.methods.native_method import OwnMethod, replace
from finetune_trainer.models.architectures import Names, blocks
from finetune_trainer.models.loading import LoadedModel
from finetune_trainer.runtime.failures import Failure

FIELD = "spec.method.adapter"
ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


class Adapter(OwnMethod):
    kind = "adapter"
    options = Options

    def install(self, base: LoadedModel, options: Options) -> None:
        found, width = blocks(base, FIELD), base.model.config.hidden_size
        size = width // options.reduction_factor
        if size == 0:
            raise Failure(
                Reason.BAD_SPEC, f"{FIELD}.reductionFactor: nothing is left of width {width}; at most {width} works"
            )
        for block in found:
            for end in _ends(block, options.placement):
                put_behind(
                    base.model, end, Bottleneck(width, size, options.activation, options.dropout, base.model.device)
                )


def _ends(block: Names, placement: str) -> list[str]:
    """What the adapters of a block stand behind."""
    if placement == "pfeiffer":
        return [block.feedforward_end]
    return [end for end in (block.attention_end, block.cross_end, block.feedforward_end) if end is not None]


class Bottleneck(nn.Module):
    """h + up(activation(down(h))) for states h [..., width]; computed in the precision of its own parameters."""

    def __init__(self, width: int, size: int, activation: str, dropout: float, device: torch.device) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size, device=device), nn.Linear(size, width, device=device)
        self.activation, self.dropout = ACTIVATIONS[activation], nn.Dropout(dropout)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + self.change(states).to(states.dtype)

    def change(self, states: torch.Tensor) -> torch.Tensor:
        """What is added to the states."""
        inner = self.activation(self.down(states.to(self.down.weight.dtype)))
        return self.dropout(self.up(inner))


class Behind(nn.Module):
    """A layer, and `added`, which reads what the layer returns."""

    def __init__(self, layer: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.layer, self.added = layer, added

    def forward(self, *inputs: Any) -> torch.Tensor:
        states: torch.Tensor = self.added(self.layer(*inputs))
        return states


def put_behind(model: nn.Module, name: str, added: nn.Module) -> None:
    """Have `added` read what the module `name` returns, in its place."""
    replace(model, name, Behind(model.get_submodule(name), added))
