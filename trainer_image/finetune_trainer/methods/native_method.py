"""Methods that no library ships: our own layers in place of the model's, one documented format for all of them.

A folder holds `adapter_model.safetensors` (every trained tensor, under its name in the adapted model) and
`adapter_config.json`:

    {"format": "finetune-operator", "formatVersion": 1, "method": "adapter", "options": {…as in spec.method…},
     "modulesToSave": ["score"], "baseModel": "…", "revision": "…"}

`finetune_trainer.adapters.load_adapter(base, folder)` opens it. It decides the format; it knows no method.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from finetune_api.reasons import Reason
from finetune_api.spec.methods import MethodOptions
from finetune_trainer.methods.method import TuningMethod
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.runtime.failures import Failure

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT, VERSION = "finetune-operator", 1


class OwnMethod(TuningMethod):
    """A method that changes the model in place. `install` is what each of them says."""

    loader = "finetune_trainer"
    kind: ClassVar[str]
    """Wire name of the method."""
    options: ClassVar[type[MethodOptions]]

    def install(self, base: LoadedModel, options: Any) -> None:
        """Put the new parameters into the model, where they learn; everything else is frozen already."""
        raise NotImplementedError

    def trained(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What is published: by default every parameter that moves."""
        return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}

    def apply(
        self, base: LoadedModel, options: Any, head: Head, steps: int, tokenizer: Path | None = None
    ) -> PreTrainedModel:
        base.model.requires_grad_(False)
        self.install(base, options)
        for name in base.fresh:
            base.model.get_submodule(name).requires_grad_(True)
        base.model.own_adapter = {"options": options.to_wire(), "modulesToSave": list(base.fresh)}
        return base.model

    def save(self, model: Any, folder: Path, base_name: str, base_revision: str) -> None:
        page = {"format": FORMAT, "formatVersion": VERSION, "method": self.kind, **model.own_adapter}
        page |= {"baseModel": base_name, "revision": base_revision}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.trained(model).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")

    def reopen(self, base: LoadedModel, folder: Path) -> PreTrainedModel:
        page = read_page(folder)
        if page["method"] != self.kind:
            raise Failure(Reason.ARTIFACT_INVALID, f"{folder} was made by the method {page['method']}, not {self.kind}")
        model = self.apply(base, self.options.model_validate(page["options"]), _NO_HEAD, steps=1)
        self.restore(model, load_file(folder / WEIGHTS))
        return model.requires_grad_(False).eval()

    def restore(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        """Put what `learnt` gave back into an adapted model; raises Failure if it belongs to another one."""
        own = self.trained(model)
        strange = sorted(set(own) ^ set(tensors)) or [n for n in own if own[n].shape != tensors[n].shape]
        if strange:
            raise Failure(Reason.ARTIFACT_INVALID, f"the adapter does not fit this base model: {strange[0]}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)


_NO_HEAD = Head("", peft_task="", architectures={})
"""An own method asks nothing of the head: what is new is said by LoadedModel.fresh."""


def read_page(folder: Path) -> dict[str, Any]:
    """The description of an adapter; raises Failure for a folder of another format."""
    page: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
    if page.get("format") != FORMAT or page.get("formatVersion") != VERSION:
        raise Failure(
            Reason.ARTIFACT_INVALID, f"{folder} holds no adapter in the format {FORMAT} {VERSION}: is it one of PEFT's?"
        )
    return page


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where the module `name` is."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
