"""Virtual tokens: what they are, what they cost, and that padding, caches and precision leave no trace in them.

Theory: PEFT and transformers each do their part of these methods, and disagree in silence about padding behind
embeddings, about widths, caches and precision. Here each of that is compared with a plain computation.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import DynamicCache

import preparing
import tiny
from finetune_api.reasons import Reason
from finetune_api.spec.job_spec import FineTuneJobSpec, Method
from finetune_trainer.evaluation.held_out import Baseline
from finetune_trainer.methods import METHODS
from finetune_trainer.models import loading
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.objectives import OBJECTIVES
from finetune_trainer.objectives.sft import Sft
from finetune_trainer.planning.memory import PlannedModel
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from tolerance import PASS, InDouble, assert_close, doubled
from training import MODELS, Pair, loss_of, prepared

PROMPTS: dict[str, dict[str, Any]] = {
    "promptTuning": {"tokens": 5},
    "prefixTuning": {"tokens": 5, "projectionSize": 32},
    "pTuning": {"tokens": 5, "encoderSize": 32},
    "pTuningV2": {"tokens": 5},
}
TOKENS = 5
ROWS = ([7, 30, 41], [9, 8, 20, 33, 21, 64, 51, 60], [50, 12, 13, 59, 61])
SFT = Sft.head(())


# --- what they cost -------------------------------------------------------------------------------------------------

LLAMA_3_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip
QWEN3_0_6B = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 40960,
}  # fmt: skip
GPT2_MEDIUM = {
    "model_type": "gpt2", "vocab_size": 50257, "n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024,
}  # fmt: skip
BERT_LARGE = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 512,
}  # fmt: skip
DISTILBERT = {
    "model_type": "distilbert", "vocab_size": 30522, "dim": 768, "hidden_dim": 3072, "n_layers": 6, "n_heads": 12,
    "max_position_embeddings": 512,
}  # fmt: skip
ALBERT_BASE = {
    "model_type": "albert", "vocab_size": 30000, "embedding_size": 128, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512,
}  # fmt: skip
FALCON_7B = {
    "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32,
    "num_attention_heads": 71, "multi_query": True, "parallel_attn": True, "bias": False,
}  # fmt: skip
DEBERTA_BASE = {
    "model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512,
}  # fmt: skip
HEAD_OF_TWO = 2 * 1024 + 2
"""BERT-large's classifier of two classes, with bias."""


def mlp(tokens: int, width: int, hidden: int) -> int:
    """P-tuning's three-layer MLP over an embedding."""
    return tokens * width + (width * hidden + hidden) + (hidden * hidden + hidden) + (hidden * width + width)


def lstm(tokens: int, width: int, hidden: int) -> int:
    """P-tuning's two-layer bidirectional LSTM, and its two-layer MLP, over an embedding."""
    first, second = (2 * 4 * hidden * (inputs + hidden + 2) for inputs in (width, 2 * hidden))
    return tokens * width + first + second + (4 * hidden**2 + 2 * hidden) + (2 * hidden * width + width)


def projection(tokens: int, keys: int, hidden: int, layers: int) -> int:
    """Prefix tuning's embedding and two-layer MLP, to keys and values of all layers."""
    return tokens * keys + (keys * hidden + hidden) + (hidden + 1) * layers * 2 * keys


@pytest.mark.parametrize(
    ("config", "objective", "method", "expected"),
    [
        (LLAMA_3_8B, "sft", {"promptTuning": {"tokens": 20, "initText": "Answer:"}}, 20 * 4096),
        (LLAMA_3_8B, "sft", {"pTuningV2": {"tokens": 128}}, 32 * 2 * 128 * 8 * 128),
        (LLAMA_3_8B, "sft", {"prefixTuning": {"tokens": 10}}, projection(10, 8 * 128, 512, 32)),
        (QWEN3_0_6B, "sft", {"pTuningV2": {"tokens": 20}}, 28 * 2 * 20 * 8 * 128),
        (GPT2_MEDIUM, "sft", {"prefixTuning": {"tokens": 5, "projectionSize": 800}}, projection(5, 1024, 800, 24)),
        (GPT2_MEDIUM, "sft", {"pTuning": {}}, mlp(20, 1024, 128)),
        (GPT2_MEDIUM, "sft", {"pTuning": {"encoder": "lstm"}}, lstm(20, 1024, 128)),
        (BERT_LARGE, "classification", {"pTuningV2": {"tokens": 20}}, 24 * 2 * 20 * 1024 + HEAD_OF_TWO),
        (BERT_LARGE, "classification", {"promptTuning": {}}, 20 * 1024 + HEAD_OF_TWO),
        (DISTILBERT, "classification", {"promptTuning": {}}, 20 * 768 + (768 * 768 + 768) + (2 * 768 + 2)),
        (ALBERT_BASE, "classification", {"promptTuning": {}}, 20 * 128 + (2 * 768 + 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_count_equals_the_closed_formula(
    config: dict[str, Any], objective: str, method: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    """On the meta device, without a tokenizer, for the configurations of published models."""
    assert planned(config, objective, method, tmp_path) == expected


def test_the_published_prefix_of_the_paper_has_250_thousand_numbers(tmp_path: Path) -> None:
    """Li and Liang: 0.1 % of GPT-2 medium, once the MLP is dropped; that is P-tuning v2 with as many tokens."""
    assert planned(GPT2_MEDIUM, "sft", {"pTuningV2": {"tokens": 5}}, tmp_path) == 24 * 2 * 5 * 1024 == 245_760


@pytest.mark.parametrize("method", ["prefixTuning", "pTuningV2"])
@pytest.mark.parametrize(
    ("config", "objective"),
    [(FALCON_7B, "sft"), (DEBERTA_BASE, "classification"), (DISTILBERT, "classification")],
    ids=lambda value: value if isinstance(value, str) else value["model_type"],
)
def test_a_model_that_takes_no_prefix_is_refused_before_training(
    config: dict[str, Any], objective: str, method: str, tmp_path: Path
) -> None:
    """Falcon shares one key among all heads, which PEFT does not know; these encoders have no cache at all."""
    with pytest.raises(Failure) as refused:
        planned(config, objective, {method: {}}, tmp_path)
    assert refused.value.reason is Reason.UNSUPPORTED
    assert refused.value.message.startswith(f"spec.method.{method}: {config['model_type']!r} models: ")
    assert "choose promptTuning" in refused.value.message


def planned(config: dict[str, Any], objective: str, method: dict[str, Any], folder: Path) -> int:
    """Parameters that would move."""
    (folder / "config.json").write_text(json.dumps(config))
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/m"},
            "dataset": {"train": [{"uri": "pvc://data/d"}]},
            "output": {"uri": "pvc://models/out"},
            "objective": {objective: {}},
            "method": method,
        }
    )
    labels = ["no", "yes"] if objective == "classification" else []
    return PlannedModel(folder, spec, labels).trainable


# --- what they are --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MODELS[request.param](tmp_path / "model")


def applied(folder: Path, method: str, head: Head = SFT, **options: Any) -> Any:
    """The model with virtual tokens that say something, in eval mode."""
    torch.manual_seed(0)
    base = loading.load(folder, head, pad_token_id=0)
    chosen = Method.model_validate({method: PROMPTS[method] | options}).options
    model = METHODS[method].apply(base, chosen, head, steps=1, tokenizer=folder)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("method", ["promptTuning", "pTuning"])
def test_embeddings_in_front_are_embeddings_in_front(decoder: Path, method: str) -> None:
    """The same logits as the base model gives for the encoder's output followed by the embedded input."""
    model = applied(decoder, method)
    ids = torch.tensor([ROWS[1]])
    with torch.no_grad():
        virtual = model.prompt_encoder["default"](torch.arange(TOKENS)[None])
        embedded = model.base_model.get_input_embeddings()(ids)
        expected = model.base_model(inputs_embeds=torch.cat([virtual, embedded], 1)).logits
        assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("method", ["prefixTuning", "pTuningV2"])
def test_a_prefix_is_keys_and_values_that_every_token_sees(decoder: Path, method: str) -> None:
    """The same logits, without a cache in use and without a mask, as token by token over a cache that began with it."""
    model = doubled(applied(decoder, method))
    ids = torch.tensor([ROWS[1]])
    with torch.no_grad(), InDouble():
        cache = cache_of(model)
        steps = [model.base_model(input_ids=ids[:, [i]], past_key_values=cache).logits for i in range(ids.shape[1])]
        plain = model.base_model(input_ids=ids).logits
        got = model(input_ids=ids, use_cache=False).logits
    assert_close(got, torch.cat(steps, 1), PASS)
    assert (got - plain).abs().max() > 0.01


def cache_of(model: Any) -> DynamicCache:
    """The encoder's output [1, tokens, layers · 2 · heads · size], put in place by hand: keys before values."""
    numbers = model.prompt_encoder["default"](torch.arange(TOKENS)[None])[0]
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    blocks = numbers.view(TOKENS, config.num_hidden_layers, 2, heads, -1)
    pairs = [(blocks[:, n, 0].transpose(0, 1)[None], blocks[:, n, 1].transpose(0, 1)[None]) for n in range(2)]
    return DynamicCache(pairs)


@pytest.mark.parametrize("method", PROMPTS)
def test_generation_with_a_cache_equals_generation_without(decoder: Path, method: str) -> None:
    """At each step the same logits as a whole pass over all that was said, and others than the base model's."""
    model = doubled(applied(decoder, method))
    said = torch.tensor([ROWS[1]])
    asked = {"input_ids": said, "attention_mask": torch.ones_like(said), "max_new_tokens": 6, "do_sample": False}
    kept = {"pad_token_id": 0, "eos_token_id": -1, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), InDouble():
        generated = model.generate(**asked, **kept, use_cache=True)
        for logits in generated.logits:
            whole = model(input_ids=said, use_cache=False).logits[:, -1]
            assert_close(logits, whole, PASS)
            assert (whole - METHODS[method].untouched(model)(input_ids=said).logits[:, -1]).abs().max() > 0.01
            said = torch.cat([said, whole.argmax(-1, keepdim=True)], 1)
    assert torch.equal(generated.sequences, said)


def test_a_prompt_starts_from_words_of_the_vocabulary(decoder: Path) -> None:
    """Each row is some row of the embeddings, drawn anew with another seed."""
    starts = []
    for seed in (1, 2):
        base = loading.load(decoder, SFT, pad_token_id=0)
        torch.manual_seed(seed)
        starts.append(started(base, decoder, {"tokens": 7}))
        words = base.model.get_input_embeddings().weight
        assert all((words == row).all(1).any() for row in starts[-1])
    assert not torch.equal(*starts)


def test_a_prompt_starts_from_a_text_repeated_or_cut(decoder: Path) -> None:
    """Without the tokenizer's special tokens, and the same for every seed."""
    base = loading.load(decoder, SFT, pad_token_id=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder)
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    words = base.model.get_input_embeddings().weight.detach().clone()
    for tokens, expected in ((7, [*ids, *ids, ids[0]]), (2, ids[:2])):
        fresh = loading.load(decoder, SFT, pad_token_id=0)
        assert torch.equal(started(fresh, decoder, {"tokens": tokens, "initText": "abc"}), words[expected])


def started(base: LoadedModel, folder: Path, options: dict[str, Any]) -> torch.Tensor:
    chosen = Method.model_validate({"promptTuning": options}).options
    model: Any = METHODS["promptTuning"].apply(base, chosen, SFT, steps=1, tokenizer=folder)
    weight: torch.Tensor = model.prompt_encoder["default"].embedding.weight.detach()
    return weight


# --- no trace of padding --------------------------------------------------------------------------------------------


TASKS = [(model, objective) for model in ("llama", "gpt2") for objective in OBJECTIVES] + [("bert", "classification")]


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize(("model", "objective"), TASKS)
def test_a_batch_of_one_equals_its_row_in_a_padded_batch(
    model: str, objective: str, method: str, tmp_path: Path
) -> None:
    """As the trainer feeds them: the loss of a batch of unequal rows is the sum of the losses of its rows, and each
    row alone is what plain PEFT says of it."""
    tuned = model_of(MODELS[model](tmp_path / "model"), objective, method)
    task = OBJECTIVES[objective](tuned, 0, torch.float32)
    rows = [[record_of(ids, objective, number)] for number, ids in enumerate(ROWS)]
    with torch.no_grad(), InDouble():
        alone = [float(loss_of(task, tuned, [row])) for row in rows]
        together = [float(loss_of(task, tuned, list(pair))) for pair in itertools.pairwise(rows)]
        plain = [plain_loss(tuned, row[0], objective) for row in rows]
    assert_close(together, [alone[0] + alone[1], alone[1] + alone[2]], PASS)
    assert_close(alone, plain, PASS)
    assert len({round(loss, 3) for loss in alone}) == len(alone)


def model_of(folder: Path, objective: str, method: str) -> Any:
    """In double precision."""
    labels = ("a", "b", "c") if objective == "classification" else ()
    return doubled(applied(folder, method, OBJECTIVES[objective].head(labels)))


def record_of(ids: list[int], objective: str, number: int) -> dict[str, Any]:
    record: dict[str, Any] = {"input_ids": np.array(ids, dtype=np.int32)}
    mask = {"loss_mask": np.arange(len(ids)) > 0}
    return record | (mask if objective == "sft" else {"label": number % 3})


def plain_loss(model: nn.Module, record: dict[str, Any], objective: str) -> float:
    """Cross-entropy of one record as any user of PEFT would compute it."""
    ids = torch.tensor(record["input_ids"], dtype=torch.long)[None]
    logits = model.eval()(input_ids=ids).logits
    if objective == "classification":
        return float(nn.functional.cross_entropy(logits, torch.tensor([record["label"]])))
    said = logits[0, -ids.shape[1] : -1]
    return float(nn.functional.cross_entropy(said, ids[0, 1:], reduction="sum"))


# --- no trace of precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PROMPTS)
def test_what_is_published_is_what_bf16_training_measured(decoder: Path, method: str, tmp_path: Path) -> None:
    """The virtual tokens are fp32 and the same numbers before and after the file, also where autocast is on."""
    model = applied(decoder, method)
    loading.narrow_frozen(model, torch.bfloat16)
    METHODS[method].save(model, tmp_path, "base", "main")
    reopened = METHODS[method].reopen(loading.load(decoder, SFT, pad_token_id=0), tmp_path)
    ids = torch.tensor([ROWS[1], ROWS[1][::-1]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(input_ids=ids).logits, reopened(input_ids=ids).logits)


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_the_file_holds_the_virtual_tokens_and_the_head_alone(model: str, method: str, tmp_path: Path) -> None:
    """No embedding or network that computed them, no path of this machine; and the trained head, bit for bit."""
    head = OBJECTIVES["classification"].head(("a", "b"))
    tuned = applied(MODELS[model](tmp_path / "model"), method, head)
    trained = {name: tensor for name, tensor in tuned.named_parameters() if tensor.requires_grad}
    layer = "classifier" if model == "bert" else "score"
    assert any(f"{layer}.modules_to_save.default.weight" in name for name in trained)
    METHODS[method].save(tuned, tmp_path, "base", "main")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    keys = 64 if model == "bert" else 32
    width = 2 * 2 * keys if method in ("prefixTuning", "pTuningV2") else 64
    assert tensors.pop("prompt_embeddings").shape == (TOKENS, width)
    assert {name.rpartition(".")[0] for name in tensors} == {f"base_model.{layer}"}
    for name, tensor in tensors.items():
        part = name.rpartition(".")[2]
        assert torch.equal(tensor, tuned.get_parameter(f"base_model.{layer}.modules_to_save.default.{part}"))
    assert str(tmp_path) not in (tmp_path / "adapter_config.json").read_text()


# --- what else would go wrong in silence ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["promptTuning", "pTuning"])
def test_computing_layers_twice_changes_no_gradient_of_embeddings(decoder: Path, method: str) -> None:
    """The input of the first checkpointed layer is made of the virtual tokens."""
    ids = torch.tensor([ROWS[1]])
    gradients = []
    for twice in (False, True):
        model = applied(decoder, method).train()
        if twice:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(model.prompt_encoder["default"].embedding.weight.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


@pytest.mark.parametrize("method", ["prefixTuning", "pTuningV2"])
def test_a_prefix_excludes_computing_layers_twice(method: str) -> None:
    """Checkpointed layers are given no cache: transformers takes it away, and the prefix with it."""
    assert not Method.model_validate({method: {}}).options.takes_gradient_checkpointing


def test_the_base_model_is_measured_without_virtual_tokens(tmp_path: Path) -> None:
    """An untrained prompt makes a model worse: what training improved on is the model as it came."""
    run = prepared(tmp_path, Pair("llama", "sft", "promptTuning"), training={"maxSteps": 1}, records=24)
    trainer = run.trainer()
    report = run.train(Progress("train"))
    trainer.model = loading.load(Path(run.stage().page.model_path), SFT, 0).model
    plain, _ = trainer.assess(run.stage().rows("test"), lambda: None)
    assert report.evaluation.base == plain
    saved = Baseline.model_validate_json((run.workspace.checkpoints / "baseline.json").read_bytes())
    assert saved.held_out is not None
    assert saved.held_out.metrics == plain


@pytest.mark.parametrize(("method", "packs"), [("lora", True), *((method, False) for method in PROMPTS)])
def test_rows_are_not_shared_behind_virtual_tokens(method: str, packs: bool, tmp_path: Path) -> None:
    """`packing: auto` packs on a GPU, unless the method's virtual tokens would stand before the first record alone."""
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.completions(30))
    run = preparing.run_of(tmp_path, data, method={method: {}}, resources={"gpus": 1}, training={"maxLength": 64})
    _, page, _ = preparing.prepared(run)
    assert page.packing is packs


def test_virtual_tokens_take_their_room_from_the_records(tmp_path: Path) -> None:
    """Records are cut where virtual tokens leave no position; without room for any record prepare says so."""
    data = tiny.jsonl(tmp_path / "data.jsonl", tiny.completions(30))
    preparing.model(tmp_path / "model", max_position_embeddings=128)
    _, page, _ = preparing.prepared(preparing.run_of(tmp_path, data, method={"promptTuning": {"tokens": 28}}))
    assert page.max_length == 100
    with pytest.raises(Failure) as refused:
        preparing.prepared(preparing.run_of(tmp_path, data, method={"prefixTuning": {"tokens": 121}}))
    assert refused.value.reason is Reason.BAD_SPEC
    assert refused.value.message == (
        "spec.method.prefixTuning.tokens: 121 virtual tokens leave no room in the model's 128 positions; take fewer"
    )
