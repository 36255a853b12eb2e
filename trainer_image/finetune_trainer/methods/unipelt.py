"""UniPELT: LoRA of queries and values, a prefix and a bottleneck adapter in every block, each behind a learned gate
(Mao et al. 2021, arXiv:2110.07577).

A gate is the sigmoid of a linear map of what its part reads: the attention's input for LoRA (one gate for queries and
values) and for the prefix, the feed-forward's output for the adapter. The prefix is a true one: its keys and values,
scaled by the gate, stand before those of the tokens within the same softmax. They need no position and are never in the
cache.

The paper averages a gate over the tokens of a record. So it is here in encoders, over the tokens that are no padding.
A decoder must not: an average over all tokens would show each token the future, change with every token that is
generated, and contradict the cache. There each token has its own gate, which for one token is the same. So a row does
not depend on what it is padded with or batched with, and generation with a cache equals generation without.

While it trains the prefix is the output of an MLP (Li and Liang 2021, arXiv:2101.00190), whose first layer all blocks
share; published is what it returns.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune_api.spec.methods import UniPelt as Options
from finetune_trainer.methods.adapter import Behind, Bottleneck, put_behind
from finetune_trainer.methods.native_method import OwnMethod, replace
from finetune_trainer.models.architectures import Heads, Names, blocks, heads, widths
from finetune_trainer.models.loading import LoadedModel, is_encoder

FIELD = "spec.method.uniPelt"
ATTENTION = "finetune_gated_prefix"
"""Name of our attention function among those of transformers."""


class UniPelt(OwnMethod):
    kind = "uniPelt"
    options = Options

    def install(self, base: LoadedModel, options: Options) -> None:
        found, model = blocks(base, FIELD), base.model
        model.set_attn_implementation(ATTENTION)
        width, device = model.config.hidden_size, model.device
        trunk = Trunk(options.prefix_tokens, width, options.prefix_projection_size, device)
        for block in found:
            tokens = RecordTokens() if block.in_encoder or is_encoder(model.config) else None
            _add_lora(model, block, options, tokens)
            source = MlpPrefix(trunk, heads(model.config, block.in_encoder), device)
            _add_prefix(model.get_submodule(block.attention), source, Gate(width, tokens, device))
            added = GatedBottleneck(width, options.bottleneck_size, "relu", 0.0, device)
            added.gate = Gate(width, tokens, device)
            put_behind(model, block.feedforward_end, added)

    def untouched(self, model: PreTrainedModel) -> nn.Module:
        """A prefix changes the model from the start: the base is the same weights in a model without our layers."""
        return _without_parts(model)

    def trained(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The prefixes as they are used, and all else that moves; not the MLP."""
        prefixes = {
            name: module for name, module in model.named_modules() if isinstance(module, MlpPrefix | FinalPrefix)
        }
        inside = {id(parameter) for module in prefixes.values() for parameter in module.parameters()}
        moved = {name: tensor for name, tensor in super().trained(model).items() if id(tensor) not in inside}
        return moved | {f"{name}.final": module() for name, module in prefixes.items()}

    def restore(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, MlpPrefix):
                replace(model, name, FinalPrefix(module()))
        super().restore(model, tensors)


def _without_parts(module: nn.Module) -> nn.Module:
    """A twin that shares all parameters of `module` but ours."""
    if isinstance(module, Updated | Behind):
        return _without_parts(module.layer)
    twin = copy.copy(module)
    twin._modules = {name: child for name, child in module._modules.items() if not isinstance(child, GatedPrefix)}
    if len(twin._modules) < len(module._modules):
        twin._forward_pre_hooks = OrderedDict()
    for name, child in twin._modules.items():
        twin._modules[name] = child if child is None else _without_parts(child)
    return twin


class RecordTokens:
    """Which tokens of the batch that an encoder's block is reading are no padding: bool [rows, tokens]; None: all."""

    mask: torch.Tensor | None = None

    def read(self, attention_mask: torch.Tensor | None) -> None:
        """Take it from the attention's mask [rows or 1, 1, tokens, tokens]: what no token reads is padding.

        True, or 0 where the mask is added to the scores, means read.
        """
        if attention_mask is None:
            self.mask = None
        else:
            self.mask = (attention_mask if attention_mask.dtype is torch.bool else attention_mask == 0)[:, 0].any(1)

    def mean(self, numbers: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, 1] → [rows, 1, 1]."""
        if self.mask is None:
            return numbers.mean(1, keepdim=True)
        counted = self.mask.unsqueeze(-1).to(numbers.dtype)
        return (numbers * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)


class Gate(nn.Module):
    """States [rows, tokens, width] → numbers in (0, 1): [rows, tokens, 1], or of whole records [rows, 1, 1]."""

    def __init__(self, width: int, tokens: RecordTokens | None, device: torch.device) -> None:
        super().__init__()
        self.linear, self.tokens = nn.Linear(width, 1, device=device), tokens
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        numbers = torch.sigmoid(self.linear(states.to(self.linear.weight.dtype)).float())
        return numbers if self.tokens is None else self.tokens.mean(numbers)


class GatedBottleneck(Bottleneck):
    """h + gate(h) · up(relu(down(h)))."""

    gate: Gate

    def change(self, states: torch.Tensor) -> torch.Tensor:
        return self.gate(states) * super().change(states)


class GatedUpdate(nn.Module):
    """gate(x) · alpha / rank · B·A·x, which belongs at `start` of the outputs of a layer."""

    def __init__(self, inputs: int, outputs: int, start: int, options: Options, gate: Gate) -> None:
        super().__init__()
        device = gate.linear.weight.device
        self.lora_A = nn.Parameter(torch.empty(options.rank, inputs, device=device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, options.rank, device=device))
        self.gate, self.start, self.scaling = gate, start, options.alpha / options.rank
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = functional.linear(states.to(self.lora_A.dtype), self.lora_A)
        return self.scaling * self.gate(states) * functional.linear(inner, self.lora_B)


class Updated(nn.Module):
    """A linear layer and the updates of slices of its outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.updates = layer, nn.ModuleDict()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output = self.layer(states)
        for update in self.updates.values():
            change = update(states).to(output.dtype)
            behind = output.shape[-1] - update.start - change.shape[-1]
            output = output + functional.pad(change, (update.start, behind))
        return output


def _add_lora(model: nn.Module, block: Names, options: Options, tokens: RecordTokens | None) -> None:
    own, gate = heads(model.config, block.in_encoder), Gate(model.config.hidden_size, tokens, model.device)
    parts = {
        "query": (block.queries, own.queries * own.width),
        "value": (block.values, own.keys * own.width),
    }
    for part, (name, width) in parts.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, Updated):
            layer = Updated(layer)
            replace(model, name, layer)
        inputs, outputs = widths(layer.layer)
        start = 0 if part == "query" else outputs - width
        layer.updates[part] = GatedUpdate(inputs, width, start, options, gate)


class Trunk(nn.Module):
    """What the prefixes of all blocks are made from: tanh of a linear map of an embedding for each virtual token."""

    def __init__(self, tokens: int, width: int, size: int, device: torch.device) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(tokens, width, device=device))
        self.linear = nn.Linear(width, size, device=device)

    def forward(self) -> torch.Tensor:
        return torch.tanh(self.linear(self.embedding))


class MlpPrefix(nn.Module):
    """Keys and values of one block's prefix, [2, heads, virtual tokens, width], while they train.

    Always in full precision, so that what is published is what was measured.
    """

    def __init__(self, trunk: Trunk, own: Heads, device: torch.device) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, own
        self.linear = nn.Linear(trunk.linear.out_features, 2 * own.keys * own.width, device=device)

    def forward(self) -> torch.Tensor:
        kind = self.linear.weight.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            both = self.linear(self.trunk())
        return both.unflatten(1, (2, self.heads.keys, self.heads.width)).permute(1, 2, 0, 3)


class FinalPrefix(nn.Module):
    """The same when they are published."""

    def __init__(self, final: torch.Tensor) -> None:
        super().__init__()
        self.final = nn.Parameter(final.detach().clone())

    def forward(self) -> torch.Tensor:
        return self.final


class GatedPrefix(nn.Module):
    """A block's prefix and its gate: states [rows, tokens, width] → (keys and values as above, gate of the states)."""

    def __init__(self, source: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.source, self.gate = source, gate

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.source(), self.gate(states)


def _add_prefix(attention: nn.Module, source: nn.Module, gate: Gate) -> None:
    attention.prefix = GatedPrefix(source, gate)
    attention.register_forward_pre_hook(_hand_over_prefix, with_kwargs=True)


def _hand_over_prefix(attention: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Give the prefix to the attention function, through the attention module, which hands on what it does not know.

    It is here, and not at the block, that the gates learn what is padding: a block's hooks are not called again when
    gradient checkpointing computes the block anew.
    """
    if attention.config._attn_implementation != ATTENTION:
        raise RuntimeError(f"UniPELT's prefix needs the attention {ATTENTION!r}: other functions would leave it out")
    if attention.prefix.gate.tokens is not None:
        attention.prefix.gate.tokens.read(keywords.get("attention_mask", keywords.get("mask")))
    states = inputs[0] if inputs else keywords["hidden_states"]
    return inputs, {**keywords, "gated_prefix": attention.prefix(states)}


def gated_prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    gated_prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(scaling · [g·q·pᵀ, q·kᵀ]) · [g·p', v] for prefix keys p, prefix values p' and the gate g of each query.

    Takes query [rows, heads, queries, width], key and value [rows, key heads, keys, width], a mask, and what
    GatedPrefix returns; gives [rows, queries, heads, width]. One gate a row scales the prefix itself. Gates that differ
    by query cannot: there keys and values of twice the width hold the prefix in one half and the tokens in the other,
    so that the gate can scale that half of the query and of the output instead, in one ordinary attention.
    """
    attend: Callable[..., tuple[torch.Tensor, None]] = sdpa_attention_forward
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if gated_prefix is None:
        return attend(module, query, key, value, attention_mask, scaling=scaling, **options)
    (keys, values), gate = gated_prefix
    keys, values = keys.to(key.dtype).expand(len(key), -1, -1, -1), values.to(value.dtype).expand(len(key), -1, -1, -1)
    gate = gate.to(query.dtype)
    is_causal = options.pop("is_causal", None)
    is_causal = module.is_causal if is_causal is None else is_causal
    mask = _with_prefix(attention_mask, query, key, keys.shape[2], is_causal)
    options |= {"scaling": scaling, "is_causal": False}
    if options.get("position_bias") is not None:  # [1, heads, queries, keys]: a prefix has no position
        options["position_bias"] = functional.pad(options["position_bias"], (keys.shape[2], 0))
    if gate.shape[1] == 1:
        scaled = gate.unsqueeze(1)
        key, value = torch.cat((scaled * keys, key), 2), torch.cat((scaled * values, value), 2)
        return attend(module, query, key, value, mask, **options)
    query = torch.cat((gate.unsqueeze(1) * query, query), -1)
    output, _ = attend(module, query, _in_halves(keys, key), _in_halves(values, value), mask, **options)
    of_prefix, of_tokens = output.chunk(2, -1)
    return gate.unsqueeze(2) * of_prefix + of_tokens, None


def _in_halves(prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[rows, heads, prefix + tokens, 2 · width]: the prefix in the first half of the width, the tokens in the other."""
    width = tokens.shape[-1]
    return torch.cat((functional.pad(prefix, (0, width)), functional.pad(tokens, (width, 0))), 2)


def _with_prefix(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, tokens: int, is_causal: bool
) -> torch.Tensor | None:
    """The mask with `tokens` columns in front that every query reads; None: everything is read by everything."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if not is_causal or queries == 1:
            return None
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=key.device).tril()
    return functional.pad(mask, (tokens, 0), value=mask.dtype is torch.bool)  # 0 where a mask is added to the scores


AttentionInterface.register(ATTENTION, gated_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
