"""LoRA, AdaLoRA, IA³ and BitFit beyond what all methods share: budgets, places, biases, their papers' formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    PretrainedConfig,
    RobertaConfig,
)

import tiny
from finetune_api.reasons import Reason
from finetune_api.spec.methods import Method
from finetune_trainer.artifacts import result as results
from finetune_trainer.methods import METHODS
from finetune_trainer.models import loading
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.objectives.classification import Classification
from finetune_trainer.objectives.sft import EncoderDecoderSft, Sft
from finetune_trainer.runtime.failures import Failure
from tolerance import PASS, WEIGHT, InDouble, assert_close, bound, doubled
from training import Pair, prepared

GENERATOR = Sft.head(())
CLASSIFIER = Classification.head(("no", "yes"))
WRITER_OF_ANSWERS = EncoderDecoderSft.head(())
RANK = 12
MODELS = {
    "llama": (tiny.llama, GENERATOR),
    "gpt2": (tiny.gpt2, GENERATOR),
    "bert": (tiny.bert, CLASSIFIER),
    "t5": (tiny.t5, WRITER_OF_ANSWERS),
}


def base_of(name: str, folder: Path) -> tuple[LoadedModel, Head]:
    make, head = MODELS[name]
    return loading.load(make(folder / name), head, 0), head


def apply(kind: str, base: LoadedModel, head: Head, steps: int = 100, **options: Any) -> Any:
    chosen = Method.model_validate({kind: options})
    return METHODS[kind].apply(base, chosen.options, head, steps)


def moving(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def on_paper(config: PretrainedConfig) -> LoadedModel:
    """A classifier of that size without memory for its weights."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return LoadedModel(model, ("classifier",))


BERT_BASE = BertConfig(num_labels=2)
BERT_LARGE = BertConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, num_labels=2
)


@pytest.mark.parametrize(
    ("config", "targets", "rank", "reported"),
    [
        (RobertaConfig(), ["query", "value"], 8, 0.3e6),
        (RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16), ["query", "value"], 8, 0.8e6),
        (DebertaV2Config(num_hidden_layers=48), ["query_proj", "value_proj"], 16, 4.7e6),
    ],
    ids=["roberta-base", "roberta-large", "deberta-xxl"],
)
def test_lora_moves_as_many_as_its_paper_reports(
    config: PretrainedConfig, targets: list[str], rank: int, reported: float
) -> None:
    """Hu et al. 2021, tables 2 and 9: queries and values of each block get r (d + d) parameters."""
    base = on_paper(config)
    head = sum(parameter.numel() for parameter in base.model.classifier.parameters())
    found = moving(apply("lora", base, CLASSIFIER, rank=rank, targetModules=targets)) - head
    assert found == config.num_hidden_layers * len(targets) * rank * 2 * config.hidden_size
    assert found == pytest.approx(reported, abs=0.05e6)


@pytest.mark.parametrize(("config", "share"), [(BERT_BASE, 0.0009), (BERT_LARGE, 0.0008)], ids=["base", "large"])
def test_bitfit_moves_the_share_that_its_paper_reports(config: BertConfig, share: float) -> None:
    """Ben Zaken et al. 2021, table 1: 0.08 % of BERT-large and 0.09 % of BERT-base; exactly the bias terms."""
    base = on_paper(config)
    total = sum(parameter.numel() for parameter in base.model.parameters())
    head = sum(parameter.numel() for parameter in base.model.classifier.parameters())
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    per_layer = 3 * width + (width + width) + inner + (width + width)  # q, k, v; output and norm; up; down and norm
    found = moving(apply("bitFit", base, CLASSIFIER)) - head
    assert found == layers * per_layer + width + width  # and the norm of the embeddings, and the pooler
    assert found / total == pytest.approx(share, abs=0.00015)


def test_ia3_scales_keys_values_and_feedforward() -> None:
    """Liu et al. 2022, section 3.3: d_k + d_v + d_ff factors a block of an encoder."""
    base = on_paper(BERT_BASE)
    head = sum(parameter.numel() for parameter in base.model.classifier.parameters())
    assert moving(apply("ia3", base, CLASSIFIER)) - head == 12 * (768 + 768 + 3072)


@pytest.mark.parametrize("name", MODELS)
def test_ia3_finds_its_places_in_every_architecture(tmp_path: Path, name: str) -> None:
    """One factor vector for keys, one for values (one for both where they are one layer), one for the feed-forward."""
    base, head = base_of(name, tmp_path)
    model = apply("ia3", base, head)
    places = {key.partition(".ia3_l")[0].rpartition(".")[2] for key, _ in model.named_parameters() if ".ia3_l" in key}
    assert (
        places
        == {
            "llama": {"k_proj", "v_proj", "down_proj"},
            "gpt2": {"c_attn", "c_proj"},
            "bert": {"key", "value", "dense"},
            "t5": {"k", "v", "wo"},
        }[name]
    )
    attention = [key for key, _ in model.named_parameters() if ".ia3_l" in key and "attention.output" in key]
    assert attention == []


def test_adalora_starts_with_its_initial_ranks() -> None:
    """Zhang et al. 2023, equation 3: r (d1 + d2 + 1) for each matrix, on BERT-base's twelve blocks of six."""
    base = on_paper(BERT_BASE)
    head = sum(parameter.numel() for parameter in base.model.classifier.parameters())
    square, rectangle = RANK * (768 + 768 + 1), RANK * (768 + 3072 + 1)
    pooler = square
    found = moving(apply("adaLora", base, CLASSIFIER, initialRank=RANK)) - head
    assert found == 12 * (4 * square + 2 * rectangle) + pooler


def test_adalora_ends_within_its_budget(tmp_path: Path) -> None:
    """The ranks that are published add up to the target times the layers; before that the weights cannot be kept."""
    options = {"initialRank": 6, "targetRank": 2, "everySteps": 1, "warmup": 0.1, "settled": 0.3}
    run = prepared(tmp_path, Pair("llama", "sft", "adaLora"), method={"adaLora": options})
    evaluation = run.train().evaluation
    weights = load_file(run.workspace.result / results.ARTIFACT / "adapter_model.safetensors")
    ranks = [len(tensor) for name, tensor in weights.items() if name.endswith("lora_E")]
    assert sum(ranks) <= 2 * len(ranks)
    steps = run.run.spec.training.max_steps
    assert evaluation.best_step >= steps - int(steps * 0.3)


def test_adaloras_penalty_is_that_of_its_paper(tmp_path: Path) -> None:
    """|PᵀP - 1| + |QQᵀ - 1|, as peft computes it when it is given a loss to add it to."""
    base, head = base_of("llama", tmp_path)
    model = apply("adaLora", base, head, orthogonality=0.5)
    with torch.no_grad():
        for name, factor in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                factor.mul_(1.5)  # away from where the penalty is nothing
    ids = torch.arange(8).unsqueeze(0)
    doubled(model)
    with InDouble():
        plain = model.base_model.model(input_ids=ids, labels=ids).loss
        with_penalty = model.base_model(input_ids=ids, labels=ids).loss
        penalty = METHODS["adaLora"].penalty(model)
    assert_close(plain + penalty, with_penalty, PASS)
    assert penalty > 0.1


def test_adaloras_factors_start_orthonormal(tmp_path: Path) -> None:
    """Its penalty begins at nothing, and Λ moves the weights as far in a narrow model as in a wide one."""
    base, head = base_of("llama", tmp_path)
    model = apply("adaLora", base, head, orthogonality=0.5, initialRank=RANK)
    identity = torch.eye(RANK)
    assert METHODS["adaLora"].penalty(model) < 0.5 * RANK * bound(identity, WEIGHT, torch.float32)


def test_adaloras_values_move_faster_than_its_factors(tmp_path: Path) -> None:
    """Λ alone has the ratio times the rate of P and Q; the reported rate is theirs."""
    run = prepared(tmp_path, Pair("llama", "sft", "adaLora"), method={"adaLora": {"lambdaRatio": 4}})
    trainer = run.trainer()
    trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    moving = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    base_rate = run.run.spec.training.learning_rate
    assert {rates[id(p)] for name, p in moving.items() if ".lora_E." in name} == {4 * base_rate}
    assert {rates[id(p)] for name, p in moving.items() if ".lora_E." not in name} == {base_rate}
    assert trainer.optimizer.param_groups[0]["lr"] == base_rate


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10_000])
def test_adaloras_schedule_fits_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    """Shares of the real number of steps, never more than there are."""
    base, head = base_of("llama", tmp_path)
    config = apply("adaLora", base, head, steps=steps).peft_config["default"]
    assert 0 <= config.tinit < config.total_step - config.tfinal
    assert config.total_step == steps


def test_bitfit_on_a_model_without_biases(tmp_path: Path) -> None:
    """Refused with the way out; with addBiases the model starts as the same function."""
    base, head = base_of("llama", tmp_path)
    with pytest.raises(Failure, match="addBiases") as refused:
        apply("bitFit", base, head)
    assert refused.value.reason is Reason.UNSUPPORTED
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        after = apply("bitFit", base, head, addBiases=True)(input_ids=ids).logits
    assert torch.equal(before, after)


def test_biases_that_were_added_merge_into_a_plain_llama(tmp_path: Path) -> None:
    """Its config asks for them, so that transformers alone computes the same logits."""
    base, head = base_of("llama", tmp_path)
    model = apply("bitFit", base, head, addBiases=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    METHODS["bitFit"].merged(model).save_pretrained(tmp_path / "merged")
    plain = loading.load(tmp_path / "merged", head, 0).model
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
