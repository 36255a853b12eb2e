"""Full fine-tuning: every parameter moves, and the result is a whole model."""

from pathlib import Path

from transformers import PreTrainedModel

from finetune_api.spec.methods import Full as Options
from finetune_trainer.methods.method import TuningMethod
from finetune_trainer.models.loading import Head, LoadedModel


class Full(TuningMethod):
    artifact = "model"
    loader = "transformers"

    def apply(
        self, base: LoadedModel, options: Options, head: Head, steps: int, tokenizer: Path | None = None
    ) -> PreTrainedModel:
        base.model.requires_grad_(True)
        return base.model

    def save(self, model: PreTrainedModel, folder: Path, base_name: str, base_revision: str) -> None:
        model.save_pretrained(folder)

    def reopen(self, base: LoadedModel, folder: Path) -> PreTrainedModel:
        return type(base.model).from_pretrained(folder, local_files_only=True, use_safetensors=True)

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        return model
