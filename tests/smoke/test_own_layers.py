"""The layers that no library ships: adapters, UniPELT, QA-LoRA.

Theory: each is a formula of its paper. So it is held against that formula, computed plainly; it has as many parameters
as the formula says; and no row of a batch, no cache and no recomputation changes what it says.
"""

import contextlib
import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, BertConfig, LlamaConfig, PreTrainedModel, T5Config

import tiny
from finetune_api.reasons import Reason
from finetune_api.spec.methods import Adapter, Method, QaLora, UniPelt
from finetune_trainer.adapters import load_adapter
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.native_method import WEIGHTS
from finetune_trainer.methods.qalora import QuantizedLinear, dequantized, quantized
from finetune_trainer.methods.unipelt import gated_prefix_attention
from finetune_trainer.models import loading
from finetune_trainer.models.architectures import ARCHITECTURES
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.objectives import OBJECTIVES
from finetune_trainer.runtime.failures import Failure
from tolerance import PASS, WEIGHT, InDouble, assert_close, bound, doubled
from training import MODELS, Pair, StopAfter, prepared

OPTIONS: dict[str, Any] = {
    "adapter": Adapter(placement="houlsby", reduction_factor=4),
    "uniPelt": UniPelt(rank=4, prefix_tokens=5, prefix_projection_size=16, bottleneck_size=8),
    "qaLora": QaLora(rank=4, group_size=16),
}
METHOD_NAMES = list(OPTIONS)
WRITERS = ["llama", "gpt2"]
IDS = torch.arange(20, 32)
OF_A_CODE = 6
"""Roundings between a weight and what its code stands for: the range, its sixteenth, the zero point and back."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family on disk."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


Load = Callable[[str], LoadedModel]


@pytest.fixture
def load(folders: dict[str, Path]) -> Load:
    """Loads a family's model: decoders with their output layer, the encoder with a new classifier."""

    def loaded(name: str) -> LoadedModel:
        torch.manual_seed(0)
        return loading.load(folders[name], head_of(name), pad_token_id=0)

    return loaded


def head_of(name: str) -> Head:
    objective = OBJECTIVES["classification" if name == "bert" else "sft"]
    return objective.suited(T5Config() if name == "t5" else LlamaConfig()).head(("a", "b", "c"))


def adapted(base: LoadedModel, kind: str, options: Any = None) -> PreTrainedModel:
    """In eval mode, with parameters of its own that are not those of the start."""
    model = METHODS[kind].apply(base, options or OPTIONS[kind], head_of("llama"), steps=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def logits(model: nn.Module, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """In the precision of the model's numbers, all the way."""
    wide = next(model.parameters()).dtype is torch.float64
    with torch.no_grad(), InDouble() if wide else contextlib.nullcontext():
        return model(**read_by(model, ids if ids.dim() == 2 else ids.unsqueeze(0)), **inputs).logits


def read_by(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same for both halves of an encoder-decoder."""
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})


def states(model: Any) -> torch.Tensor:
    """What the head reads: heads that are new learn whatever the method."""
    with torch.no_grad():
        return model.base_model(**read_by(model, IDS.unsqueeze(0)))[0]


# --- how many parameters ---------------------------------------------------------------------------------------------

BERT_BASE = BertConfig()
BERT_LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
LLAMA_7B = LlamaConfig()
LLAMA_8B = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
)


def counted(config: Any, kind: str, options: Any) -> tuple[int, int]:
    """(trainable parameters, numbers that are published), on the meta device."""
    with torch.device("meta"):
        auto = transformers.AutoModel if config.model_type == "bert" else transformers.AutoModelForCausalLM
        base = LoadedModel(auto.from_config(config), fresh=())
        model = METHODS[kind].apply(base, options, head_of("llama"), steps=1)
        published = METHODS[kind].trained(model)
    moving = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return moving, sum(tensor.numel() for tensor in published.values())


@pytest.mark.parametrize(
    ("config", "placement", "factor", "figure"),
    [
        (BERT_BASE, "pfeiffer", 16, 894_528),
        (BERT_BASE, "houlsby", 16, 1_789_056),
        (BERT_LARGE, "houlsby", 16, 6_343_680),
        (BERT_LARGE, "pfeiffer", 128, 417_984),
    ],
)
def test_adapters_have_2md_plus_m_plus_d_parameters(config: Any, placement: str, factor: int, figure: int) -> None:
    """Each adapter 2·m·d + d + m (Houlsby et al. 2019, arXiv:1902.00751, section 2.1), two a block or one (Pfeiffer et
    al. 2020, arXiv:2005.00247); 895 thousand for BERT base at m = 48."""
    d, m, a_block = config.hidden_size, config.hidden_size // factor, {"houlsby": 2, "pfeiffer": 1}[placement]
    assert figure == config.num_hidden_layers * a_block * (2 * m * d + d + m)
    assert counted(config, "adapter", Adapter(placement=placement, reduction_factor=factor)) == (figure, figure)


@pytest.mark.parametrize(("config", "published"), [(BERT_BASE, 1_401_444), (LLAMA_8B, 17_172_064)])
def test_unipelt_has_the_parameters_of_its_parts_and_gates(config: Any, published: int) -> None:
    """A block: an adapter of 2·m·d + m + d, LoRA of r·(2·d + queries + values), a prefix of 2·L·(width of the keys),
    and three gates of d + 1 (Mao et al. 2021, arXiv:2110.07577, section 3.2). While it trains an MLP stands for the
    prefixes (Li and Liang 2021, arXiv:2101.00190, section 4.3)."""
    d, blocks, options = config.hidden_size, config.num_hidden_layers, UniPelt()
    keys = getattr(config, "num_key_value_heads", config.num_attention_heads) * d // config.num_attention_heads
    m, r, tokens, middle = 48, 8, 10, 512
    parts = 2 * m * d + m + d + r * (2 * d + d + keys) + 3 * (d + 1)
    assert published == blocks * (parts + 2 * tokens * keys)
    mlp = tokens * d + d * middle + middle + blocks * (middle + 1) * 2 * keys
    assert counted(config, "uniPelt", options) == (blocks * parts + mlp, published)


def test_unipelt_is_the_share_of_bert_base_that_its_paper_names() -> None:
    """1.26 % with all three parts at their defaults (Mao et al. 2021, arXiv:2110.07577, table 4)."""
    with torch.device("meta"):
        frozen = sum(parameter.numel() for parameter in transformers.AutoModel.from_config(BERT_BASE).parameters())
    _, published = counted(BERT_BASE, "uniPelt", UniPelt())
    assert round(100 * published / (frozen + published), 2) == 1.26


def test_qa_lora_has_fewer_parameters_than_lora() -> None:
    """r·(inputs / groupSize + outputs) for each layer: A reads one number a group (Xu et al. 2023, arXiv:2309.14717,
    section 3.3)."""
    d, inner, group, rank = LLAMA_7B.hidden_size, LLAMA_7B.intermediate_size, 32, 64
    shapes = 4 * [(d, d)] + 2 * [(d, inner)] + [(inner, d)]
    figure = LLAMA_7B.num_hidden_layers * sum(rank * (inputs // group + outputs) for inputs, outputs in shapes)
    assert counted(LLAMA_7B, "qaLora", QaLora(rank=rank, group_size=group)) == (figure, figure)


# --- what they compute -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_an_untrained_adapter_changes_nothing(name: str, load: Load) -> None:
    """Its up-projection is zero: not a bit of the logits differs, in either placement."""
    base = load(name)
    before = logits(base.model.eval(), IDS)
    for placement in ("pfeiffer", "houlsby"):
        fresh = load(name)
        model = METHODS["adapter"].apply(fresh, Adapter(placement=placement), head_of(name), steps=1)
        assert torch.equal(logits(model.eval(), IDS), before)


@pytest.mark.parametrize("name", MODELS)
def test_the_adapter_is_added_before_the_residual(name: str, load: Load) -> None:
    """With the sublayer's last module and the adapter by hand: h + W_up·relu(W_down·h + b) + b'."""
    model = doubled(adapted(load(name), "adapter"))
    place = next(module for _, module in model.named_modules() if type(module).__name__ == "Behind")
    inside, states = place.layer, torch.randn(2, 3, model.config.hidden_size, dtype=torch.float64)
    width = getattr(inside, "in_features", model.config.hidden_size)
    inputs, (down, up) = states[..., :width], (place.added.down, place.added.up)
    h = inside(inputs)
    expected = h + functional.relu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    assert_close(place(inputs), expected, PASS)


@pytest.mark.parametrize("name", MODELS)
def test_what_unipelt_changes_at_the_start_is_the_prefix_alone(name: str, load: Load) -> None:
    """`untouched` is the base to the last bit, whatever was learnt, and shares its weights."""
    base = load(name)
    before = states(base.model.eval())
    model = adapted(base, "uniPelt")
    assert not torch.equal(states(model), before)
    twin = METHODS["uniPelt"].untouched(model)
    assert torch.equal(states(twin), before)
    assert {id(parameter) for parameter in twin.parameters()} < {id(parameter) for parameter in model.parameters()}
    assert not torch.equal(states(model), before)


@pytest.mark.parametrize("one_gate_a_row", [False, True], ids=["gate-per-token", "gate-per-row"])
@pytest.mark.parametrize("masked", ["causal", "boolean", "added"])
def test_the_prefix_stands_in_the_same_softmax_scaled_by_its_gate(one_gate_a_row: bool, masked: str) -> None:
    """For every query by hand: softmax(s · [g·q·pᵀ, q·kᵀ]) · [g·p', v], where four heads share two of keys."""
    torch.manual_seed(0)
    rows, heads, shared, tokens, width, length = 2, 4, 2, 5, 8, 3
    in_double = {"dtype": torch.float64}
    query = torch.randn(rows, heads, tokens, width, **in_double)
    key, value = torch.randn(2, rows, shared, tokens, width, **in_double)
    prefix = torch.randn(2, shared, length, width, **in_double)
    gate = torch.rand(rows, 1 if one_gate_a_row else tokens, 1, **in_double)
    readable = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if masked != "causal":
        readable[2:, 1] = False
    added = torch.zeros(tokens, tokens, **in_double).masked_fill(~readable, torch.finfo(torch.float64).min)
    mask = {"causal": None, "boolean": readable[None, None], "added": added[None, None]}[masked]
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, heads // shared
    found, _ = gated_prefix_attention(module, query, key, value, mask, scaling=0.3, gated_prefix=(prefix, gate))
    for row, head, token in torch.cartesian_prod(torch.arange(rows), torch.arange(heads), torch.arange(tokens)):
        q, g, of = query[row, head, token], gate[row, 0 if one_gate_a_row else token], head // 2
        seen = readable[token]
        keys, values = key[row, of][seen], value[row, of][seen]
        weights = torch.softmax(0.3 * torch.cat((g * (prefix[0, of] @ q), keys @ q)), 0)
        expected = weights @ torch.cat((g * prefix[1, of], values))
        assert_close(found[row, token, head], expected, PASS)


def test_quantization_is_off_by_half_a_step_at_most() -> None:
    """Sixteen codes over the range of each group, both ends exact; a group of equal weights is exact too."""
    torch.manual_seed(0)
    weight = torch.randn(6, 64)
    weight[2, 16:32] = 0.25
    codes, scales, zeros = quantized(weight, 16)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, (6, 32), (6, 4))
    found = dequantized(codes, scales, zeros)
    step = ((weight.unflatten(1, (4, 16)).amax(-1) - weight.unflatten(1, (4, 16)).amin(-1)) / 15)[..., None]
    rounding = bound(weight, OF_A_CODE, torch.float32)
    assert ((found - weight).unflatten(1, (4, 16)).abs() <= step / 2 + rounding).all()
    assert torch.equal(found[2, 16:32], weight[2, 16:32])


def test_qa_lora_is_its_paper_s_formula_and_so_are_its_gradients() -> None:
    """x·Wᵀ + bias + alpha / rank · B·A·pool(x) with W kept as floats; for backward nothing of W's size is kept."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    layer = doubled(QuantizedLinear(plain, QaLora(rank=4, alpha=8, group_size=16)))
    nn.init.normal_(layer.lora_B)
    weight = dequantized(*(quantity.double() if quantity.is_floating_point() else quantity
                           for quantity in quantized(plain.weight, 16))).detach()  # fmt: skip
    states = torch.randn(2, 5, 64, dtype=torch.float64, requires_grad=True)
    pooled = states.reshape(2, 5, 4, 16).sum(-1)
    expected = states @ weight.T + plain.bias + 2 * pooled @ layer.lora_A.T @ layer.lora_B.T
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = layer(states)
    assert_close(found, expected, PASS)
    assert not any(tensor.numel() >= weight.numel() for tensor in kept)
    direction = torch.randn_like(found)
    sources = (states, layer.lora_A, layer.lora_B)
    by_hand = torch.autograd.grad(expected, sources, direction)
    for gradient, wanted in zip(torch.autograd.grad(found, sources, direction), by_hand, strict=True):
        assert_close(gradient, wanted, PASS)


@pytest.mark.parametrize("name", MODELS)
def test_qa_lora_merges_into_the_zero_points_exactly(name: str, load: Load, tmp_path: Path) -> None:
    """The merged model is a plain one with the same parameters' names, still on a grid of sixteen weights a group."""
    base = load(name)
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    model = adapted(base, "qaLora")
    expected = logits(doubled(copy.deepcopy(model)), IDS)
    merged = METHODS["qaLora"].merged(model)
    assert merged.state_dict().keys() == before.keys()
    merged.save_pretrained(tmp_path)
    plain = type(merged).from_pretrained(tmp_path)
    changed = [key for key, tensor in plain.state_dict().items() if not torch.equal(tensor, before[key])]
    name_of_one = next(key for key in changed if "layer" in key or ".h." in key)
    weight = plain.state_dict()[name_of_one].clone()
    assert_close(logits(doubled(plain), IDS), expected, WEIGHT, computed_in=torch.float32)
    groups = (weight.T if name == "gpt2" else weight).unflatten(1, (-1, 16))
    assert max(len(group.unique()) for row in groups[:4] for group in row) <= 16


# --- what must not matter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHOD_NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_a_row_alone_says_what_it_says_in_a_padded_batch(name: str, kind: str, load: Load) -> None:
    """Filled up on the right, beside a longer row, with a mask and, for decoders, without one."""
    model, short = doubled(adapted(load(name), kind)), IDS[:7]
    alone = logits(model, short)[0]
    batch = torch.stack((functional.pad(short, (0, 5), value=0), IDS))
    mask = torch.stack((torch.arange(12) < 7, torch.ones(12, dtype=torch.bool))).long()
    for inputs in [{"attention_mask": mask}, *([{}] if name in WRITERS else [])]:
        together = logits(model, batch, **inputs)[0]
        assert_close(together if name == "bert" else together[:7], alone, PASS)


@pytest.mark.parametrize("kind", METHOD_NAMES)
@pytest.mark.parametrize("name", WRITERS)
def test_records_that_share_a_row_say_what_they_say_alone(name: str, kind: str, load: Load) -> None:
    """Kept apart by positions that start at 0 again, as packing does it."""
    model = doubled(adapted(load(name), kind))
    positions = torch.cat((torch.arange(7), torch.arange(5))).unsqueeze(0)
    together = logits(model, IDS, position_ids=positions, use_cache=False)[0]
    alone = torch.cat((logits(model, IDS[:7])[0], logits(model, IDS[7:])[0]))
    assert_close(together, alone, PASS)


@pytest.mark.parametrize("kind", METHOD_NAMES)
@pytest.mark.parametrize("name", [*WRITERS, "t5"])
def test_generation_with_a_cache_equals_generation_without(name: str, kind: str, load: Load) -> None:
    """The same tokens from the same scores, also for the shorter of two prompts, which is filled up on its left."""
    model = doubled(adapted(load(name), kind))
    prompts = torch.stack((IDS[:6], functional.pad(IDS[6:10], (2, 0), value=0)))
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    with InDouble():
        told = [
            model.generate(
                prompts, attention_mask=mask, max_new_tokens=10, min_new_tokens=10, do_sample=False,
                use_cache=use_cache, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
            )
            for use_cache in (True, False)
        ]  # fmt: skip
    assert torch.equal(told[0].sequences, told[1].sequences)
    for cached, computed in zip(told[0].logits, told[1].logits, strict=True):
        assert_close(cached, computed, PASS)


@pytest.mark.parametrize("kind", METHOD_NAMES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_decoder_does_not_see_the_future(name: str, kind: str, load: Load) -> None:
    """Another last token changes the logits there and nowhere else."""
    model, other = doubled(adapted(load(name), kind)), IDS.clone()
    other[-1] += 7
    one, two = logits(model, IDS)[0], logits(model, other)[0]
    assert_close(one[:-1], two[:-1], PASS)
    assert (one[-1] - two[-1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", METHOD_NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing_changes_no_gradient(name: str, kind: str, load: Load) -> None:
    """Another batch, with other padding, may pass through the model before the gradient is computed."""
    mask = torch.stack((torch.arange(12) < 7, torch.ones(12, dtype=torch.bool))).long()
    found = []
    for checkpointed in (False, True):
        model = adapted(load(name), kind)
        if checkpointed:
            model.activation_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):  # of attention probabilities
                module.dropout = 0.0
        loss = model(**read_by(model, IDS.expand(2, -1)), attention_mask=mask).logits.square().mean()
        model(**read_by(model, IDS.expand(2, -1)))
        loss.backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    for key, gradient in found[0].items():
        assert_close(found[1][key], gradient, 3 * PASS)


def test_a_prefix_is_never_left_out_without_a_word(load: Load) -> None:
    """Attention functions that do not know it would ignore it: the model refuses them."""
    model = adapted(load("llama"), "uniPelt")
    model.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="would leave it out"):
        logits(model, IDS)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHOD_NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_adapter_opens_with_one_function(name: str, kind: str, load: Load, tmp_path: Path) -> None:
    """To the same logits, bit for bit, and its file holds what was learnt and nothing else."""
    model = adapted(load(name), kind)
    METHODS[kind].save(model, tmp_path, "base", "revision")
    moving = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (tmp_path / WEIGHTS).stat().st_size < 4 * moving + 20_000
    again = load_adapter(load(name).model, tmp_path)
    assert torch.equal(logits(again, IDS), logits(model, IDS))


def test_an_adapter_is_refused_by_another_method_and_another_model(load: Load, tmp_path: Path) -> None:
    """With the method that made it, or the tensor that does not fit."""
    METHODS["adapter"].save(adapted(load("llama"), "adapter"), tmp_path, "base", "revision")
    with pytest.raises(Failure, match="made by the method adapter, not uniPelt") as refused:
        METHODS["uniPelt"].reopen(load("llama"), tmp_path)
    assert refused.value.reason == Reason.ARTIFACT_INVALID
    with pytest.raises(Failure, match=r"does not fit this base model: .*\.added\."):
        METHODS["adapter"].reopen(load("gpt2"), tmp_path)


def test_a_checkpoint_of_one_method_is_refused_for_another(tmp_path: Path) -> None:
    """Stopped as an adapter, the run does not go on as UniPELT."""
    run = prepared(tmp_path, Pair("llama", "sft", "adapter"))
    with pytest.raises(Failure):
        run.train(StopAfter(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    spec = run.run.spec.model_copy(update={"method": Method(uni_pelt=UniPelt())})
    other = type(run)(run.run.model_copy(update={"spec": spec}), run.workspace)
    with pytest.raises(Failure) as refused:
        other.train()
    assert refused.value.reason == Reason.CHECKPOINT_MISMATCH


# --- which models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_places_are_right_in_every_architecture_that_is_named(architecture: str) -> None:
    """An untrained adapter changes nothing there, and every part of UniPELT gets a gradient in every block."""
    for kind in ("adapter", "uniPelt"):
        torch.manual_seed(0)
        model = small(architecture).eval()
        inputs = read_by(model, torch.arange(5, 12).unsqueeze(0))
        with torch.no_grad():  # T5's attention takes another way where its biases want a gradient
            before = model(**inputs)[0]
        METHODS[kind].apply(LoadedModel(model, ()), OPTIONS[kind], head_of("llama"), steps=1)
        if kind == "adapter":
            with torch.no_grad():
                assert torch.equal(model(**inputs)[0], before)
            sublayers = 2 * 2 + 2 * 3 if model.config.is_encoder_decoder else 2 * 2
            assert sum(type(module).__name__ == "Behind" for module in model.modules()) == sublayers
        else:
            adapted_parts(model)
            model(**inputs)[0].square().sum().backward()
            idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
            assert idle == []


def adapted_parts(model: nn.Module) -> None:
    """Away from the start, where a zero B keeps the gradient from A."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def small(architecture: str) -> PreTrainedModel:
    """Two blocks of width 32; of an encoder-decoder, in each half."""
    words = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    grouped = {"num_key_value_heads": 2, "head_dim": 8} if ARCHITECTURES[architecture][0].blocks == "layers" else {}
    if architecture == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    elif architecture in ("t5", "mt5"):
        shape = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 4, "d_ff": 64}
    elif architecture == "bart":
        halves = ("encoder", "decoder")
        shape = {f"{half}_{part}": 2 for half in halves for part in ("layers", "attention_heads")} | {"d_model": 32}
    return transformers.AutoModel.from_config(AutoConfig.for_model(architecture, **words, **shape, **grouped))


@pytest.mark.parametrize("kind", ["adapter", "uniPelt"])
def test_a_model_whose_places_are_not_known_is_refused_with_those_that_are(kind: str) -> None:
    """As early as in prepare, where the model has no weights yet."""
    config = AutoConfig.for_model("opt", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32)
    with torch.device("meta"):
        base = LoadedModel(transformers.AutoModelForCausalLM.from_config(config), ())
    with pytest.raises(Failure, match=rf"spec\.method\.{kind}: .*'opt'.*llama.*gpt2.*bert") as refused:
        METHODS[kind].apply(base, OPTIONS[kind], head_of("llama"), steps=1)
    assert refused.value.reason == Reason.UNSUPPORTED


def test_a_group_that_does_not_divide_a_width_is_refused(load: Load) -> None:
    """With the layer, its width, and what would divide it."""
    with pytest.raises(Failure, match=r"spec\.method\.qaLora\.groupSize: 48 .* width 64 of .*q_proj.*8, 16, 32, 64"):
        METHODS["qaLora"].apply(load("llama"), QaLora(group_size=48), head_of("llama"), steps=1)


def test_a_bottleneck_of_nothing_is_refused(load: Load) -> None:
    """A reduction below one unit names the largest that works."""
    with pytest.raises(Failure, match=rf"reductionFactor: .* at most {tiny.HIDDEN} works"):
        METHODS["adapter"].apply(load("llama"), Adapter(reduction_factor=65), head_of("llama"), steps=1)
