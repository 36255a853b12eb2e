"""Methods that PEFT has: its adapter on the model, its files, its way back."""

import warnings
from pathlib import Path
from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.methods.method import TuningMethod
from finetune_trainer.models.loading import Head, LoadedModel


class PeftMethod(TuningMethod):
    """A method whose model is a peft.PeftModel. `config` is what each of them says."""

    def config(self, base: LoadedModel, options: Any, head: Head, steps: int) -> peft.PeftConfig:
        """PEFT's words for the options; raises Failure for those that do not fit the model."""
        raise NotImplementedError

    def apply(
        self, base: LoadedModel, options: Any, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        with warnings.catch_warnings():
            # A GPT-2 classifier mixes Conv1D and Linear: PEFT sets each layer right, and warns.
            warnings.simplefilter("ignore")
            return peft.get_peft_model(base.model, self.config(base, options, head, steps))

    def save(self, model: peft.PeftModel, folder: Path, base_name: str, base_revision: str) -> None:
        config = model.peft_config[model.active_adapter]
        config.base_model_name_or_path, config.revision = base_name, base_revision
        # Left to itself PEFT looks the base model up to see whether its embeddings were resized: here they never are.
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)

    def reopen(self, base: LoadedModel, folder: Path) -> peft.PeftModel:
        return peft.PeftModel.from_pretrained(base.model, folder)

    def merged(self, model: peft.PeftModel) -> PreTrainedModel:
        return model.merge_and_unload()


def is_transposed(base: LoadedModel) -> bool:
    """Whether linear layers keep their weights the other way round, as GPT-2's do."""
    return any(isinstance(module, Conv1D) for module in base.model.modules())


def whole(number: float) -> float:
    """PEFT's config files hold whole numbers where they can."""
    return int(number) if number == int(number) else number
