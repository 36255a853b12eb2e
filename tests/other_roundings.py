"""A pytest plugin: every test as on a processor whose sums, exponentials and norms round otherwise.

    pytest -p other_roundings -m numeric tests/smoke/test_own_layers.py

No machine has the kernels of all others. So each result of an operation that processors round differently is moved by
a unit in its last place, up or down by chance (as Verrou and CADNA do it for compiled programs). Equal operations on
equal numbers are moved equally: what has to be the same to the last bit still is.
"""

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ROUNDED = (
    "mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "sum", "mean", "exp", "log", "tanh", "erf", "gelu", "silu",
    "sigmoid", "rsqrt", "pow", "_softmax", "_log_softmax", "logsumexp", "native_layer_norm", "linalg_vector_norm",
    "_scaled_dot_product_flash_attention_for_cpu", "native_layer_norm_backward", "_softmax_backward_data",
    "_log_softmax_backward_data", "gelu_backward", "silu_backward", "tanh_backward", "lstm", "lstm_backward",
    "_scaled_dot_product_flash_attention_for_cpu_backward", "var_mean", "cos", "sin",
)  # fmt: skip
"""Operations whose results depend on the order of a sum, on fused products or on a library's polynomial. Sums of two,
products of two, quotients and roots are rounded correctly everywhere."""


class OtherRoundings(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        return tree_map_only(torch.Tensor, moved, result) if name in ROUNDED else result


def moved(numbers: torch.Tensor) -> torch.Tensor:
    """Each number times 1 ± eps; which of the two is drawn from the numbers and their shape."""
    if numbers.dtype not in (torch.float32, torch.float64) or numbers.device.type != "cpu":
        return numbers
    content = hash((tuple(numbers.shape), float(numbers.nan_to_num().double().sum())))
    chance = torch.Generator().manual_seed(content % (1 << 62))
    ups = torch.randint(0, 2, numbers.shape, generator=chance).to(numbers.dtype)
    return numbers * (1 + (2 * ups - 1) * torch.finfo(numbers.dtype).eps)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, bool, bool]:
    """Fixtures too: what was trained is compared with what is computed from it."""
    with OtherRoundings():
        return (yield)
