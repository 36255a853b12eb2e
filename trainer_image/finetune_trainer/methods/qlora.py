"""QLoRA: LoRA beside weights in 4 bits (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes and PEFT.

It decides what of a base is quantized as it is loaded, for learning and for measuring alike: every linear layer but the
output layer, the modules that are new, and those that transformers keeps in full precision (T5's `wo`). What is saved
is an ordinary LoRA adapter, and merging it is LoRA's business, on a base in full precision: to quantize the sum again
would lose much of what was learnt.
"""

from pathlib import Path

import peft
import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import Reason
from finetune_api.spec.methods import QLora as Options
from finetune_trainer.methods.method import linear_layers, target_layers
from finetune_trainer.methods.peft_method import PeftMethod, whole
from finetune_trainer.models import loading
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.runtime.failures import Failure

FIELD = "spec.method.qlora"
QUANTIZABLE = (nn.Linear, Conv1D)
"""Types, not their subclasses, that transformers quantizes."""
BLOCK, BLOCK_OF_SCALES = 64, 256
"""Weights that share a scale, and scales that share one where they are quantized too; bitsandbytes' own."""


class QLora(PeftMethod):
    def load(self, folder: Path, head: Head, pad_token_id: int, options: Options, dtype: torch.dtype) -> LoadedModel:
        spared = _outputs(loading.blank(folder, head), head)
        base = loading.load(folder, head, pad_token_id, quantization=_quantization(options, dtype, spared))
        unknown = [name for name in base.fresh if _holds_4_bits(base.model.get_submodule(name))]
        if unknown:  # new, random, and about to learn: a BERT from masked language modelling has no pooler
            quantization = _quantization(options, dtype, spared + unknown)
            base = loading.load(folder, head, pad_token_id, quantization=quantization)
        _keep_layout(base.model)
        # Checkpointing is the Trainer's, which needs no gradient of the embeddings' output for it.
        peft.prepare_model_for_kbit_training(base.model, use_gradient_checkpointing=False)
        return base

    def quantized_bytes(self, base: LoadedModel, options: Options) -> dict[nn.Module, int]:
        kept = base.model._keep_in_fp32_modules or ()
        return {
            layer: four_bit_bytes(layer.weight.numel(), options.double_quantization)
            for name, layer in linear_layers(base).items()
            if _is_quantizable(layer) and not name.endswith(tuple(kept))
        }

    def config(self, base: LoadedModel, options: Options, head: Head, steps: int) -> peft.LoraConfig:
        _check_layers(base)
        return peft.LoraConfig(
            r=options.rank,
            lora_alpha=whole(options.alpha),
            lora_dropout=options.dropout,
            target_modules=target_layers(base, f"{FIELD}.targetModules", options.target_modules),
            modules_to_save=list(base.fresh) or None,
            task_type=head.peft_task,
            fan_in_fan_out=any(_is_transposed(module) for module in base.model.modules()),
        )


def _quantization(options: Options, dtype: torch.dtype, spared: list[str]) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quantization,
        bnb_4bit_use_double_quant=options.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=spared,
    )


def four_bit_bytes(weights: int, scales_twice: bool) -> int:
    """Bytes of `weights` in 4 bits with their scales: in fp32, or in 8 bits with scales of their own."""
    blocks = -(-weights // BLOCK)
    scales = blocks + 4 * -(-blocks // BLOCK_OF_SCALES) if scales_twice else 4 * blocks
    return -(-weights // 2) + scales


def _check_layers(base: LoadedModel) -> None:
    """Refuse models whose weights are elsewhere than in linear layers, such as in tensors of all experts of a layer."""
    held = sum(_elements(layer) for layer in linear_layers(base).values() if _is_quantizable(layer))
    stacked = sum(tensor.numel() for tensor in base.model.parameters() if tensor.dim() > 2)
    if held <= stacked:
        kind = base.model.config.model_type
        raise Failure(
            Reason.UNSUPPORTED,
            f"{FIELD}: {kind!r} models keep most of their weights where bitsandbytes cannot hold them in 4 bits; "
            "choose lora",
        )


def _is_quantizable(layer: nn.Module) -> bool:
    """Or has been quantized."""
    return type(layer) in QUANTIZABLE or _is_4_bit(layer)


def _is_4_bit(module: nn.Module) -> bool:
    """Asked without an import: a run that only plans does not pay for bitsandbytes."""
    return isinstance(module, nn.Linear) and hasattr(module, "quant_state")


def _elements(layer: nn.Module) -> int:
    """Weights of a linear layer, in 4 bits or not."""
    return layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else layer.weight.numel()


def _outputs(model: PreTrainedModel, head: Head) -> list[str]:
    """Names of the output layer and of the new head. Left to itself, transformers would quantize BERT's classifier."""
    outputs = model.get_output_embeddings()
    pretrained = [name for name, module in model.named_modules() if module is outputs]
    return [*pretrained, *loading.fresh_modules(model, head)]


def _holds_4_bits(module: nn.Module) -> bool:
    return any(_is_4_bit(inner) for inner in module.modules())


def _keep_layout(model: nn.Module) -> None:
    """Have the weights stay as they are in eval mode.

    On CPUs with AVX512-BF16, bitsandbytes packs them anew at the first forward pass without gradients; training steps
    and merges after that misread them, without a word, and gradients are off by 90 %.
    """
    for module in model.modules():
        if _is_4_bit(module):
            module.support_avx512bf16_for_cpu = False


def _is_transposed(module: nn.Module) -> bool:
    """Whether the base in full precision keeps this layer's weights the other way round; quantized ones are turned."""
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D
