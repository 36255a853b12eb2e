"""LoRA: a frozen layer's output plus alpha / rank · B·A of its input (Hu et al. 2021, arXiv:2106.09685), by PEFT.

B starts at zero, so an untrained adapter changes nothing. The result is an adapter in PEFT's layout.
"""

import warnings
from pathlib import Path
from typing import Literal

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import Reason
from finetune_api.spec import Lora
from finetune_trainer.failures import Failure
from finetune_trainer.modelling import Head, LoadedModel

ARTIFACT: Literal["adapter", "model"] = "adapter"
ALL_LINEAR = "all-linear"


def apply(base: LoadedModel, options: Lora, head: Head) -> peft.PeftModel:
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=_whole(options.alpha),
        lora_dropout=options.dropout,
        target_modules=_targets(base, options),
        modules_to_save=list(base.fresh) or None,
        task_type=head.peft_task,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.model.modules()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a GPT-2 classifier mixes Conv1D and Linear: peft sets each layer right and warns
        return peft.get_peft_model(base.model, config)


def save(model: peft.PeftModel, folder: Path, base_name: str, base_revision: str) -> None:
    config = model.peft_config[model.active_adapter]
    config.base_model_name_or_path, config.revision = base_name, base_revision
    # Left to itself peft looks the base model up to see whether its embeddings were resized: here they never are.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def reopen(base: LoadedModel, folder: Path) -> peft.PeftModel:
    return peft.PeftModel.from_pretrained(base.model, folder)


def merged(model: peft.PeftModel) -> PreTrainedModel:
    return model.merge_and_unload()


def _targets(base: LoadedModel, options: Lora) -> str | list[str]:
    """Every name has to match a linear layer: peft would skip one that matches nothing without a word."""
    if ALL_LINEAR in options.target_modules:
        return ALL_LINEAR
    layers = _linear_layers(base)
    for target in options.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            offered = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise Failure(
                Reason.BAD_SPEC,
                f"spec.method.lora.targetModules: {target!r} matches nothing; linear layers are: {offered}",
            )
    return list(options.target_modules)


def _linear_layers(base: LoadedModel) -> list[str]:
    outputs = base.model.get_output_embeddings()
    return [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not outputs
        and not name.startswith(base.fresh or ("\0",))
    ]


def _whole(alpha: float) -> float:
    """PEFT's config files hold whole numbers where they can."""
    return int(alpha) if alpha == int(alpha) else alpha
