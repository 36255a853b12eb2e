"""LoRA: a frozen layer's output plus alpha / rank · B·A of its input (Hu et al. 2021, arXiv:2106.09685), by PEFT.

B starts at zero, so an untrained adapter changes nothing, unless it starts from stored ones. PiSSA starts elsewhere and
takes its start out of the frozen weight; what was learnt on top is saved as an ordinary adapter. LoRA+ is a matter of
learning rates alone.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from finetune_api.reasons import Reason
from finetune_api.spec.methods import Lora as Options
from finetune_trainer.methods.fused_lora import ADAPTER, hasten
from finetune_trainer.methods.lora_from_adapter import begin, started_config, stored_start, without_adapter
from finetune_trainer.methods.method import ALL_LINEAR, linear_layers, target_layers
from finetune_trainer.methods.peft_method import PeftMethod, is_transposed, whole
from finetune_trainer.models.architectures import decoder_layers
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.runtime.failures import Failure

FIELD = "spec.method.lora"
Start = dict[str, torch.Tensor]
"""A and B of every layer before the first step, by the names of their parameters."""


class Lora(PeftMethod):
    def config(self, base: LoadedModel, options: Options, head: Head, steps: int) -> peft.LoraConfig:
        if (stored := stored_start(options)) is not None:
            return started_config(stored, base, options.dropout, head, steps)
        for name, pattern in (("rankPattern", options.rank_pattern), ("alphaPattern", options.alpha_pattern)):
            target_layers(base, f"{FIELD}.{name}", list(pattern))
        return peft.LoraConfig(
            r=options.rank,
            lora_alpha=whole(options.alpha),
            lora_dropout=options.dropout,
            target_modules=_targets(base, options),
            layers_to_transform=list(options.layers) if options.layers is not None else None,
            use_rslora=options.rs_lora,
            use_dora=options.dora,
            init_lora_weights="pissa" if options.init == "pissa" and not _is_counted(base) else True,
            rank_pattern=dict(options.rank_pattern),
            alpha_pattern={name: whole(alpha) for name, alpha in options.alpha_pattern.items()},
            modules_to_save=[*base.fresh, *_saved(base, options)] or None,
            task_type=head.peft_task,
            fan_in_fan_out=is_transposed(base),
        )

    def apply(
        self, base: LoadedModel, options: Options, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        model = super().apply(base, options, head, steps)
        if (stored := stored_start(options)) is not None:
            begin(model, stored)
            model.has_begun = True
        if options.init == "pissa":
            model.start = {name: parameter.detach().clone() for name, parameter in _factors(model)}
        hasten(model)
        return model

    def save(self, model: peft.PeftModel, folder: Path, base_name: str, base_revision: str) -> None:
        super().save(model, folder, base_name, base_revision)
        if hasattr(model, "start"):
            _save_difference(model, folder, model.start)

    def untouched(self, model: peft.PeftModel) -> nn.Module:
        return without_adapter(model.get_base_model()) if getattr(model, "has_begun", False) else model

    def parameter_rates(self, model: nn.Module, options: Options, rate: float) -> dict[str, float]:
        if options.plus_ratio is None:
            return {}
        return {name: rate * options.plus_ratio for name, _ in _factors(model) if ".lora_B." in name}

    def memory(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return dict(getattr(model, "start", {}))

    def remember(self, model: nn.Module, memory: dict[str, torch.Tensor]) -> None:
        """Singular vectors may come out otherwise on another machine: frozen weights follow those that were used."""
        if memory and any(not torch.equal(memory[name], own) for name, own in model.start.items()):
            _move_start(model, memory)
        model.start = memory or getattr(model, "start", {})


def _is_counted(base: LoadedModel) -> bool:
    """Whether the model is there to be counted only: the meta device knows no singular vectors."""
    return next(base.model.parameters()).device.type == "meta"


def _targets(base: LoadedModel, options: Options) -> str | list[str]:
    targets = target_layers(base, f"{FIELD}.targetModules", options.target_modules)
    if options.layers is None:
        return targets
    config = base.model.config.get_text_config()
    blocks = max(getattr(config, "num_hidden_layers", 0), decoder_layers(config))  # a number means it in either half
    if max(options.layers) >= blocks:
        raise Failure(Reason.BAD_SPEC, f"{FIELD}.layers: {max(options.layers)}: the model has blocks 0 to {blocks - 1}")
    # PEFT takes numbers of blocks only together with names.
    return sorted({name.rpartition(".")[2] for name in linear_layers(base)}) if targets == ALL_LINEAR else targets


def _saved(base: LoadedModel, options: Options) -> list[str]:
    names = [name for name, module in base.model.named_modules() if name and any(True for _ in module.parameters())]
    for wanted in options.modules_to_save or ():
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            offered = ", ".join(sorted({name.rpartition(".")[2] for name in names} - {"0"})[:40])
            raise Failure(Reason.BAD_SPEC, f"{FIELD}.modulesToSave: {wanted!r} is no module; modules are: {offered}")
    return list(options.modules_to_save or ())


def _factors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A and B of every layer."""
    return (
        (name, parameter)
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name or ".lora_embedding_" in name
    )


def _save_difference(model: peft.PeftModel, folder: Path, start: Start) -> None:
    """Write B·A - B₀·A₀ as one adapter of twice the rank: what it adds to the base as it came is what was learnt."""
    tensors = get_peft_model_state_dict(model)
    for name, before in start.items():
        key, is_a = name.replace(f".{ADAPTER}.", "."), ".lora_A." in name
        now, before = tensors[key], before.to(tensors[key].device)
        tensors[key] = torch.cat([now, before], 0) if is_a else torch.cat([now, -before], 1)
    config = peft.LoraConfig.from_pretrained(folder)
    growth = math.sqrt(2) if config.use_rslora else 2
    config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, config.lora_alpha * growth, True
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: alpha * growth for name, alpha in config.alpha_pattern.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)


@torch.no_grad()
def _move_start(model: nn.Module, start: Start) -> None:
    """Make the frozen weights those that belong to another start."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (f"{name}.lora_{side}.{ADAPTER}.weight" for side in "AB")
            change = model.start[b] @ model.start[a] - start[b].to(model.start[b]) @ start[a].to(model.start[a])
            change = change.T if getattr(layer, "fan_in_fan_out", False) else change
            layer.get_base_layer().weight += layer.scaling[ADAPTER] * change
