"""A linear layer with its LoRA update as one step of autograd, for training: fewer passes over the activations.

PEFT adds base(x) and scaling · B(A(x)) with three more tensors of the output's size, forward and backward. Here the
update goes into the base's product in place. The function is the same; sums are rounded in another order, so what is
measured and what is published goes through PEFT's own code.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn

ADAPTER = "default"


def hasten(model: nn.Module) -> int:
    """Let every plain LoRA layer of `model` train through one step; returns how many there are.

    Left to PEFT: layers with dropout, with another variant (DoRA) or with another base than a plain nn.Linear.
    """
    layers = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _is_plain(layer: Linear) -> bool:
    return (
        type(layer.base_layer) is nn.Linear
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and not layer.lora_variant
        and not layer.lora_bias[ADAPTER]
    )


def _forward(layer: Linear, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    if not (layer.training and torch.is_grad_enabled()) or layer.merged or layer.disable_adapters:
        return Linear.forward(layer, x, *arguments, **options)
    base, a, b = layer.base_layer, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    result: torch.Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[ADAPTER], dtype)
    return result


class _LoraLinear(torch.autograd.Function):
    """x Wᵀ + bias + scaling · x Aᵀ Bᵀ, with gradients for x, A and B; W and bias are frozen.

    `x` [..., in], `weight` [out, in], `a` [rank, in], `b` [out, rank]; products are taken in `dtype`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows, matrix = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)
            down, up = a.to(dtype), b.to(dtype) * scaling
            hidden = rows @ down.T
            result = rows @ matrix.T if bias is None else torch.addmm(bias.to(dtype), rows, matrix.T)
            result.addmm_(hidden, up.T)
        ctx.save_for_backward(rows, hidden, matrix, down, up)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (x.dtype, a.dtype, b.dtype)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        rows, hidden, matrix, down, up = ctx.saved_tensors
        inner_type, a_type, b_type = ctx.dtypes
        errors = outer.reshape(-1, outer.shape[-1]).to(rows.dtype)
        back = errors @ up
        a, b = (back.T @ rows).to(a_type), (errors.T @ hidden).to(b_type).mul_(ctx.scaling)
        inner = None
        if ctx.needs_input_grad[0]:
            inner = (errors @ matrix).addmm_(back, down).view(ctx.shape).to(inner_type)
        return inner, None, None, a, b, None, None
