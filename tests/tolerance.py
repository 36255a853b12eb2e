"""How far two computations of the same numbers may be apart: what rounding explains on any processor, and no more.

Processors add in another order and fuse other products, so equal formulas differ in their last digits. Each rounding
multiplies a number by 1 + d, where |d| is at most u, the unit roundoff of its type. After n of them in a row the
relative error is at most about n·u (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1), and
above λ·√n·u with a probability of 2·exp(-λ²/2) only (Higham and Mary 2019, A New Approach to Probabilistic Rounding
Error Analysis, SIAM J. Sci. Comput. 41(5), A2815-A2835). The layers behind magnify it, which no formula bounds tightly.

So two ways to compute one thing are compared in float64 (`doubled`, `InDouble`), where an error may be magnified 1,024
times and is still 1e-10 of the number, while a fault is as large as ever. In float32 is compared only what a file, a
kernel or a report holds in float32. `make test-numeric` runs these tests with other kernels and other roundings.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

LAMBDA = 8
"""An honest sum of n terms exceeds its bound once in 4·10¹³ times."""
MAGNIFIED = {torch.float64: 2.0**10, torch.float32: 2.0**2}
"""How much larger than the roundings an error may become on its way through a model."""
BLOCKS, PRODUCTS, TERMS = 6, 8, 128
PASS = BLOCKS * PRODUCTS * TERMS
"""Roundings in a row in a pass through the deepest tiny model: four blocks that read and two that write, with the
products of attention and feed-forward one after another, each a sum of at most 128 terms. Backward as many again."""
WEIGHT = TERMS
"""Roundings in a row in one number of a file: an update is a sum over a rank, a norm one over a column."""
NARROW, WIDE = torch.float32, torch.float64


def assert_close(
    found: Any, expected: Any, roundings: int, computed_in: torch.dtype | None = None, terms: Any = None
) -> None:
    """Tensors, arrays or numbers are the same but for so many roundings in a row.

    They count in the narrower type of the two; `computed_in` says which, where Python's numbers do not. `terms` are
    what was added up, where most of it cancels: roundings are as large as those.
    """
    one, other = _tensor(found), _tensor(expected)
    narrower = max(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    allowed = bound(other if terms is None else terms, roundings, computed_in or narrower)
    assert math.isfinite(allowed), "infinities and NaN are no numbers to compare with"
    close = torch.testing.assert_close  # noqa: TID251 - the one place that derives what it allows
    close(one.double(), other.double(), rtol=0, atol=allowed)


def bound(expected: Any, roundings: int, computed_in: torch.dtype) -> float:
    """The largest difference of two computations of these: both may be off, by a share of the largest number."""
    unit = torch.finfo(computed_in).eps / 2
    share = 2 * LAMBDA * math.sqrt(roundings) * unit * MAGNIFIED[computed_in]
    return share * float(_tensor(expected).abs().max())


def doubled(model: Any) -> Any:
    """The model itself with all its numbers in float64; use it inside `InDouble`.

    Layers in 4 bits become plain ones that hold the same numbers: bitsandbytes knows no float64.
    """
    from bitsandbytes.functional import dequantize_4bit  # seconds, which most tests need not wait for
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
            plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), layer.bias
            model.set_submodule(name, plain)
    return model.double()


class InDouble(TorchFunctionMode):
    """Who asks torch for float32 gets float64: norms, gates and losses leave their model's type for it."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = torch.Tensor.double if function is torch.Tensor.float else function
        named = {key: _widened(one) for key, one in (kwargs or {}).items()}
        return function(*map(_widened, args), **named)


def _widened(argument: Any) -> Any:
    return WIDE if argument is NARROW else argument


def _tensor(numbers: Any) -> torch.Tensor:
    if isinstance(numbers, torch.Tensor):
        return numbers.detach()
    return torch.from_numpy(np.atleast_1d(np.asarray(numbers)))
