"""A linear layer with its LoRA update as one step of autograd, for training: fewer passes over the activations.

PEFT adds base(x) and scaling · B(A(x)) with three more tensors of the output's size, forward and backward. Here the
update goes into the base's product in place. In a gated MLP, down(silu(gate(x)) · up(x)), the product and the gate's
activation are computed again instead of kept: half of what such an MLP holds until its backward pass.

The functions are the same; sums are rounded in another order, so what is measured and what is published goes through
PEFT's own code.
"""

from types import MethodType
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

ADAPTER = "default"
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""Children of a gated MLP, in the words of transformers."""
SILU = nn.SiLU, type(ACT2FN["silu"])


def hasten(model: nn.Module) -> int:
    """Let every plain LoRA layer of `model` train through one step; returns how many there are.

    Left to PEFT: layers with dropout, with another variant (DoRA) or with another base than a plain nn.Linear.
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_linear_forward, layer)
    for module in model.modules():
        if _is_gated(module):
            module.forward = MethodType(_gated_forward, module)
    return len(layers)


def _is_plain(layer: nn.Module) -> bool:
    return (
        type(layer) is Linear
        and type(layer.base_layer) is nn.Linear
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and not layer.lora_variant
        and not layer.lora_bias[ADAPTER]
    )


def _is_gated(module: nn.Module) -> bool:
    """Whether the module is down(silu(gate(x)) · up(x)): its parts are named so, and it says the same of one input."""
    gate, up, down, activation = (getattr(module, name, None) for name in GATED)
    if not (isinstance(gate, nn.Module) and isinstance(up, nn.Module) and isinstance(down, nn.Module)):
        return False
    if not _is_plain(down) or not isinstance(activation, SILU):
        return False
    weight = down.base_layer.weight
    if weight.is_meta:
        return True
    probe = torch.linspace(-1, 1, gate.in_features, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        return torch.equal(module(probe), down(functional.silu(gate(probe)) * up(probe)))


def _trains(layer: Linear) -> bool:
    return layer.training and torch.is_grad_enabled() and not layer.merged and not layer.disable_adapters


def _linear_forward(layer: Linear, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    if not _trains(layer):
        return Linear.forward(layer, x, *arguments, **options)
    result: torch.Tensor = _LoraLinear.apply(x, *_operands(layer, x))
    return result


def _gated_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    down = module.down_proj
    if not isinstance(down, Linear) or not _trains(down):
        plain: torch.Tensor = type(module).forward(module, x)
        return plain
    gate, up = module.gate_proj(x), module.up_proj(x)
    result: torch.Tensor = _GatedLoraLinear.apply(gate, up, *_operands(down, gate))
    return result


def _operands(layer: Linear, x: torch.Tensor) -> tuple[Any, ...]:
    """What the steps below take after their inputs."""
    base, a, b = layer.base_layer, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return base.weight, base.bias, a, b, layer.scaling[ADAPTER], dtype


class _Product(NamedTuple):
    """rows Wᵀ + bias + rows Aᵀ (scaling · B)ᵀ, and what its gradients need besides `rows`."""

    result: torch.Tensor
    hidden: torch.Tensor
    """rows Aᵀ [rows, rank]."""
    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    """Scaled."""

    @classmethod
    def of(
        cls,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> "_Product":
        """All in the dtype of `rows`."""
        dtype = rows.dtype
        weight, a, b = weight.to(dtype), a.to(dtype), b.to(dtype) * scaling
        hidden = rows @ a.T
        result = rows @ weight.T if bias is None else torch.addmm(bias.to(dtype), rows, weight.T)
        return cls(result.addmm_(hidden, b.T), hidden, weight, a, b)


def _factor_gradients(
    ctx: Any, rows: torch.Tensor, errors: torch.Tensor, back: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of A and B; `back` is errors (scaling · B) [rows, rank]."""
    a_type, b_type = ctx.factor_types
    return (back.T @ rows).to(a_type), (errors.T @ hidden).to(b_type).mul_(ctx.scaling)


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
            rows = x.reshape(-1, x.shape[-1]).to(dtype)
            result, *needed = _Product.of(rows, weight, bias, a, b, scaling)
        ctx.save_for_backward(rows, *needed)
        ctx.scaling, ctx.shape, ctx.type, ctx.factor_types = scaling, x.shape, x.dtype, (a.dtype, b.dtype)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        rows, hidden, weight, a, b = ctx.saved_tensors
        errors = outer.reshape(-1, outer.shape[-1]).to(rows.dtype)
        back = errors @ b
        factors = _factor_gradients(ctx, rows, errors, back, hidden)
        inner = None
        if ctx.needs_input_grad[0]:
            inner = (errors @ weight).addmm_(back, a).view(ctx.shape).to(ctx.type)
        return inner, None, None, *factors, None, None


class _GatedLoraLinear(torch.autograd.Function):
    """As _LoraLinear of x = silu(gate) · up, with gradients for gate and up; x is not kept.

    `gate` and `up` [..., in].
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        with torch.autocast(gate.device.type, enabled=False):
            rows = (functional.silu(gate) * up).reshape(-1, gate.shape[-1]).to(dtype)
            result, *needed = _Product.of(rows, weight, bias, a, b, scaling)
        ctx.save_for_backward(gate, up, *needed)
        ctx.scaling, ctx.factor_types = scaling, (a.dtype, b.dtype)
        return result.view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gate, up, hidden, weight, a, b = ctx.saved_tensors
        errors = outer.reshape(-1, outer.shape[-1]).to(hidden.dtype)
        back = errors @ b
        open_gate = functional.silu(gate)
        rows = (open_gate * up).reshape(-1, gate.shape[-1]).to(hidden.dtype)
        factors = _factor_gradients(ctx, rows, errors, back, hidden)
        del rows
        inner = (errors @ weight).addmm_(back, a).view(gate.shape).to(gate.dtype)
        for_up = open_gate.mul_(inner)
        for_gate = torch.ops.aten.silu_backward(inner.mul_(up), gate)
        return for_gate, for_up, None, None, *factors, None, None
