"""QLoRA: what is quantized, how exactly, and that neither an evaluation nor a merge spoils it.

Theory: bitsandbytes changes weights behind the model's back where nothing asks it not to, and transformers quantizes
layers that have to learn. Both are silent: losses look plausible. Each is compared here with a plain computation.
"""

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, BertModel, MixtralConfig, MixtralForCausalLM

import tiny
import training
from finetune_api.reasons import Reason
from finetune_api.spec.methods import Lora
from finetune_api.spec.methods import QLora as Options
from finetune_trainer.methods import METHODS
from finetune_trainer.models import loading
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.objectives.classification import Classification
from finetune_trainer.objectives.sft import EncoderDecoderSft, Sft
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.stages.publish import publish
from finetune_trainer.training.trainer import FineTuneTrainer
from tolerance import PASS, WEIGHT, InDouble, assert_close, bound, doubled
from training import Pair, Prepared, prepared

WRITER = Sft.head(())
CLASSIFIER = Classification.head(("a", "b"))
ANSWERER = EncoderDecoderSft.head(())
T5_ENDS = [
    *(f"encoder.block.{number}.layer.1.DenseReluDense.wo" for number in range(4)),
    *(f"decoder.block.{number}.layer.2.DenseReluDense.wo" for number in range(2)),
]
BLOCK = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The code of appendix E of the paper."""


def loaded(folder: Path, head: Head = WRITER, **options: Any) -> LoadedModel:
    return METHODS["qlora"].load(folder, head, 0, Options(**options), torch.float32)


def quantized(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}


# --- what is quantized ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "head", "whole"),
    [
        (tiny.llama, WRITER, {"lm_head"}),
        (tiny.gpt2, WRITER, {"lm_head"}),
        (tiny.gpt2, CLASSIFIER, {"score"}),
        (tiny.bert, CLASSIFIER, {"classifier"}),
        (tiny.t5, ANSWERER, {"lm_head", *T5_ENDS}),
    ],
    ids=["llama", "gpt2", "gpt2 classifier", "bert classifier", "t5"],
)
def test_all_linear_layers_but_the_output_layer_are_in_4_bits(
    tmp_path: Path, model: Any, head: Head, whole: set[str]
) -> None:
    """Embeddings, norms, the output layer and a new head keep fp32; GPT-2's transposed layers are quantized too. The
    last layers of T5's feed-forwards stay whole: it would cast their inputs to the type of 4-bit weights, integers."""
    base = loaded(model(tmp_path / "model"), head).model
    assert {name for name, module in base.named_modules() if type(module) is nn.Linear} == whole
    assert quantized(base)
    assert {parameter.dtype for parameter in base.parameters()} == {torch.uint8, torch.float32}


@pytest.mark.parametrize("model", [tiny.llama, tiny.gpt2])
def test_weights_are_the_nearest_values_of_the_papers_code(tmp_path: Path, model: Any) -> None:
    """Each of 64 neighbours is the largest of them times the nearest of sixteen numbers."""
    folder = model(tmp_path / "model")
    base, plain = loaded(folder, doubleQuantization=False).model, AutoModelForCausalLM.from_pretrained(folder)
    for name in quantized(base):
        layer, weight = base.get_submodule(name), plain.get_submodule(name).weight.detach()
        weight = weight if isinstance(plain.get_submodule(name), nn.Linear) else weight.T
        blocks = weight.reshape(-1, BLOCK)
        scales, code = blocks.abs().amax(1, keepdim=True), torch.tensor(NF4)
        expected = code[((blocks / scales).unsqueeze(-1) - code).abs().argmin(-1)] * scales
        found = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert_close(found, expected.reshape(weight.shape), roundings=1)


def test_scales_are_quantized_too_on_request(tmp_path: Path) -> None:
    """One byte instead of four for each block of 64: 32/64 bits a parameter become 8/64 and a little."""
    folder = tiny.llama(tmp_path / "model")
    layers = [
        loaded(folder, doubleQuantization=double).model.model.layers[0].mlp.up_proj.weight.quant_state
        for double in (False, True)
    ]
    assert [layer.absmax.dtype for layer in layers] == [torch.float32, torch.uint8]


def test_modules_that_the_files_do_not_have_stay_whole_and_learn(tmp_path: Path) -> None:
    """A BERT from masked language modelling has no pooler: the new one is random, and neither frozen nor rounded."""
    config = BertConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    base = loaded(tmp_path, CLASSIFIER)
    assert base.fresh == ("bert.pooler.dense", "classifier")
    assert not quantized(base.model) & set(base.fresh)
    model = METHODS["qlora"].apply(base, Options(), CLASSIFIER, steps=1)
    assert any("pooler" in name and tensor.requires_grad for name, tensor in model.named_parameters())


def test_a_mixture_of_experts_is_refused() -> None:
    """All experts of a layer are one tensor, which transformers leaves in full precision without a word."""
    config = MixtralConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    with torch.device("meta"):
        model = MixtralForCausalLM(config)
    with pytest.raises(Failure, match="choose lora") as refused:
        METHODS["qlora"].apply(LoadedModel(model, ()), Options(), WRITER, steps=1)
    assert refused.value.reason is Reason.UNSUPPORTED


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp(request.param)
    return prepared(folder, Pair("llama", "sft", "qlora"), training={"precision": request.param})


def gradient(trainer: FineTuneTrainer, run: Prepared) -> torch.Tensor:
    """Of the loss on four rows, dropout included, over all trainable parameters."""
    rows = run.stage().rows("train")
    torch.manual_seed(7)
    trainer.model.zero_grad()
    batch = trainer.objective.collate([rows[index] for index in range(4)])
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=batch["items"]).backward()
    return torch.cat([tensor.grad.flatten() for tensor in trainer.model.parameters() if tensor.requires_grad])


def test_train_evaluate_train_leaves_gradients_as_without_the_evaluation(run: Prepared) -> None:
    """Bit for bit. Left to itself, bitsandbytes repacks the weights at the evaluation on CPUs with AVX512-BF16."""
    trainer = run.trainer()
    trainer.model.train()
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    expected = gradient(trainer, run)
    trainer.assess(run.stage().rows("validation"), lambda: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.named_parameters())
    layers = [trainer.model.get_submodule(name) for name in quantized(trainer.model)]
    assert not any(hasattr(layer.weight.quant_state, "packing_format_for_cpu") for layer in layers)
    assert torch.equal(gradient(trainer, run), expected)
    assert float(expected.abs().max()) > 0


def test_gradients_are_those_of_plain_layers_that_hold_the_same_numbers(tmp_path: Path) -> None:
    """After an evaluation too: LoRA over a base in fp32, with the rounded weights written into it, learns the same."""
    run = prepared(tmp_path, Pair("llama", "sft", "qlora"))
    trainer = run.trainer()
    trainer.assess(run.stage().rows("validation"), lambda: None)
    found, adapter = gradient(trainer, run), trainer.model.state_dict()
    folder = Path(run.stage().page.model_path)
    rounded, plain = loaded(folder, **run.run.spec.method.options.to_wire()).model, loading.load(folder, WRITER, 0)
    for name in quantized(rounded):
        weight = rounded.get_submodule(name).weight
        plain.model.get_submodule(name).weight.data = dequantize_4bit(weight.data, weight.quant_state)
    trainer.model = METHODS["lora"].apply(plain, Lora(rank=8, dropout=0.1), WRITER, steps=1).train()
    trainer.model.load_state_dict({name: tensor for name, tensor in adapter.items() if "lora_" in name}, strict=False)
    assert_close(found, gradient(trainer, run), 3 * PASS)


def test_an_evaluation_says_what_a_training_step_says(run: Prepared) -> None:
    """The loss in eval mode is that of the same weights in train mode: there is no second arithmetic for inference."""
    trainer, rows = run.trainer(), run.stage().rows("validation")
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = trainer.objective.collate([rows[index] for index in range(4)])
    with trainer.autocast():
        learning = trainer.objective.compute_loss(trainer.model, batch).loss
        with torch.no_grad():
            trainer.model.eval()
            assert torch.equal(trainer.objective.compute_loss(trainer.model, batch).loss, learning.detach())


def test_weights_stay_in_4_bits_when_frozen_ones_are_narrowed(run: Prepared) -> None:
    """In bf16 the output layer becomes bf16 and products are computed in it; codes are never cast."""
    trainer = run.trainer()
    layers = [module for module in trainer.model.modules() if isinstance(module, Linear4bit)]
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    assert {layer.compute_dtype for layer in layers} == {trainer.objective.dtype}
    assert trainer.model.get_output_embeddings().weight.dtype is trainer.objective.dtype


def test_gradient_checkpointing_changes_no_gradient(run: Prepared) -> None:
    """Activations computed twice from frozen 4-bit weights are the same activations."""
    trainer = run.trainer()
    expected = gradient(trainer, run)
    trainer.model.activation_checkpointing_enable()
    assert torch.equal(gradient(trainer, run), expected)


# --- publishing -------------------------------------------------------------------------------------------------------


def test_it_is_merged_onto_full_precision(tmp_path: Path) -> None:
    """merged/ says what the adapter says over the plain base, is not quantized, and the card tells what it is."""
    run = prepared(tmp_path, Pair("llama", "sft", "qlora"), output={"uri": f"file://{tmp_path}/output", "merge": True})
    run.train()
    publish(run.run, run.workspace, Progress("publish"))
    folder = tmp_path / "output"
    base = AutoModelForCausalLM.from_pretrained(run.stage().page.model_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = AutoModelForCausalLM.from_pretrained(folder / "merged")
    with torch.no_grad(), InDouble():
        before = doubled(copy.deepcopy(base)).eval()(input_ids=ids).logits
    adapter = PeftModel.from_pretrained(base, folder)
    with torch.no_grad(), InDouble():
        adapted, merged = (doubled(model).eval()(input_ids=ids).logits for model in (adapter, plain))
    assert_close(merged, adapted, WEIGHT, computed_in=torch.float32)
    assert (merged - before).abs().max() > 2 * bound(adapted, WEIGHT, torch.float32)
    assert not hasattr(plain.config, "quantization_config")
    card = (folder / "README.md").read_text()
    assert "held in 4 bits (`nf4`)" in card
    assert "`merged/` is the sum of the adapter and the base model in full precision" in card


def test_the_card_opens_the_base_as_it_was_whatever_its_files_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in bf16 that were read as fp32: what is not in 4 bits is opened as fp32 again, and logits are the same."""

    def stored_in_bf16(folder: Path) -> Path:
        AutoModelForCausalLM.from_pretrained(tiny.llama(folder)).bfloat16().save_pretrained(folder)
        return folder

    monkeypatch.setitem(training.MODELS, "llama", stored_in_bf16)
    run = prepared(tmp_path, Pair("llama", "sft", "qlora"), output={"uri": f"file://{tmp_path}/output"})
    run.train()
    publish(run.run, run.workspace, Progress("publish"))
    monkeypatch.chdir(tmp_path / "output")
    names: dict[str, Any] = {}
    exec(Path("README.md").read_text().split("```python\n")[1].split("```")[0], names)
    ids = torch.tensor([[5, 6, 7, 8]])
    base = loaded(Path(run.stage().page.model_path))
    with torch.no_grad():
        expected = METHODS["qlora"].reopen(base, tmp_path / "output").eval()(input_ids=ids).logits
        assert torch.equal(names["model"].eval()(input_ids=ids).logits, expected)


def test_a_lora_adapter_comes_out(tmp_path: Path) -> None:
    """A few kilobytes that any version of PEFT opens, over GPT-2's transposed layers too; no 4-bit weight is in it."""
    run = prepared(tmp_path, Pair("gpt2", "sft", "qlora"))
    trainer = run.trainer()
    METHODS["qlora"].save(trainer.model, tmp_path, "base", "revision")
    config = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run.stage().page.model_path), tmp_path)
    assert config.peft_config["default"].fan_in_fan_out
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < 8 * trainer.model.num_parameters(only_trainable=True)
    assert math.isclose(size, 4 * trainer.model.num_parameters(only_trainable=True), rel_tol=0.2)


@pytest.mark.slow
def test_nothing_is_said_when_the_methods_are_imported() -> None:
    """bitsandbytes' advice to install another package reaches no user's log."""
    code = "import logging, sys; logging.basicConfig(level=logging.INFO); import finetune_trainer.methods"
    spoken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kernels" not in spoken.stderr + spoken.stdout
