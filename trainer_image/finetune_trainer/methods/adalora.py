"""AdaLoRA: the update as P·Λ·Q, and a budget of ranks that moves to the layers where it matters (Zhang et al. 2023,
arXiv:2303.10512), by PEFT.

PEFT's layers and its allocator do the work. What it leaves to the training loop stands here: an orthonormal start of P
and Q and the penalty that keeps them so, the call after each step, a schedule in shares of the real number of steps,
and a memory for resuming.
"""

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from finetune_api.spec.methods import AdaLora as Options
from finetune_trainer.methods.method import target_layers
from finetune_trainer.methods.peft_method import PeftMethod, is_transposed, whole
from finetune_trainer.models.loading import Head, LoadedModel

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The allocator's moving averages, each a tensor per parameter."""
PATTERN = "rank_pattern"


class AdaLora(PeftMethod):
    def config(self, base: LoadedModel, options: Options, head: Head, steps: int) -> peft.AdaLoraConfig:
        warmup, settled = int(steps * options.warmup), int(steps * options.settled)
        return peft.AdaLoraConfig(
            init_r=options.initial_rank,
            target_r=options.target_rank,
            lora_alpha=whole(options.alpha),
            lora_dropout=options.dropout,
            target_modules=target_layers(base, "spec.method.adaLora.targetModules", options.target_modules),
            tinit=min(warmup, max(0, steps - settled - 1)),
            tfinal=settled,
            deltaT=options.every_steps,
            total_step=steps,
            beta1=options.sensitivity_decay,
            beta2=options.uncertainty_decay,
            orth_reg_weight=options.orthogonality or 1e-12,  # PEFT refuses 0, and 1e-12 is as good
            modules_to_save=list(base.fresh) or None,
            task_type=head.peft_task,
            fan_in_fan_out=is_transposed(base),
        )

    def apply(
        self, base: LoadedModel, options: Options, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        model = super().apply(base, options, head, steps)
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:  # a counter that PEFT keeps as a parameter
                parameter.requires_grad_(False)
            elif _is_factor(name):
                _start_orthonormal(parameter)
        return model

    def save(self, model: Any, folder: Path, base_name: str, base_revision: str) -> None:
        with warnings.catch_warnings():
            # A layer that lost all its ranks is what the method is for, and no sharding that went wrong.
            warnings.filterwarnings("ignore", message=".*LoRA tensor.*invalid shape")
            super().save(model, folder, base_name, base_revision)

    def parameter_rates(self, model: nn.Module, options: Options, rate: float) -> dict[str, float]:
        names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        return {name: rate * options.lambda_ratio for name in names if ".lora_E." in name}

    def penalty(self, model: nn.Module) -> torch.Tensor:
        """Weight times the mean over all P and Q of |PᵀP - 1| (Frobenius)."""
        terms = [_distance(name, factor) for name, factor in model.named_parameters() if _is_factor(name)]
        weight: float = _config(model).orth_reg_weight
        return weight * torch.stack(terms).mean()

    def after_step(self, model: Any, step: int) -> None:
        model.base_model.update_and_allocate(step)

    def can_be_kept(self, model: Any, step: int) -> bool:
        """Only once ranks stand still: before that, weights outside the budget are still in use."""
        config = _config(model)
        return step >= config.total_step - config.tfinal

    def memory(self, model: Any) -> dict[str, torch.Tensor]:
        allocator = model.base_model.rankallocator
        averages = {f"{kind}/{name}": value for kind in AVERAGES for name, value in getattr(allocator, kind).items()}
        pattern = _config(model).rank_pattern or {}
        return averages | {f"{PATTERN}/{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def remember(self, model: Any, memory: dict[str, torch.Tensor]) -> None:
        allocator, device = model.base_model.rankallocator, next(model.parameters()).device
        for kind in AVERAGES:
            setattr(allocator, kind, {name: value.to(device) for name, value in _part(memory, kind).items()})
        _config(model).rank_pattern = {name: kept.tolist() for name, kept in _part(memory, PATTERN).items()} or None


def _part(memory: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    return {key.partition("/")[2]: value for key, value in memory.items() if key.partition("/")[0] == kind}


def _config(model: Any) -> peft.AdaLoraConfig:
    return model.peft_config[model.active_adapter]


def _start_orthonormal(factor: torch.Tensor) -> None:
    """As the penalty wants them. PEFT's start of N(0, 0.02²) is short in narrow models, where Λ then hardly learns."""
    if not factor.is_meta:
        nn.init.orthogonal_(factor)


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _distance(name: str, factor: torch.Tensor) -> torch.Tensor:
    """A is Q [rank, in], B is P [out, rank]: their `rank` rows or columns should be orthonormal."""
    products = factor @ factor.T if ".lora_A." in name else factor.T @ factor
    return torch.linalg.matrix_norm(products - torch.eye(len(products), device=products.device))
