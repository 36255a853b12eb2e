"""A forward and a backward pass without data: how many bytes live at each moment, on tensors that have only shapes.

Tensors are torch's fake tensors of the CPU: the same operators, dtypes, views and saved tensors as in a real pass, and
no memory. Every storage is counted from its first use to its release. It knows neither methods nor objectives.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

HEAPED = 32 << 20
"""Bytes from which the C library maps a tensor by itself and gives it back when it is freed (mallopt(3))."""


class Pass(NamedTuple):
    """A forward and a backward pass, in bytes beside the model."""

    kept: int
    """What the forward pass leaves for the gradient."""
    peak: int
    """The most that is there at once."""
    freed: int
    """What the forward pass made and freed, tensors of HEAPED bytes and more left out."""


class Stage:
    """A model whose tensors lost their data. It takes over `model`, which is on the meta device."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, on_gpu: bool) -> None:
        self._model, self._dtype, self._on_gpu = model, dtype, on_gpu
        self._mode = FakeTensorMode()
        with self._mode:
            _replace_tensors(model)

    def train(self, batch: Any, loss: Callable[[Any], torch.Tensor], accumulates: bool = False) -> Pass:
        """`loss(batch)` and its gradient.

        Gradients of the parameters count unless they are there already, which is what `accumulates` means.
        """
        self._model.train()
        with self._mode:
            for parameter in self._model.parameters():
                parameter.grad = torch.empty_like(parameter) if accumulates and parameter.requires_grad else None
        with self._counted(batch) as (live, fakes):
            with torch.autocast("cpu", self._dtype, enabled=self._dtype is not torch.float32):
                outcome = loss(fakes)
            kept, freed = live.now, live.freed
            outcome.backward()
        self._model.zero_grad(set_to_none=True)
        return Pass(kept, live.peak, freed)

    def evaluate(self, batch: Any, loss: Callable[[Any], torch.Tensor]) -> int:
        """The peak of `loss(batch)` without a gradient, in bytes beside the model."""
        self._model.eval()
        autocast = torch.autocast("cpu", self._dtype, enabled=self._dtype is not torch.float32)
        with torch.no_grad(), self._counted(batch) as (live, fakes), autocast:
            loss(fakes)
        return live.peak

    @contextmanager
    def _counted(self, batch: Any) -> Iterator[tuple["_Live", Any]]:
        gradients = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
        live = _Live([*self._model.parameters(), *self._model.buffers(), *gradients])
        fakes = tree_map_only(torch.Tensor, self._mode.from_tensor, batch)
        with self._mode, live, _AsOnGpu(self._on_gpu):
            yield live, fakes


class _Live(TorchDispatchMode):
    """Bytes of the storages that operators made and that are still in use; those of `known` tensors are left out."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.freed = 0
        self._seen: dict[int, Any] = {id(tensor.untyped_storage()): tensor for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # most calls are this question
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes()

        def release(_: Any) -> None:
            self.now -= size
            self.freed += size if size < HEAPED else 0
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, release)
        self.now += size
        self.peak = max(self.peak, self.now)


class _AsOnGpu(TorchFunctionMode):
    """A GPU's attention kernels drop out as they go; those of the CPU have to write all probabilities down for it."""

    def __init__(self, on_gpu: bool) -> None:
        super().__init__()
        self._on_gpu = on_gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._on_gpu and func is functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def imitate_quantized(layer: nn.Module) -> None:
    """Let a linear layer behave as one of fewer bits: its weight in full for a moment, forward and backward."""
    width = layer.weight.numel() // layer.weight.shape[_INPUTS.get(type(layer).__name__, 1)]

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = _QuantizedProduct.apply(inputs, width)
        return outputs if layer.bias is None else outputs + layer.bias.to(outputs.dtype)

    layer.forward = forward


_INPUTS = {"Conv1D": 0}
"""Dimension of a weight that counts inputs, where it is not the second."""


class _QuantizedProduct(torch.autograd.Function):
    """The product with a weight that is unpacked for it; the input is not kept."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, width: int) -> torch.Tensor:
        ctx.widths = inputs.shape[-1], width
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
        ctx.dtype = dtype
        with torch.autocast("cpu", enabled=False):
            weight = torch.empty(inputs.shape[-1], width, dtype=dtype)
            return inputs.to(dtype) @ weight

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        weight = torch.empty(*ctx.widths, dtype=outer.dtype)
        return outer @ weight.T, None


def _replace_tensors(model: nn.Module) -> None:
    """Put a fake tensor of the CPU in place of each tensor, attributes included; tied ones stay tied."""
    fakes: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return fakes.setdefault(id(tensor), _fake(tensor))

    for module in model.modules():
        attributes = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor | dict)}
        for name, value in attributes.items():
            if name in ("_parameters", "_buffers") or not name.startswith("_"):
                setattr(module, name, tree_map_only(torch.Tensor, fake, value))


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
