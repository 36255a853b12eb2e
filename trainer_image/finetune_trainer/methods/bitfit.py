"""BitFit: only the biases move (Ben Zaken et al. 2021, arXiv:2106.10199)."""

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune_api.reasons import Reason
from finetune_api.spec.methods import BitFit as Options
from finetune_trainer.methods.method import linear_layers
from finetune_trainer.methods.native_method import OwnMethod
from finetune_trainer.models.loading import LoadedModel
from finetune_trainer.runtime.failures import Failure

SWITCHES = ("attention_bias", "mlp_bias")
"""Of a Llama-style config: whether its linear layers have biases."""


class BitFit(OwnMethod):
    kind = "bitFit"
    options = Options

    def install(self, base: LoadedModel, options: Options) -> None:
        if options.add_biases:
            _add_zero_biases(base)
        biases = [tensor for name, tensor in base.model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise Failure(
                Reason.UNSUPPORTED,
                f"spec.method.bitFit: {base.model.config.model_type!r} models have no biases to move; set addBiases to "
                "give their linear layers biases of zero, or choose lora",
            )
        for bias in biases:
            bias.requires_grad_(True)

    def check_merge(self, base: LoadedModel, options: Options) -> None:
        config = base.model.config
        if options.add_biases and not all(hasattr(config, switch) for switch in SWITCHES):
            raise Failure(
                Reason.UNSUPPORTED,
                f"output.merge: a plain {config.model_type!r} model has no place for the biases that "
                "method.bitFit.addBiases adds: publish without it",
            )

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """The biases are the model's own already; those that were added have to be asked for by its config."""
        if model.own_adapter["options"]["addBiases"]:
            for switch in SWITCHES:
                setattr(model.config, switch, True)
        return model


def _add_zero_biases(base: LoadedModel) -> None:
    for layer in linear_layers(base).values():
        if layer.bias is None:
            weight = layer.weight
            width = layer.out_features if isinstance(layer, nn.Linear) else layer.nf
            layer.bias = nn.Parameter(torch.zeros(width, dtype=torch.float32, device=weight.device))
