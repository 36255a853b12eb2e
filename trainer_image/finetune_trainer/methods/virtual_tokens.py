"""Methods that learn virtual tokens in front of the input, by PEFT: prompt and prefix tuning, P-tuning 1 and 2.

Prompt tuning and P-tuning learn embeddings; the other two learn keys and values of every layer. PEFT's encoders do the
work. What it leaves open stands here: widths that its guesses miss, virtual tokens that are the same numbers in
training and in the published file, and a refusal of models that take no prefix. What is published holds the virtual
tokens alone: networks that computed them are dropped.

Of an encoder-decoder the encoder reads the embeddings (as in Lester et al. 2021), and the decoder's attention to itself
finds the keys and values: PEFT has no place for others.
"""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import PretrainedConfig

from finetune_api.reasons import Reason
from finetune_api.spec.methods import MethodOptions
from finetune_api.spec.methods import PrefixTuning as PrefixOptions
from finetune_api.spec.methods import PromptTuning as PromptOptions
from finetune_api.spec.methods import PTuning as PTuningOptions
from finetune_api.spec.methods import PTuningV2 as PTuningV2Options
from finetune_trainer.methods.peft_method import PeftMethod
from finetune_trainer.models.architectures import decoder_layers, heads
from finetune_trainer.models.loading import Head, LoadedModel, is_encoder, tokenizer_of
from finetune_trainer.runtime.failures import Failure

EMBEDDINGS = "promptTuning or pTuning, which learn embeddings, or lora"


class VirtualTokens(PeftMethod):
    """What the four share. `field` is the method's place in a spec."""

    field: str

    def apply(
        self, base: LoadedModel, options: MethodOptions, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        model: Any = super().apply(base, options, head, steps)
        if not _is_counted(model):
            for encoder in model.prompt_encoder.values():
                _compute_once(encoder)
        return model

    @torch.no_grad()
    def save(self, model: peft.PeftModel, folder: Path, base_name: str, base_revision: str) -> None:
        """Without gradients, as the model was measured: with them torch computes an LSTM in another order of sums."""
        super().save(model, folder, base_name, base_revision)

    def untouched(self, model: peft.PeftModel) -> nn.Module:
        """Virtual tokens change the model from the start: the base is the model without them."""
        return model.get_base_model()

    def shape(self, base: LoadedModel, options: Any, head: Head) -> dict[str, Any]:
        """What all configs say. PEFT finds these numbers itself, but only under their most usual names."""
        config: PretrainedConfig = base.model.config.get_text_config()
        if not getattr(config, "num_attention_heads", None):
            raise self._unfit(base, "virtual tokens are read by attention, and this architecture has none", "lora")
        return {
            "num_virtual_tokens": options.tokens,
            "num_transformer_submodules": 1,
            "num_attention_heads": config.num_attention_heads,
            "num_layers": config.num_hidden_layers,
            "modules_to_save": list(base.fresh) or None,
            "task_type": head.peft_task,
        }

    def _unfit(self, base: LoadedModel, told: object, alternative: str) -> Failure:
        line = str(told).strip().split("\n", 1)[0]
        kind = base.model.config.model_type
        return Failure(Reason.UNSUPPORTED, f"{self.field}: {kind!r} models: {line}; choose {alternative}")


class _Embeddings(VirtualTokens):
    """Virtual tokens as rows in front of the embedded input."""

    def shape(self, base: LoadedModel, options: Any, head: Head) -> dict[str, Any]:
        if head.is_new and not is_encoder(base.model.config) and len(base.fresh) != 1:
            told = f"behind virtual tokens the class is found by a head of one layer, and theirs is {base.fresh}"
            raise self._unfit(base, told, "lora")
        width = base.model.get_input_embeddings().weight.shape[1]  # of some models it is not that of their layers
        return super().shape(base, options, head) | {"token_dim": width}


class PromptTuning(_Embeddings):
    """Embeddings of virtual tokens, each learned as it is (Lester et al. 2021, arXiv:2104.08691)."""

    field = "spec.method.promptTuning"

    def config(self, base: LoadedModel, options: PromptOptions, head: Head, steps: int) -> peft.PromptTuningConfig:
        return peft.PromptTuningConfig(
            prompt_tuning_init="SAMPLE_VOCAB",
            prompt_tuning_init_text=options.init_text,
            **self.shape(base, options, head),
        )

    def apply(
        self, base: LoadedModel, options: PromptOptions, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        model = super().apply(base, options, head, steps)
        if options.init_text is not None and tokenizer is not None:
            self._start_from(model, options, tokenizer)
        return model

    @torch.no_grad()
    def _start_from(self, model: Any, options: PromptOptions, tokenizer: Path) -> None:
        """PEFT would do this with the tokenizer's special tokens in between, and publish the tokenizer's path."""
        words = tokenizer_of(tokenizer)
        ids = words(options.init_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise Failure(Reason.BAD_SPEC, f"{self.field}.initText: the model's tokenizer makes no token of it")
        repeated = torch.tensor(ids * -(-options.tokens // len(ids)))[: options.tokens]
        (encoder,) = model.prompt_encoder.values()
        encoder.embedding.weight.copy_(model.word_embeddings(repeated.to(encoder.embedding.weight.device)))


class PTuning(_Embeddings):
    """Embeddings of virtual tokens as an MLP or a bidirectional LSTM computes them (Liu et al. 2021,
    arXiv:2103.10385)."""

    field = "spec.method.pTuning"

    def config(self, base: LoadedModel, options: PTuningOptions, head: Head, steps: int) -> peft.PromptEncoderConfig:
        return peft.PromptEncoderConfig(
            encoder_reparameterization_type=options.encoder.upper(),
            encoder_hidden_size=options.encoder_size,
            **self.shape(base, options, head),
        )

    def apply(
        self, base: LoadedModel, options: PTuningOptions, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        """Starts as words of the vocabulary, to which the network adds (as in Razdaibiedina et al. 2023,
        arXiv:2305.03937): what a random network says alone is so far from any word that the model is lost at first."""
        model: Any = super().apply(base, options, head, steps)
        if not _is_counted(model):
            (encoder,) = model.prompt_encoder.values()
            words = model.word_embeddings(_random_words(base, options.tokens))
            encoder.register_buffer("start", words.detach().clone(), persistent=False)
            nn.init.zeros_(encoder.mlp_head[-1].weight)
            nn.init.zeros_(encoder.mlp_head[-1].bias)
        return model


class _Prefix(VirtualTokens):
    """Virtual tokens as keys and values that every layer finds in its cache."""

    def apply(
        self, base: LoadedModel, options: MethodOptions, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        model = super().apply(base, options, head, steps)
        if _is_counted(model):
            self._try(model, base)
        return model

    def shape(self, base: LoadedModel, options: Any, head: Head) -> dict[str, Any]:
        """PEFT narrows the width itself where heads share keys and values."""
        config = base.model.config.get_text_config()
        shape = super().shape(base, options, head) | {"token_dim": config.hidden_size}
        return shape | (_in_decoder(config) if config.is_encoder_decoder else {})

    def _try(self, model: nn.Module, base: LoadedModel) -> None:
        """One pass over no data: some models take no cache, and of some PEFT does not know the cache's shape."""
        try:
            with torch.no_grad():
                model(**_inputs(base, torch.zeros(1, 2, dtype=torch.long, device="meta")))
        except ValueError as error:
            raise self._unfit(base, error, EMBEDDINGS) from error
        except RuntimeError as error:
            if "Sizes of tensors must match" in str(error):
                told = "their heads share keys and values in a way that PEFT does not know"
                raise self._unfit(base, told, EMBEDDINGS) from error
            # Else it asked for what a model without memory cannot tell: numbers, or kernels.


class PrefixTuning(_Prefix):
    """Keys and values as an MLP computes them (Li and Liang 2021, arXiv:2101.00190)."""

    field = "spec.method.prefixTuning"

    def config(self, base: LoadedModel, options: PrefixOptions, head: Head, steps: int) -> peft.PrefixTuningConfig:
        return peft.PrefixTuningConfig(
            prefix_projection=True, encoder_hidden_size=options.projection_size, **self.shape(base, options, head)
        )


class PTuningV2(_Prefix):
    """Keys and values learned as they are (Liu et al. 2021, arXiv:2110.07602)."""

    field = "spec.method.pTuningV2"

    def config(self, base: LoadedModel, options: PTuningV2Options, head: Head, steps: int) -> peft.PrefixTuningConfig:
        return peft.PrefixTuningConfig(prefix_projection=False, **self.shape(base, options, head))

    def apply(
        self, base: LoadedModel, options: PTuningV2Options, head: Head, steps: int, tokenizer: Path | None = None
    ) -> nn.Module:
        """Starts as the keys and values that the model has for words of its vocabulary (Li and Liang 2021, section 7.5:
        real activations far outdo random numbers); where it has no cache, as small numbers."""
        model: Any = super().apply(base, options, head, steps)
        if not _is_counted(model):
            (encoder,) = model.prompt_encoder.values()
            nn.init.normal_(encoder.embedding.weight, std=SMALL)
            found = _activations(base, options.tokens)
            if found is not None and found.shape == encoder.embedding.weight.shape:
                encoder.embedding.weight.data.copy_(found)
        return model


SMALL = 0.02
"""Standard deviation of a prefix that starts as random numbers."""


def _random_words(base: LoadedModel, count: int) -> torch.Tensor:
    """Token ids, int64 [count], from torch's global generator."""
    embeddings = base.model.get_input_embeddings().weight
    return torch.randint(len(embeddings), (count,)).to(embeddings.device)


@torch.no_grad()
def _activations(base: LoadedModel, count: int) -> torch.Tensor | None:
    """Keys and values of `count` random words in every layer, [count, layers · 2 · width], as PEFT lays them out."""
    words = _random_words(base, count).unsqueeze(0)
    cache = getattr(base.model(**_inputs(base, words), use_cache=True), "past_key_values", None)
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    if not layers:
        return None
    if base.model.config.is_encoder_decoder:
        layers = [layers[place] for place in _places(len(layers))]
    parts = [part for layer in layers for part in (layer.keys, layer.values)]
    return torch.cat([part[0].transpose(0, 1).flatten(1) for part in parts], 1)


def _inputs(base: LoadedModel, words: torch.Tensor) -> dict[str, torch.Tensor]:
    """Words [rows, n] as the model takes them: an encoder-decoder in both places."""
    return {"input_ids": words} | ({"decoder_input_ids": words} if base.model.config.is_encoder_decoder else {})


def _in_decoder(config: PretrainedConfig) -> dict[str, int]:
    """The shape of a prefix in the decoder of an encoder-decoder."""
    own = heads(config)
    return {
        "num_transformer_submodules": 2,  # else PEFT makes a cache in which both attentions are one
        "num_attention_heads": own.keys,
        "token_dim": own.keys * own.width,
        "num_layers": _odd(decoder_layers(config)),
    }


def _odd(layers: int) -> int:
    """What PEFT has to take for the number of a decoder's layers, so that each gets keys and values of its own.

    PEFT writes down those of all layers twice, takes two pairs for each layer and uses the first: layer i gets pair 2i,
    modulo their number. With an even number half of the layers would share what the other half has, and half of what
    is learnt would never be used. With an odd one every pair is used; of an even number one more is there, and idle.
    """
    return layers | 1


def _places(layers: int) -> list[int]:
    """The layer that uses each of PEFT's pairs; for the one that is idle any will do."""
    count = _odd(layers)
    users = {2 * layer % count: layer for layer in range(layers)}
    return [users.get(pair, 0) for pair in range(count)]


def _is_counted(model: Any) -> bool:
    """Whether the model is there to be counted only, in `prepare`."""
    return bool(model.device.type == "meta")


def _compute_once(encoder: nn.Module) -> None:
    """Compute the virtual tokens for one row, in fp32, for all rows of a batch.

    PEFT publishes what the encoder says of one row outside autocast: numbers of a reduced precision, or of another
    order of sums, would not be those that training measured.
    """
    forward = encoder.forward

    def once(tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` int64 [rows, n], every row the same; returns [rows, n, width]."""
        with torch.autocast(tokens.device.type, enabled=False):
            computed: torch.Tensor = forward(tokens[:1])
            if hasattr(encoder, "start"):
                computed = computed + encoder.start
        return computed.expand(len(tokens), -1, -1)

    encoder.forward = once  # type: ignore[method-assign]
