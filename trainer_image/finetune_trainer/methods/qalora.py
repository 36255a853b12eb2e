"""QA-LoRA: a frozen 4-bit layer plus B·A of its input, pooled over the groups that share a scale (Xu et al. 2023,
arXiv:2309.14717, algorithm 1).

A weight is scale · (code - zero), with one scale and one zero point (a float) for each group of neighbours along the
input. B·A adds the same number to all weights of a group, so that a merge is a shift of the zero points, and exact:
zero - alpha / rank · (B·A) / scale. Codes, scales and zero points follow from the base weights alone and are made anew
from them; only A and B are saved.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import Reason
from finetune_api.spec.methods import QaLora as Options
from finetune_trainer.methods.method import chosen_layers
from finetune_trainer.methods.native_method import OwnMethod, replace
from finetune_trainer.models.architectures import widths
from finetune_trainer.models.loading import LoadedModel
from finetune_trainer.runtime.failures import Failure

FIELD = "spec.method.qaLora"
LARGEST = 15
"""The largest code of four bits."""


class QaLora(OwnMethod):
    kind = "qaLora"
    options = Options

    def install(self, base: LoadedModel, options: Options) -> None:
        layers = chosen_layers(base, f"{FIELD}.targetModules", options.target_modules)
        for name, layer in layers.items():
            _check_width(name, widths(layer)[0], options.group_size)
        for name, layer in layers.items():
            replace(base.model, name, QuantizedLinear(layer, options))

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """Plain layers whose weights are what the shifted zero points say."""
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLinear):
                replace(model, name, module.plain())
        return model


def _check_width(name: str, width: int, group: int) -> None:
    if width % group or width % 2:  # two codes share a byte
        fitting = [size for size in range(8, 1025) if width % size == 0 and width % 2 == 0]
        offer = f"of this layer: {', '.join(map(str, fitting))}" if fitting else "none: leave it out of targetModules"
        raise Failure(
            Reason.BAD_SPEC,
            f"{FIELD}.groupSize: {group} does not divide the input width {width} of {name}; sizes {offer}",
        )


class QuantizedLinear(nn.Module):
    """x [..., inputs] → x·Wᵀ + bias + alpha / rank · B·A·pool(x), where pool sums the inputs of each group."""

    codes: torch.Tensor
    """uint8 [outputs, inputs / 2]: two codes a byte, the even column in the lower half."""
    scales: torch.Tensor
    """float32 [outputs, groups]; `zeros` likewise."""
    zeros: torch.Tensor

    def __init__(self, layer: nn.Module, options: Options) -> None:
        super().__init__()
        inputs, outputs = widths(layer)
        self.group, self.scaling = options.group_size, options.alpha / options.rank
        self.is_transposed = isinstance(layer, Conv1D)
        weight = layer.weight.detach()
        codes, scales, zeros = quantized(weight.T.contiguous() if self.is_transposed else weight, self.group)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", zeros, persistent=False)
        self.bias = layer.bias
        self.lora_A = nn.Parameter(torch.empty(options.rank, inputs // self.group, device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, options.rank, device=weight.device))
        # As a LoRA over all inputs would start whose A is constant in each group: its learning rates hold here too.
        nn.init.uniform_(self.lora_A, -(inputs**-0.5), inputs**-0.5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _FrozenProduct.apply(states, self.codes, self.scales, self.zeros)
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)
        pooled = states.unflatten(-1, (-1, self.group)).sum(-1).to(self.lora_A.dtype)
        update = functional.linear(functional.linear(pooled, self.lora_A), self.lora_B)
        return output + self.scaling * update.to(output.dtype)

    @property
    def weight(self) -> None:
        """T5 casts its states to the dtype of this, where there is a tensor."""

    def plain(self) -> nn.Module:
        """The layer as the model's own code would have it, with the update in its weight."""
        with torch.no_grad():
            zeros = self.zeros - self.scaling * (self.lora_B @ self.lora_A) / self.scales
            weight = dequantized(self.codes, self.scales, zeros)
        outputs, inputs = weight.shape
        layer = (
            Conv1D(outputs, inputs) if self.is_transposed else nn.Linear(inputs, outputs, bias=self.bias is not None)
        )
        layer.weight = nn.Parameter(weight.T.contiguous() if self.is_transposed else weight, requires_grad=False)
        layer.bias = self.bias
        return layer


def quantized(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes, scales, zeros) of a weight [outputs, inputs], each group spread over its own range. Deterministic."""
    grouped = weight.float().unflatten(1, (-1, group))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scales = (high - low) / LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))  # all weights of the group are the same
    zeros = -low / scales
    codes = (grouped / scales[..., None] + zeros[..., None]).round().clamp(0, LARGEST).to(torch.uint8).flatten(1)
    return codes[:, ::2] | (codes[:, 1::2] << 4), scales, zeros


def dequantized(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The weight that they stand for, float32 [outputs, inputs]."""
    single = torch.stack((codes & LARGEST, codes >> 4), -1).flatten(1).unflatten(1, (scales.shape[1], -1))
    return (single - zeros[..., None]).mul_(scales[..., None]).flatten(1)


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ for a weight that is never kept: backward makes it anew from the codes instead of storing it."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, *quantities: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*quantities)
        ctx.dtype = states.dtype
        kind = states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        return functional.linear(states.to(dtype), dequantized(*quantities).to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = dequantized(*ctx.saved_tensors).to(gradient.dtype)
        return (gradient @ weight).to(ctx.dtype), None, None, None
