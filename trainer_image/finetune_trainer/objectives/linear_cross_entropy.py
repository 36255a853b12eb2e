"""Cross-entropy through an output layer, without ever holding the logits of all positions.

The output layer of a small model is its largest: 49,152 columns for SmolLM2. A chunk of rows is projected, its loss and
its gradient are taken, and its logits are forgotten, so memory does not grow with the number of learnt tokens.
"""

from typing import Any

import torch

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB of fp32."""


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Sum over rows of cross-entropy(hidden @ weight.T + bias, targets), in nats.

    `hidden` [rows, width], `weight` [classes, width], `bias` [classes] or None, `targets` [rows] int64.
    Products are taken in `dtype`, the softmax in fp32.
    """
    result: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient, softmax minus one-hot, is known with the loss: taken going forward, scaled going backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
            total = hidden.new_zeros((), dtype=torch.float32)
            matrix = weight.to(dtype)
            rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
            for start in range(0, hidden.shape[0], rows):
                chunk = slice(start, start + rows)
                total += _chunk(hidden[chunk].to(dtype), matrix, bias, targets[chunk], gradients, chunk)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gradients: _Gradients = ctx.gradients
        return (
            *(
                None if part is None else part.mul_(outer)
                for part in (gradients.hidden, gradients.weight, gradients.bias)
            ),
            None,
            None,
        )


class _Gradients:
    """Room for those gradients that are asked for."""

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, needed: tuple[bool, ...]
    ) -> None:
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight) if needed[1] else None
        self.bias = torch.zeros_like(bias) if bias is not None and needed[2] else None


def _chunk(
    hidden: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    into: _Gradients,
    chunk: slice,
) -> torch.Tensor:
    logits = (hidden @ matrix.T).float()
    if bias is not None:
        logits += bias
    normaliser = logits.logsumexp(-1, keepdim=True)
    column = targets.unsqueeze(-1)
    loss = (normaliser - logits.gather(-1, column)).sum()
    if into.hidden is None and into.weight is None:
        return loss
    errors = logits.sub_(normaliser).exp_()
    errors.scatter_add_(-1, column, torch.full_like(column, -1, dtype=errors.dtype))
    if into.bias is not None:
        into.bias += errors.sum(0)
    errors = errors.to(matrix.dtype)
    if into.hidden is not None:
        into.hidden[chunk] = errors @ matrix
    if into.weight is not None:
        into.weight += errors.T @ hidden
    return loss
