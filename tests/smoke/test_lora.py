"""LoRA's options: each does what its paper says, and what is published is plain PEFT whatever it was trained with."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import Linear

import tiny
from finetune_api.reasons import Reason
from finetune_api.spec.methods import Lora
from finetune_trainer.artifacts import result as results
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.fused_lora import hasten
from finetune_trainer.models import loading
from finetune_trainer.models.loading import LoadedModel
from finetune_trainer.objectives.sft import Sft
from finetune_trainer.runtime.failures import Failure
from tolerance import PASS, WEIGHT, InDouble, assert_close, doubled
from training import Pair, Prepared, prepared

PAIR = Pair("llama", "sft", "lora")
HEAD = Sft.head(())


@pytest.fixture
def base(tmp_path: Path) -> LoadedModel:
    return loading.load(tiny.llama(tmp_path / "model"), HEAD, 0)


def applied(base: LoadedModel, **options: Any) -> Any:
    return METHODS["lora"].apply(base, Lora.model_validate(options), HEAD, steps=8)


def trained(folder: Path, **options: Any) -> tuple[Prepared, Any]:
    """A run with these options, and its evaluation."""
    run = prepared(folder, PAIR, method={"lora": {"rank": 4, **options}})
    return run, run.train().evaluation


def reloaded_loss(run: Prepared) -> float:
    """The held-out loss of what plain PEFT loads."""
    trainer = run.trainer()
    model = loading.load(Path(run.stage().page.model_path), HEAD, run.stage().page.pad_token_id).model
    trainer.model = peft.PeftModel.from_pretrained(model, run.workspace.result / results.ARTIFACT)
    metrics, _ = trainer.assess(run.stage().rows("test"), lambda: None)
    loss: float = metrics["loss"]
    return loss


@pytest.mark.parametrize(
    "options",
    [{"rsLora": True}, {"dora": True}, {"init": "pissa"}, {"init": "pissa", "rsLora": True}, {"plusRatio": 16}],
    ids=lambda options: "+".join(options),
)
def test_plain_peft_loads_what_every_variant_publishes(tmp_path: Path, options: dict[str, Any]) -> None:
    """It learnt, and the published adapter over the base as it came scores what the report says."""
    run, evaluation = trained(tmp_path, **options)
    assert evaluation.tuned["loss"] < evaluation.base["loss"]
    assert_close(reloaded_loss(run), evaluation.tuned["loss"], PASS, computed_in=torch.float32)


def test_pissa_changes_nothing_at_first(base: LoadedModel) -> None:
    """What the adapter starts with is taken out of the frozen weight: the sum is the base model."""
    ids = torch.arange(8).unsqueeze(0)
    plain = copy.deepcopy(base.model)
    with torch.no_grad(), InDouble():
        before = doubled(plain)(input_ids=ids).logits
        after = doubled(applied(base, init="pissa", rank=4)).eval()(input_ids=ids).logits
    assert_close(after, before, WEIGHT, computed_in=torch.float32)


def test_another_machines_singular_vectors_are_followed(base: LoadedModel) -> None:
    """Resumed with other start factors, frozen weights and start still add up to the base model."""
    model = applied(base, init="pissa", rank=4)
    other = {name: -tensor for name, tensor in model.start.items()}
    other[next(iter(other))] *= 2
    layer = next(module for module in model.modules() if isinstance(module, Linear))
    name = next(name for name, module in model.named_modules() if module is layer)
    a, b = f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"
    whole = layer.base_layer.weight + layer.scaling["default"] * model.start[b] @ model.start[a]
    METHODS["lora"].remember(model, other)
    found = layer.base_layer.weight + layer.scaling["default"] * other[b] @ other[a]
    assert_close(found, whole, WEIGHT)


def test_lora_plus_moves_b_faster(tmp_path: Path) -> None:
    """B has the ratio times the rate of A, in groups of its own; the reported rate is that of A."""
    run = prepared(tmp_path, PAIR, method={"lora": {"rank": 4, "plusRatio": 16}})
    trainer = run.trainer()
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    base_rate = run.run.spec.training.learning_rate
    assert {rate for name, rate in rates.items() if ".lora_A." in name} == {base_rate}
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {16 * base_rate}
    assert trainer.optimizer.param_groups[0]["lr"] == base_rate


def test_patterns_layers_and_saved_modules(base: LoadedModel) -> None:
    """Ranks and alphas by name, adapters in the named blocks only, and a module that is trained whole."""
    options = {"rank": 2, "layers": [1], "rankPattern": {"q_proj": 4}, "alphaPattern": {"q_proj": 8}}
    model = applied(base, **options, modulesToSave=["lm_head"])
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    assert layers
    assert all(".layers.1." in name for name in layers)
    ranks = {
        name.rpartition(".")[2]: (layer.r["default"], layer.lora_alpha["default"]) for name, layer in layers.items()
    }
    assert ranks["q_proj"] == (4, 8)
    assert ranks["v_proj"] == (2, 32)
    assert any("lm_head.modules_to_save" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targetModules": ["q_porj"]}, "targetModules: 'q_porj' matches nothing; linear layers are: down_proj"),
        ({"rankPattern": {"nothing": 4}}, "rankPattern: 'nothing' matches nothing"),
        ({"layers": [7]}, "layers: 7: the model has blocks 0 to 1"),
        ({"modulesToSave": ["head"]}, "modulesToSave: 'head' is no module; modules are: "),
    ],
)
def test_names_that_match_nothing_are_refused(base: LoadedModel, options: dict[str, Any], message: str) -> None:
    """PEFT would skip some of them without a word."""
    with pytest.raises(Failure) as refused:
        applied(base, **options)
    assert refused.value.reason is Reason.BAD_SPEC
    assert message in refused.value.message


@pytest.mark.parametrize("bias", [False, True])
def test_the_fast_layer_is_the_same_function(bias: bool) -> None:
    """Output and all gradients, in double precision, against PEFT's own forward; evaluation is PEFT's own code."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 10, bias=bias)).double()
    model = peft.get_peft_model(plain, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"])).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 7, 6, dtype=torch.float64, requires_grad=True)

    def outcome() -> list[torch.Tensor]:
        moving = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
        output = model(x)
        return [output, *torch.autograd.grad(output.square().sum(), moving)]

    expected = outcome()
    assert hasten(model) == 1
    for found, wanted in zip(outcome(), expected, strict=True):
        assert_close(found, wanted, 3 * PASS)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), expected[0])


def test_the_fast_gated_mlp_is_the_same_function(tmp_path: Path) -> None:
    """Logits and the gradient of every adapter of a Llama, in double precision, against PEFT's own forward."""
    torch.manual_seed(0)
    plain = loading.load(tiny.llama(tmp_path / "model"), HEAD, 0).model.double()
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(plain, config).double()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(12).reshape(2, 6)

    def outcome() -> list[torch.Tensor]:
        moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with InDouble():
            logits = model(input_ids=ids).logits
            return [logits, *torch.autograd.grad(logits.square().sum(), moving)]

    expected = outcome()
    hasten(model)
    assert all("_gated_forward" in repr(layer.mlp.forward) for layer in plain.model.layers)
    for found, wanted in zip(outcome(), expected, strict=True):
        assert_close(found, wanted, 3 * PASS)


def test_what_the_fast_layer_cannot_do_is_left_to_peft() -> None:
    """Dropout, DoRA and transposed layers keep PEFT's forward."""
    for options in ({"lora_dropout": 0.1}, {"use_dora": True}):
        model = peft.get_peft_model(
            torch.nn.Sequential(torch.nn.Linear(6, 10)), peft.LoraConfig(target_modules=["0"], **options)
        )
        assert hasten(model) == 0
