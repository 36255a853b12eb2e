"""LoRA that starts from stored adapters: what is composed is what the arithmetic says, down to the logits that plain
PEFT gives; and what starts there is trained, interrupted, counted and published like any other run.

Theory: two real adapters of this project's own making, then runs that start from them.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_api.exits import ExitCode
from finetune_api.reasons import Reason
from finetune_api.status import EvaluationResult
from finetune_trainer.artifacts import result as results
from finetune_trainer.models import loading
from finetune_trainer.objectives.sft import Sft
from finetune_trainer.planning.memory import PlannedModel
from finetune_trainer.planning.method_comparison import row
from finetune_trainer.planning.workload import Shape
from finetune_trainer.pretrained.adapter_composition import Composer, Part
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import sha256
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.stages.prepare import prepare
from finetune_trainer.stages.publish import publish
from finetune_trainer.training import checkpoints
from tolerance import PASS, WEIGHT, InDouble, assert_close, doubled
from training import STEPS, Pair, Prepared, StopAfter, prepared

PAIR = Pair("llama", "sft", "lora")
HEAD = Sft.head(())
IDS = torch.arange(3, 40).unsqueeze(0)
COMBINATIONS = {
    "linear": "linear", "cat": "cat", "svd": "svd", "ties": "ties", "tiesSvd": "ties_svd",
    "dareLinear": "dare_linear", "dareTies": "dare_ties", "dareLinearSvd": "dare_linear_svd",
    "dareTiesSvd": "dare_ties_svd",
}  # fmt: skip
"""Ours, and PEFT's name for the same."""


@dataclass(frozen=True)
class Published:
    """An adapter and the run that made it."""

    folder: Path
    run: Prepared
    evaluation: EvaluationResult


def published(run: Prepared) -> Published:
    evaluation = run.train().evaluation
    publish(run.run, run.workspace, Progress("publish"))
    return Published(run.run.locate(run.run.spec.output.uri), run, evaluation)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Published]:
    """Ranks 4 and 3, scalings of both kinds, layers that are not the same."""
    options: list[dict[str, Any]] = [
        {"rank": 4},
        {"rank": 3, "alpha": 4, "rsLora": True, "targetModules": ["q_proj", "up_proj"]},
    ]
    return [
        published(prepared(tmp_path_factory.mktemp(f"adapter-{number}"), PAIR, method={"lora": one}))
        for number, one in enumerate(options)
    ]


def started(
    folder: Path, *sources: Published, weights: tuple[float, ...] = (), steps: int = 0, **spec: Any
) -> Prepared:
    """A prepared run that starts from these adapters; what is not about the start is in `spec`."""
    shares = weights or (1.0,) * len(sources)
    named = [{"uri": f"file://{one.folder}", "weight": share} for one, share in zip(sources, shares, strict=True)]
    start = {"adapters": named} | spec.pop("start", {})
    options = {"startFrom": start} | spec.pop("options", {})
    training = {"maxSteps": steps} | spec.pop("training", {})
    return prepared(folder, spec.pop("pair", PAIR), method={"lora": options}, training=training, **spec)


def base_of(run: Prepared) -> Any:
    page = run.stage().page
    return loading.load(Path(page.model_path), HEAD, page.pad_token_id).model


def logits(model: Any) -> torch.Tensor:
    """In double precision: what differs then are the numbers in the files."""
    with torch.no_grad(), InDouble():
        return doubled(model).eval()(input_ids=IDS).logits


def updated(base: nn.Module, sources: list[Published], weights: tuple[float, ...]) -> nn.Module:
    """The base with Σ weight · scaling · B·A added to its weights, by hand, from the files alone, in float64."""
    doubled(base)
    for source, weight in zip(sources, weights, strict=True):
        config = json.loads((source.folder / "adapter_config.json").read_text())
        scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
        tensors = load_file(source.folder / "adapter_model.safetensors")
        for name, a in tensors.items():
            if ".lora_A." in name:
                layer = base.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                b = tensors[name.replace("lora_A", "lora_B")]
                layer.weight.data += weight * scaling * b.double() @ a.double()
    return base


def test_a_composition_is_measured_published_and_merged_without_a_step(
    adapters: list[Published], tmp_path: Path
) -> None:
    """cat of unequal ranks and weights: what plain PEFT loads, and what is merged, is the base plus both updates."""
    weights = (0.7, -0.4)
    output = {"uri": f"file://{tmp_path}/output", "merge": True}
    composed = published(started(tmp_path, *adapters, weights=weights, output=output))
    evaluation, state = composed.evaluation, results.read(composed.run.workspace.result).state
    assert (state.step, state.finished, evaluation.best_step) == (0, "steps", None)
    assert evaluation.base == adapters[0].evaluation.base
    assert evaluation.tuned != evaluation.base
    expected = logits(updated(base_of(composed.run), adapters, weights))
    assert (expected - logits(base_of(composed.run))).abs().max() > 0.05
    plain = peft.PeftModel.from_pretrained(base_of(composed.run), composed.folder)
    assert_close(logits(plain), expected, WEIGHT, computed_in=torch.float32)
    merged = type(base_of(composed.run)).from_pretrained(composed.folder / "merged")
    assert_close(logits(merged), expected, WEIGHT, computed_in=torch.float32)


def test_the_artifact_says_what_it_is_made_of(adapters: list[Published], tmp_path: Path) -> None:
    """The manifest pins each adapter by its weights; the card says that nothing was trained."""
    composed = published(started(tmp_path, *adapters, weights=(0.5, 0.5)))
    made = json.loads((composed.folder / "manifest.json").read_text())["startFrom"]
    assert made["combination"] == "cat"
    assert [(one["uri"], one["weight"]) for one in made["adapters"]] == [
        (f"file://{one.folder}", 0.5) for one in adapters
    ]
    sums = [json.loads((one.folder / "manifest.json").read_text())["files"] for one in adapters]
    assert [one["revision"] for one in made["adapters"]] == [
        f"sha256:{files['adapter_model.safetensors']['sha256']}" for files in sums
    ]
    card = (composed.folder / "README.md").read_text()
    assert f"made by `cat` of 0.5 × `file://{adapters[0].folder}`" in card
    assert "Nothing was trained." in card


def test_one_adapter_comes_out_as_it_went_in(adapters: list[Published], tmp_path: Path) -> None:
    """Weight 1, no step: the same tensors, bit for bit, and exactly the figures of the run that made it."""
    for number, source in enumerate(adapters):
        again = published(started(tmp_path / str(number), source))
        assert again.evaluation.tuned == source.evaluation.tuned
        before, after = (load_file(one.folder / "adapter_model.safetensors") for one in (source, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        targets = json.loads((again.folder / "adapter_config.json").read_text())["target_modules"]
        assert "q_proj" in targets  # as servers know it, not the names of single layers


def test_training_goes_on_where_the_adapter_ended(adapters: list[Published], tmp_path: Path) -> None:
    """The first step begins with the stored weights; the last ones explain the training data better."""
    run = started(tmp_path, adapters[0], steps=STEPS)
    trainer = run.trainer()
    stored = load_file(adapters[0].folder / "adapter_model.safetensors")
    own = peft.get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())
    rows = run.stage().rows("train")
    before, _ = trainer.assess(rows, lambda: None)
    evaluation = run.train().evaluation
    stage = run.stage()
    checkpoints.restore_weights(checkpoints.Store(stage.workspace.checkpoints, stage.identity, 2).latest(), trainer)
    after, _ = trainer.assess(rows, lambda: None)
    assert after["loss"] < before["loss"]
    assert evaluation.base == adapters[0].evaluation.base


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(adapters: list[Published], tmp_path: Path) -> None:
    """Also where the start was drawn at random: it was drawn once, in prepare."""
    run = started(
        tmp_path / "a", adapters[0], adapters[0], weights=(0.5, 0.3), steps=STEPS, start={"combination": "dareTies"}
    )
    whole, parts = run.copy(tmp_path / "whole"), run.copy(tmp_path / "parts")
    evaluation = whole.train().evaluation
    with pytest.raises(Failure) as stopped:
        parts.train(StopAfter(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stopped.value.code == ExitCode.STOPPED
    assert parts.train().evaluation == evaluation
    last = f"step-{STEPS:08d}"
    for file in ("weights.safetensors", "optimizer.safetensors"):
        one, other = (load_file(each.workspace.checkpoints / last / file) for each in (whole, parts))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_another_start_on_the_same_workspace_is_another_run(adapters: list[Published], tmp_path: Path) -> None:
    """Checkpoints of one start are no checkpoints of another, though the spec's own words be the same."""
    run = started(tmp_path, adapters[0], steps=STEPS)
    first = run.stage().identity
    page = run.workspace.prepared / "prepared.json"
    content = json.loads(page.read_text())
    content["start"]["digest"] = "0" * 64
    page.write_text(json.dumps(content))
    assert run.stage().identity.recipe != first.recipe


def test_an_adapter_that_was_replaced_since_it_was_pinned_is_refused(adapters: list[Published], tmp_path: Path) -> None:
    """What a named job had published when it was first seen complete is what the run starts from, or it starts not."""
    run = started(tmp_path, adapters[0]).run
    manifest = adapters[0].folder / "manifest.json"
    true = f"sha256:{sha256(manifest)}"
    for number, digest in enumerate((true, "sha256:another")):
        pinned = run.model_copy(update={"digests": {f"file://{adapters[0].folder}": digest}})
        workspace = Workspace(tmp_path / f"again-{number}")
        workspace.root.mkdir()
        if digest == true:
            prepare(pinned, workspace, Progress("prepare"))
        else:
            with pytest.raises(Failure, match="was replaced since"):
                prepare(pinned, workspace, Progress("prepare"))


@pytest.mark.parametrize("ours", COMBINATIONS)
def test_every_combination_is_that_of_peft(ours: str) -> None:
    """The same ΔW as add_weighted_adapter, weights of both signs; what is random has nothing dropped here."""
    density = 1.0 if "dare" in ours else 0.4
    torch.manual_seed(0)
    options = {"target_modules": ["0"], "r": 3}
    model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 8)), peft.LoraConfig(lora_alpha=6, **options), "a")
    model.add_adapter("b", peft.LoraConfig(lora_alpha=3, **options))
    layer: Any = model.base_model.model[0]
    for name in "ab":
        nn.init.normal_(layer.lora_A[name].weight)
        nn.init.normal_(layer.lora_B[name].weight)
    weights = [0.8, -0.5]
    parts = [
        Part(
            layer.lora_A[name].weight.detach().numpy(), layer.lora_B[name].weight.detach().numpy(),
            layer.scaling[name], weight,
        )
        for name, weight in zip("ab", weights, strict=True)
    ]  # fmt: skip
    a, b = Composer(ours, density, 2, np.random.default_rng(0)).compose(parts)
    extra = {"density": density} if "ties" in ours.lower() or "dare" in ours else {}
    rank = {"svd_rank": 2} if ours.lower().endswith("svd") else {}
    model.add_weighted_adapter(["a", "b"], weights, "c", COMBINATIONS[ours], **extra, **rank)
    expected = layer.get_delta_weight("c").detach()
    assert_close(b @ a, expected, WEIGHT)


def test_the_plan_counts_the_start_and_nothing_that_is_not_trained(adapters: list[Published], tmp_path: Path) -> None:
    """Parameters are those of the composition; without steps there are no gradients, moments and kept activations."""
    composed, continued = started(tmp_path / "a", *adapters), started(tmp_path / "b", *adapters, steps=2)
    shapes = load_file(composed.workspace.start / "adapter_model.safetensors").values()
    count = sum(tensor.numel() for tensor in shapes)
    plans = []
    for run in (composed, continued):
        stage = run.stage()
        planned = PlannedModel(Path(stage.page.model_path), stage.spec, [])
        assert planned.trainable == count
        assert sum(p.numel() for p in run.trainer().model.parameters()) == planned.total
        plans.append(planned.memory(Shape(4, 64)))
    still, moving = plans
    assert (still.gradients_bytes, still.optimizer_bytes, still.activations_bytes) == (0, 0, 0)
    assert (moving.gradients_bytes, moving.optimizer_bytes) == (4 * count, 8 * count)
    assert still.total < moving.total


def test_finetune_plan_knows_adapters_of_this_machine(adapters: list[Published], tmp_path: Path) -> None:
    """Those are composed for their shape; others have to be here first."""
    run = started(tmp_path, *adapters)
    model = Path(run.stage().page.model_path)
    assert row(model, run.run.spec)["trainableParameters"] == PlannedModel(model, run.stage().spec, []).trainable
    start = run.run.spec.method.lora.start_from
    elsewhere = start.model_copy(update={"adapters": [start.adapters[0].model_copy(update={"uri": "pvc://models/a"})]})
    spec = run.run.spec.model_copy(update={"method": run.run.spec.method.starting_from(elsewhere)})
    assert "adapters[0].uri: pvc://models/a is not on this machine" in row(model, spec)["refused"]


def counted(run: Prepared) -> Failure:
    """What counting on a model without weights refuses, as `prepare` does."""
    stage = run.stage()
    with pytest.raises(Failure) as refused:
        PlannedModel(Path(stage.page.model_path), stage.spec, stage.page.labels)
    return refused.value


def rewritten(
    source: Published, folder: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]
) -> Published:
    """The same adapter with other tensors."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text((source.folder / "adapter_config.json").read_text())
    tensors = load_file(source.folder / "adapter_model.safetensors")
    changed = dict(change(name, tensor) for name, tensor in tensors.items())
    save_file(changed, folder / "adapter_model.safetensors")
    return Published(folder, source.run, source.evaluation)


def test_adapters_of_another_model_are_refused_before_a_weight_is_loaded(
    adapters: list[Published], tmp_path: Path
) -> None:
    """Layers that the model has not, and layers of another size; of several adapters, those that brought them."""
    deeper = rewritten(adapters[0], tmp_path / "deeper", lambda name, t: (name.replace("layers.1.", "layers.7."), t))
    absent = counted(started(tmp_path / "a", adapters[0], deeper))
    assert absent.reason is Reason.BAD_SPEC
    assert absent.message.startswith("spec.method.lora.startFrom.adapters[1]: made for another model: it has ")
    assert "layers.7." in absent.message
    narrower = rewritten(
        adapters[0],
        tmp_path / "narrower",
        lambda name, t: (name, t[:, :10].contiguous() if "q_proj.lora_A" in name else t),
    )
    size = counted(started(tmp_path / "b", narrower))
    assert size.message.startswith("spec.method.lora.startFrom.adapters[0]: made for another model: it has ")
    assert "as 4 × 10, and the model takes 4 × 64" in size.message


def test_a_classifier_brings_its_head_or_trains_one(adapters: list[Published], tmp_path: Path) -> None:
    """Its own adapter comes out as it went in, head included; one without a head is refused where nothing is trained,
    and trained where something is."""
    pair = Pair("bert", "classification", "lora")
    first = published(prepared(tmp_path / "first", pair))
    again = published(started(tmp_path / "again", first, pair=pair))
    assert again.evaluation.tuned == first.evaluation.tuned
    head = [name for name in load_file(again.folder / "adapter_model.safetensors") if "classifier" in name]
    assert head
    language = Pair("llama", "classification", "lora")
    failure = counted(started(tmp_path / "headless", adapters[0], pair=language))
    assert failure.message.startswith("spec.training.maxSteps: 0: the adapter brings no score")
    evaluation = started(tmp_path / "trained", adapters[0], pair=language, steps=STEPS).train().evaluation
    assert evaluation.tuned["loss"] < evaluation.base["loss"]


def test_a_dora_adapter_goes_on_alone(tmp_path: Path) -> None:
    """Its lengths are taken along: exactly the figures of the run that made it."""
    first = published(prepared(tmp_path / "first", PAIR, method={"lora": {"rank": 4, "dora": True}}))
    again = published(started(tmp_path / "again", first))
    assert again.evaluation == first.evaluation.model_copy(update={"best_step": None})


def test_adapters_of_other_methods_that_are_lora(tmp_path: Path) -> None:
    """What PiSSA and QLoRA publish composes like any other: plain LoRA over the base as it came."""
    methods: list[dict[str, Any]] = [{"lora": {"rank": 2, "init": "pissa"}}, {"qlora": {"rank": 3}}]
    sources = [
        published(prepared(tmp_path / str(number), Pair("llama", "sft", next(iter(one))), method=one))
        for number, one in enumerate(methods)
    ]
    composed = published(started(tmp_path / "composed", *sources, weights=(0.5, 0.5)))
    plain = peft.PeftModel.from_pretrained(base_of(composed.run), composed.folder)
    expected = logits(updated(base_of(composed.run), sources, (0.5, 0.5)))
    assert_close(logits(plain), expected, WEIGHT, computed_in=torch.float32)


def test_transposed_layers_compose_too(tmp_path: Path) -> None:
    """GPT-2 keeps its weights the other way round; A and B do not."""
    pair = Pair("gpt2", "sft", "lora")
    source = published(prepared(tmp_path / "source", pair, method={"lora": {"rank": 2}}))
    composed = published(started(tmp_path / "composed", source, source, weights=(0.75, 0.25), pair=pair))
    assert_close(composed.evaluation.tuned["loss"], source.evaluation.tuned["loss"], PASS, computed_in=torch.float32)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_finetune_run_composes_adapters_of_this_machine(adapters: list[Published], tmp_path: Path) -> None:
    """The three stages as processes, one adapter by path and one on a volume; a job is known to a cluster alone."""
    start: dict[str, Any] = {
        "adapters": [
            {"uri": f"file://{adapters[0].folder}", "weight": 0.5},
            {"uri": f"pvc://adapters/{adapters[1].folder.name}", "weight": 0.5},
        ],
        "combination": "svd",
        "rank": 2,
    }
    run = adapters[0].run.run
    spec = run.spec.to_wire(include={"model", "dataset", "evaluation"}) | {
        "method": {"lora": {"startFrom": start}},
        "training": {"maxSteps": 0, "precision": "fp32"},
        "output": {"uri": f"file://{tmp_path}/composed"},
        "resources": {"gpus": 0},
    }
    volume = ["--volume", f"adapters={adapters[1].folder.parent}"]
    done = finetune_run(tmp_path, spec, *volume)
    assert done.returncode == 0, done.stderr
    assert "Succeeded" in done.stdout
    plan = json.loads((tmp_path / "composed/manifest.json").read_text())["plan"]
    tensors = load_file(tmp_path / "composed/adapter_model.safetensors").values()
    assert plan["trainableParameters"] == sum(tensor.numel() for tensor in tensors)
    assert plan["totalSteps"] == 0
    assert all(2 in tensor.shape for tensor in tensors)
    start["adapters"][1]["uri"] = "job://another"
    refused = finetune_run(tmp_path, spec)
    assert refused.returncode == ExitCode.BAD_SPEC
    assert "startFrom.adapters[1].uri: job://another: only a cluster knows other jobs" in refused.stderr


def finetune_run(folder: Path, spec: dict[str, Any], *options: str) -> "subprocess.CompletedProcess[str]":
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "composed"}, "spec": spec}
    (folder / "job.yaml").write_text(json.dumps(job))
    command = [str(Path(sys.executable).parent / "finetune"), "run", "job.yaml", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=280)
