"""Every method: how it makes the right parameters of a base model learn, and how it turns them into files and back.

A method knows no objective: it is given a model, the modules whose parameters are new, and its own options.
"""

from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.methods import full, lora
from finetune_trainer.modelling import Head, LoadedModel


class TuningMethod(Protocol):
    """What a module of this package provides."""

    ARTIFACT: Literal["adapter", "model"]
    """What `save` writes."""

    def apply(self, base: LoadedModel, options: Any, head: Head) -> nn.Module:
        """The model with exactly those parameters requiring gradients that move; raises Failure for unfit options."""

    def save(self, model: Any, folder: Path, base_name: str, base_revision: str) -> None:
        """Write what was learnt, in the layout that peft or transformers load."""

    def reopen(self, base: LoadedModel, folder: Path) -> Any:
        """The model that `save` wrote, over a freshly loaded base."""

    def merged(self, model: Any) -> PreTrainedModel:
        """The same function as one plain model."""


METHODS: dict[str, TuningMethod] = {"lora": lora, "full": full}
