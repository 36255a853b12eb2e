"""Opens what our own methods published: the one function that users of such an adapter need.

from transformers import AutoModelForCausalLM
from finetune_trainer.adapters import load_adapter

model = load_adapter(AutoModelForCausalLM.from_pretrained("…"), "folder")
"""

from pathlib import Path

from transformers import PreTrainedModel

from finetune_api.reasons import Reason
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.native_method import read_page
from finetune_trainer.models.loading import LoadedModel
from finetune_trainer.runtime.failures import Failure


def load_adapter(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """`base`, changed in place into the adapted model, in eval mode.

    Raises Failure for a folder of another format, and for a base model that the adapter was not made for.
    """
    page = read_page(Path(folder))
    if page["method"] not in METHODS:
        raise Failure(Reason.UNSUPPORTED, f"{folder}: this version knows no method {page['method']!r}")
    model: PreTrainedModel = METHODS[page["method"]].reopen(
        LoadedModel(base, tuple(page["modulesToSave"])), Path(folder)
    )
    return model
