"""Full fine-tuning: every parameter moves, and the result is a whole model."""

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from finetune_api.spec import Full
from finetune_trainer.modelling import Head, LoadedModel

ARTIFACT: Literal["adapter", "model"] = "model"


def apply(base: LoadedModel, options: Full, head: Head) -> PreTrainedModel:
    base.model.requires_grad_(True)
    return base.model


def save(model: PreTrainedModel, folder: Path, base_name: str, base_revision: str) -> None:
    model.save_pretrained(folder)


def reopen(base: LoadedModel, folder: Path) -> PreTrainedModel:
    return type(base.model).from_pretrained(folder, local_files_only=True, use_safetensors=True)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    return model
