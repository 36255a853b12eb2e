"""What every method is: from a base model to a model whose right parameters learn, into files, and back.

A method knows no objective: it is given a model, the modules whose parameters are new, and its own options. What most
methods have no opinion on has a default here.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import Reason
from finetune_trainer.models import loading
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.runtime.failures import Failure

ALL_LINEAR = "all-linear"


class TuningMethod:
    """One method. It has no state: what a run needs is in the model that `apply` returns."""

    artifact: Literal["adapter", "model"] = "adapter"
    """What `save` writes."""
    loader: Literal["peft", "transformers", "finetune_trainer"] = "peft"
    """The library that loads what `save` wrote."""

    def load(self, folder: Path, head: Head, pad_token_id: int, options: Any, dtype: torch.dtype) -> LoadedModel:
        """The base as it is while the method learns and is measured; matrix products are in `dtype`."""
        return loading.load(folder, head, pad_token_id)

    def quantized_bytes(self, base: LoadedModel, options: Any) -> dict[nn.Module, int]:
        """Layers of a base in full precision that `load` would hold in fewer bits, with their bytes then."""
        return {}

    def apply(
        self, base: LoadedModel, options: Any, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        """The model with exactly those parameters requiring gradients that move; raises Failure for unfit options.

        `steps` is the length of the run, `tokenizer` the folder of its tokenizer. The base may be on the meta device,
        to be counted only; there is no tokenizer then.
        """
        raise NotImplementedError

    def save(self, model: Any, folder: Path, base_name: str, base_revision: str) -> None:
        """Write what was learnt, in the layout that `loader` loads."""
        raise NotImplementedError

    def reopen(self, base: LoadedModel, folder: Path) -> Any:
        """The model that `save` wrote, over a freshly loaded base."""
        raise NotImplementedError

    def check_merge(self, base: LoadedModel, options: Any) -> None:
        """Raises Failure where what is learnt with these options has no place in a plain model of this kind."""

    def merged(self, model: Any) -> PreTrainedModel:
        """The same function as one plain model, for methods whose options say `is_mergeable`."""
        raise NotImplementedError

    def untouched(self, model: Any) -> nn.Module:
        """The base model inside `model`, as it was: for methods that change what the model says before they learn."""
        return model  # type: ignore[no-any-return]

    def parameter_rates(self, model: nn.Module, options: Any, rate: float) -> dict[str, float]:
        """Learning rates of the parameters that have one of their own, by name; `rate` is that of all others."""
        return {}

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """What is added to the loss of an optimizer step, each time anew; None: nothing."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after optimizer step `step` (from 1), while the gradients are still there."""

    def can_be_kept(self, model: nn.Module, step: int) -> bool:
        """Whether the weights after `step` are such as could be published."""
        return True

    def memory(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What a resumed run needs besides parameters and optimizer, as tensors by name."""
        return {}

    def remember(self, model: nn.Module, memory: dict[str, torch.Tensor]) -> None:
        """Put back what `memory` returned."""


def target_layers(base: LoadedModel, field: str, targets: list[str]) -> str | list[str]:
    """`targets` as PEFT takes them. Every name has to match a linear layer: PEFT skips one that matches nothing."""
    if ALL_LINEAR in targets:
        return ALL_LINEAR
    layers = linear_layers(base)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            offered = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise Failure(Reason.BAD_SPEC, f"{field}: {target!r} matches nothing; linear layers are: {offered}")
    return list(targets)


def linear_layers(base: LoadedModel) -> dict[str, nn.Module]:
    """The linear layers of the pretrained part, the output layer left out, by name."""
    outputs = base.model.get_output_embeddings()
    return {
        name: module
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not outputs
        and not any(name == fresh or name.startswith(f"{fresh}.") for fresh in base.fresh)
    }


def chosen_layers(base: LoadedModel, field: str, targets: list[str]) -> dict[str, nn.Module]:
    """The linear layers that `targets` name, for methods that put their own layers in place."""
    layers, wanted = linear_layers(base), target_layers(base, field, targets)
    if wanted == ALL_LINEAR:
        return layers
    return {
        name: module
        for name, module in layers.items()
        if any(name == target or name.endswith(f".{target}") for target in wanted)
    }
