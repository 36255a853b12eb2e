"""LoRA that starts from a stored adapter: the model gets its shape, then its weights.

It decides whether the adapter fits the model, layer by layer, on a model without weights too: `prepare` asks before a
GPU is held. That several adapters became this one is `initial_adapter`'s business.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict
from torch import nn

from finetune_api import uris
from finetune_api.reasons import Reason
from finetune_api.spec.methods import START_FROM
from finetune_api.spec.methods import Lora as Options
from finetune_trainer.methods.peft_method import is_transposed
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.pretrained.initial_adapter import origins
from finetune_trainer.pretrained.stored_adapter import PREFIX, StoredAdapter
from finetune_trainer.runtime.failures import Failure


def stored_start(options: Options) -> StoredAdapter | None:
    """The adapter to start from; None for a start from nothing. Raises Failure while it is not a folder here."""
    if options.start_from is None:
        return None
    uri = options.start_from.adapters[0].uri
    return StoredAdapter(Path(uris.parse(uri).path), f"{START_FROM}.adapters[0]", uri)


def started_config(stored: StoredAdapter, base: LoadedModel, dropout: float, head: Head, steps: int) -> peft.LoraConfig:
    """PEFT's config for the shape of `stored`; raises Failure where the model has not what it adapts."""
    names = [name for name, _ in base.model.named_modules()]
    for layer in stored.layers:
        if layer not in names:
            raise _misfit(stored, layer, "which spec.model has not")
    saved = [name for name in stored.saved_modules if name not in base.fresh]
    for module in saved:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            why = f"{START_FROM}.adapters[0]: stores the module {module}, which the model has not under this objective"
            raise Failure(Reason.BAD_SPEC, why)
    missing = [name for name in base.fresh if name not in stored.saved_modules]
    if missing and not steps:
        why = f"the adapter brings no {missing[0]}, and a new, random one would be published: train for some steps"
        raise Failure(Reason.BAD_SPEC, f"spec.training.maxSteps: 0: {why}")
    said = stored.config
    return peft.LoraConfig(
        r=said.get("r", 8),
        lora_alpha=said.get("lora_alpha", 8),
        lora_dropout=dropout,
        target_modules=_targets(stored, names, [*base.fresh, *saved]),
        use_rslora=bool(said.get("use_rslora")),
        use_dora=stored.is_dora,
        rank_pattern=dict(said.get("rank_pattern") or {}),
        alpha_pattern=dict(said.get("alpha_pattern") or {}),
        modules_to_save=[*base.fresh, *saved] or None,
        task_type=head.peft_task,
        fan_in_fan_out=is_transposed(base),
    )


def _targets(stored: StoredAdapter, names: list[str], saved: list[str]) -> list[str]:
    """Names of the adapted layers: their last parts, as servers know them, where these mean exactly those layers."""
    ends = {layer.rpartition(".")[2] for layer in stored.layers}
    meant = {name for name in names if name.rpartition(".")[2] in ends and not _is_inside(name, saved)}
    return sorted(ends if meant == set(stored.layers) else stored.layers)


def _is_inside(name: str, modules: Iterable[str]) -> bool:
    return any(f".{module}." in f".{name}." for module in modules)


@torch.no_grad()
def begin(model: peft.PeftModel, stored: StoredAdapter) -> None:
    """Put the stored weights into the model, of which only the shapes are looked at where it is on the meta device."""
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, shape in stored.file.shapes.items():
        layer = name.removeprefix(PREFIX)
        if name not in own:
            raise _misfit(stored, layer, "which the model would not learn")
        if tuple(own[name].shape) != shape:
            raise _misfit(stored, layer, f"as {_size(shape)}, and the model takes {_size(own[name].shape)}")
        if own[name].device.type != "meta":
            own[name].copy_(torch.from_numpy(stored.file.read(name)))
    for name in own.keys() - stored.file.shapes.keys():
        if ".lora_" in name:
            raise _misfit(stored, name.removeprefix(PREFIX), "nothing for")


def _misfit(stored: StoredAdapter, name: str, why: str) -> Failure:
    """The adapters that gave the layer are named, not their composition."""
    layer = name.partition(".lora_")[0]
    places = ", ".join(origins(stored, layer))
    return Failure(Reason.BAD_SPEC, f"{places}: made for another model: it has {name}, {why}")


def _size(shape: Iterable[int]) -> str:
    return " × ".join(str(number) for number in shape)


def without_adapter(module: nn.Module) -> nn.Module:
    """A twin that shares the base model's parameters and has nothing of the adapter."""
    if isinstance(module, LoraLayer):
        return module.get_base_layer()
    if isinstance(module, ModulesToSaveWrapper):
        original: Any = module.original_module
        return original  # type: ignore[no-any-return]
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)  # a faster one that is bound to the original, adapter and all
    twin._modules = {
        name: child if child is None else without_adapter(child) for name, child in module._modules.items()
    }
    return twin
