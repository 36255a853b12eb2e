"""The training path itself: losses, batches, packing, accumulation, failures, checkpoints.

Theory: speed came from leaving work out (logits, padding, masks, second passes). Each omission is compared here with
the plain computation that it replaces.
"""

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import TrainerCallback

import tiny
from finetune_api.exits import ExitCode
from finetune_api.reasons import Reason
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_trainer.artifacts import result as results
from finetune_trainer.models import loading
from finetune_trainer.objectives.linear_cross_entropy import linear_cross_entropy
from finetune_trainer.objectives.sft import Sft
from finetune_trainer.planning.memory import PlannedModel
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.stop import StopRequest
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.stages.train import assemble, follow
from finetune_trainer.training.trainer import FineTuneTrainer
from tolerance import PASS, InDouble, assert_close, doubled
from training import STEPS, Pair, Prepared, StopAfter, gradient_of, loss_of, prepared, some, with_learnt

LLAMA, GPT2 = Pair("llama", "sft", "lora"), Pair("gpt2", "sft", "full")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Pair, Prepared]:
    return {pair: prepared(tmp_path_factory.mktemp(str(pair)), pair) for pair in (LLAMA, GPT2)}


@pytest.fixture
def llama(runs: dict[Pair, Prepared], tmp_path: Path) -> Prepared:
    return runs[LLAMA].copy(tmp_path / "workspace")


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1 << 24, 64], ids=["whole", "chunks of a row"])
def test_loss_through_the_head_equals_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Loss and all gradients agree with logits held whole, in one chunk or in many."""
    monkeypatch.setattr("finetune_trainer.objectives.linear_cross_entropy.CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    plain = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((7, 5), (11, 5), (11,))]
    ours = [tensor.detach().clone().requires_grad_() for tensor in plain]
    targets = torch.randint(0, 11, (7,))
    with InDouble():
        expected = functional.cross_entropy(functional.linear(*plain), targets, reduction="sum")
        found = linear_cross_entropy(*ours, targets, torch.float64)
        (3 * expected).backward()
        (3 * found).backward()
    assert_close(found, expected, PASS)
    for theirs, mine in zip(plain, ours, strict=True):
        assert_close(mine.grad, theirs.grad, PASS)


@pytest.mark.parametrize("pair", [LLAMA, GPT2], ids=str)
def test_logits_at_learnt_positions_give_the_loss_of_all_logits(runs: dict[Pair, Prepared], pair: Pair) -> None:
    """A padded batch, judged at selected positions only, has the loss that transformers computes from labels."""
    trainer, rows = evaluating(runs[pair]), runs[pair].stage().rows("train")
    batch = trainer.objective.collate([rows[0], rows[1], rows[2]])
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["positions"] + 1] = batch["targets"]
    with torch.no_grad(), InDouble():
        expected = trainer.model(input_ids=batch["input_ids"], labels=labels).loss * batch["items"]
        assert_close(trainer.objective.compute_loss(trainer.model, batch).loss, expected, PASS)


def test_a_head_that_does_more_than_a_product_is_left_to_the_model(tmp_path: Path) -> None:
    """Gemma 2 squashes its logits: the loss is then taken from the model's own."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    def gemma(folder: Path) -> Path:
        size = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 16,
        }
        config = Gemma2Config(**size, num_key_value_heads=1, final_logit_softcapping=0.5, **tiny.byte_vocabulary())
        return tiny.save(folder, Gemma2ForCausalLM, config, tiny.byte_tokenizer(), 0)

    gemma(tmp_path / "model")
    run = prepared(tmp_path / "run", LLAMA)
    page = run.stage().page
    stage = dataclasses.replace(run.stage(), page=page.model_copy(update={"model_path": str(tmp_path / "model")}))
    trainer = assemble(stage)
    doubled(trainer.model).eval()
    assert not trainer.objective.plain_head
    rows = stage.rows("train")
    batch = trainer.objective.collate([rows[0], rows[1]])
    with torch.no_grad(), InDouble():
        logits = trainer.model(input_ids=batch["input_ids"]).logits.flatten(0, 1)[batch["positions"]]
        expected = functional.cross_entropy(logits, batch["targets"], reduction="sum")
        assert_close(trainer.objective.compute_loss(trainer.model, batch).loss, expected, PASS)


# --- device -----------------------------------------------------------------------------------------------------------


def test_a_pod_that_sees_no_gpu_does_not_train_on_the_cpu(llama: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold the GPU idle for days. A run of one's own machine has no image, and goes on."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    resources = llama.run.spec.resources.model_copy(update={"gpus": 1})
    spec = llama.run.spec.model_copy(update={"resources": resources})
    at_home = dataclasses.replace(llama, run=llama.run.model_copy(update={"spec": spec}))
    in_a_pod = dataclasses.replace(llama, run=at_home.run.model_copy(update={"trainer_image": "trainer:1"}))
    with pytest.raises(Failure, match=r"resources\.gpus") as refused:
        in_a_pod.train()
    assert (refused.value.reason, refused.value.code) == (Reason.GPU_UNAVAILABLE, ExitCode.INTERNAL)
    assert at_home.train().evaluation is not None


@pytest.mark.parametrize(("planned", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_every_attempt_computes_as_it_was_planned(tmp_path: Path, planned: str, dtype: torch.dtype) -> None:
    """`auto` was decided in prepare: another machine, or another moment, must not decide it anew."""
    stage = prepared(tmp_path, LLAMA, training={"precision": "auto"}).stage()
    plan = stage.page.plan.model_copy(update={"precision": planned})
    stage = dataclasses.replace(stage, page=stage.page.model_copy(update={"plan": plan}))
    assert assemble(stage).objective.dtype is dtype


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [LLAMA, GPT2], ids=str)
def test_packed_records_do_not_see_each_other(runs: dict[Pair, Prepared], pair: Pair) -> None:
    """Records in shared rows, of unequal length and with padding, lose exactly what they lose on rows of their own."""
    trainer = evaluating(runs[pair])
    records = [row[0] for row in some(runs[pair], 5)]
    with torch.no_grad(), InDouble():
        packed = loss_of(trainer.objective, trainer.model, [records[:3], records[3:]]).item()
        alone = sum(loss_of(trainer.objective, trainer.model, [[record]]).item() for record in records)
    assert_close(packed, alone, PASS)


def test_a_packed_run_trains_and_evaluates_unpacked(tmp_path: Path) -> None:
    """`packing: always` gives rows of several records; validation stays a record a row."""
    run = prepared(tmp_path, LLAMA, dataset={"packing": "always"}, training={"maxLength": 64, "maxSteps": 4})
    rows = run.stage().rows("train")
    assert any(len(rows[index]) > 1 for index in range(len(rows)))
    assert run.train().evaluation.tuned["loss"] < run.train().evaluation.base["loss"]


def test_accumulated_micro_batches_weigh_tokens_not_batches(runs: dict[Pair, Prepared], tmp_path: Path) -> None:
    """Eight records in one pass or in four give the same gradient, though their answers differ in length."""
    trainer = evaluating(runs[GPT2])
    rows = [
        [with_learnt(record, count)]
        for count, (record,) in zip((1, 1, 3, 2, 1, 3, 3, 1), some(runs[GPT2], 8), strict=True)
    ]
    with InDouble():
        whole = gradient_of(trainer, [rows])
        parts = gradient_of(trainer, [rows[at : at + 2] for at in range(0, 8, 2)])
    assert_close(parts, whole, 3 * PASS)


# --- endings ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """Weights that overflow after step 4: Diverged, exit 76, and the checkpoint of step 4 is sound."""

    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(math.inf)

    run = prepared(tmp_path, LLAMA, checkpoint={"everySteps": 1})
    trainer = run.trainer()
    trainer.add_callback(Spoil())
    with pytest.raises(Failure, match="step 5") as ended:
        follow(run.stage(), trainer)
    assert (ended.value.reason, ended.value.code) == (Reason.DIVERGED, ExitCode.DIVERGED)
    newest = max(run.workspace.checkpoints.glob("step-*"))
    assert newest.name == "step-00000004"
    assert all(torch.isfinite(tensor).all() for tensor in load_file(newest / "weights.safetensors").values())


def test_a_run_that_stops_improving_ends_early_with_its_best_weights(tmp_path: Path) -> None:
    """With a bar that no loss can clear, patience 2 ends the run at the third evaluation."""
    stopping = {"earlyStopping": {"patience": 2, "minDelta": 100}, "maxSteps": 40}
    run = prepared(tmp_path, LLAMA, training=stopping, evaluation={"everySteps": 1})
    run.train()
    state = results.read(run.workspace.result).state
    assert (state.finished, state.step) == ("early", 3)
    judged = {event.step: event.eval_loss for event in state.history if event.eval_loss is not None}
    assert state.best_step == min(judged, key=lambda step: judged[step])


def test_a_stop_during_an_evaluation_is_made_up_for(llama: Prepared, tmp_path: Path) -> None:
    """Asked to stop while it evaluates step 2, the run saves that step; the next attempt evaluates it and goes on."""
    expected = llama.copy(tmp_path / "other")
    expected.train()

    class StopInEvaluation(Progress):
        def update(self, **fields: Any) -> None:
            super().update(**fields)
            if fields.get("activity") == "evaluating" and self.snapshot().step == 2:
                stop.set()

    stop = StopRequest()
    with pytest.raises(Failure):
        llama.train(StopInEvaluation("train"), stop)
    llama.train()
    assert history(llama) == history(expected)
    assert weights(llama) == weights(expected)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over(llama: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a byte of the newest flipped, the run resumes from the one before, says so, and ends in the same weights."""
    spec = llama.run.spec.model_copy(
        update={"checkpoint": llama.run.spec.checkpoint.model_copy(update={"every_steps": 1, "every_minutes": None})}
    )
    often = dataclasses.replace(llama, run=llama.run.model_copy(update={"spec": spec}))
    expected = often.copy(tmp_path / "other")
    expected.train()
    stop = StopRequest()
    with pytest.raises(Failure):
        often.train(StopAfter(4, stop.set), stop)
    flip(often.workspace.checkpoints / "step-00000004/optimizer.safetensors")
    progress = Progress("train")
    with caplog.at_level(logging.WARNING):
        often.train(progress)
    assert "step-00000004 is damaged (optimizer.safetensors" in caplog.text
    assert progress.snapshot().resumed_from_step == 3
    assert weights(often) == weights(expected)


def test_a_checkpoint_of_another_run_is_refused(llama: Prepared) -> None:
    """Another job's uid, or another learning rate, on the same workspace: CheckpointMismatch; nothing is touched."""
    stop = StopRequest()
    with pytest.raises(Failure):
        llama.train(StopAfter(2, stop.set), stop)
    training = llama.run.spec.training.model_copy(update={"learning_rate": 1e-5})
    others = [
        llama.run.model_copy(update={"uid": "another"}),
        llama.run.model_copy(update={"spec": llama.run.spec.model_copy(update={"training": training})}),
    ]
    for other, what in zip(others, ("another job", "another objective, method or training"), strict=True):
        with pytest.raises(Failure, match=what) as refused:
            dataclasses.replace(llama, run=other).train()
        assert refused.value.reason is Reason.CHECKPOINT_MISMATCH
    assert (llama.workspace.checkpoints / "step-00000002").is_dir()


def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    """keep: 2 leaves the last two steps, and the weights that the run (or either of them) would go back to."""
    run = prepared(tmp_path, LLAMA, checkpoint={"everySteps": 1, "keep": 2})
    run.train()
    kept = {path.name for path in run.workspace.checkpoints.iterdir()}
    best = results.read(run.workspace.result).state.best_step
    assert {f"step-{STEPS - 1:08d}", f"step-{STEPS:08d}", f"best-{best:08d}", "baseline.json"} <= kept
    assert len([name for name in kept if name.startswith("step-")]) == 2


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_encoder_cannot_be_taught_to_write(tmp_path: Path) -> None:
    """sft on BERT is Unsupported, and the message offers classification."""
    with pytest.raises(Failure, match="choose classification") as refused:
        PlannedModel(tiny.bert(tmp_path / "model"), spec_of(tmp_path), [])
    assert refused.value.reason is Reason.UNSUPPORTED


def test_modules_that_match_nothing_are_named_with_those_that_exist(tmp_path: Path) -> None:
    """One wrong name among right ones is enough: PEFT alone would skip it in silence."""
    lora = {"lora": {"targetModules": ["q_proj", "query"]}}
    with pytest.raises(
        Failure, match=r"targetModules: 'query' matches nothing; linear layers are: down_proj, gate_proj"
    ) as refused:
        PlannedModel(tiny.llama(tmp_path / "model"), spec_of(tmp_path, method=lora), [])
    assert refused.value.reason is Reason.BAD_SPEC


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": "\x1b[31mEVIL"}}, "describes no model: TypeError: "),
        ({"rope_parameters": "x"}, "Validation error for field 'rope_parameters': TypeError: "),
        ({"hidden_size": "a"}, "Validation error for field 'hidden_size': TypeError: Field 'hidden_size' expected int"),
        ({"num_attention_heads": 0}, "cannot be read: ZeroDivisionError: "),
        ({"hidden_act": "evil"}, "describes no model: KeyError: 'evil'"),
        ({"dtype": "evil"}, "cannot be read: AttributeError: "),
        ({"text_config": 3}, "describes no model: AttributeError: "),
        ({"id2label": 3}, "cannot be read: AttributeError: "),
        ({"auto_map": 3}, "cannot be read: TypeError: "),
        ({"model_type": ["llama"]}, "names no model_type"),
    ],
)
def test_a_config_that_transformers_trips_over_is_the_models_fault(
    tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    """With whatever error: planned or loaded, the message names the model's file or folder, and is readable."""
    folder = tiny.llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | wrong))
    with pytest.raises(Failure) as planned:
        PlannedModel(folder, spec_of(tmp_path), [])
    assert planned.value.message.startswith(f"spec.model.uri: {folder}/config.json ")
    assert told in planned.value.message
    with pytest.raises(Failure, match=str(folder)) as loaded:
        loading.load(folder, Sft.head(()), pad_token_id=0)
    assert {planned.value.reason, loaded.value.reason} == {Reason.MODEL_INVALID}
    assert "\x1b" not in planned.value.message + loaded.value.message


def test_a_kind_of_model_that_transformers_does_not_know_is_unsupported(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "new"}')
    with pytest.raises(Failure, match=r"transformers [\d.]+ knows no 'new' models") as refused:
        PlannedModel(folder, spec_of(tmp_path), [])
    assert refused.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError(), Failure(Reason.PREEMPTED, "stop")])
def test_what_happens_to_a_model_while_it_is_read_is_not_its_fault(tmp_path: Path, error: Exception) -> None:
    """Memory that runs out and a signal that comes keep their own names."""
    with pytest.raises(type(error)) as caught, loading.reading(tmp_path, "cannot load"):
        raise error
    assert caught.value is error


def test_a_tokenizer_that_transformers_trips_over_is_the_models_fault(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": 3}))
    with pytest.raises(Failure, match=f"spec.model.uri: its tokenizer, as it is in {folder}, cannot") as refused:
        loading.tokenizer_of(folder)
    assert refused.value.reason is Reason.MODEL_INVALID


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A folder with pytorch_model.bin alone is ModelInvalid: a pickle could run code."""
    folder = tiny.llama(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Failure, match="a pickle") as refused:
        loading.load(folder, Sft.head(()), pad_token_id=0)
    assert refused.value.reason is Reason.MODEL_INVALID


def spec_of(folder: Path, **stanzas: Any) -> FineTuneJobSpec:
    places = {"model": {"uri": f"file://{folder}"}, "dataset": {"train": [{"uri": f"file://{folder}/x.jsonl"}]}}
    return FineTuneJobSpec.model_validate({**places, "output": {"uri": f"file://{folder}/out"}, **stanzas})


def evaluating(run: Prepared) -> FineTuneTrainer:
    """In double precision."""
    trainer = run.trainer()
    doubled(trainer.model).eval()
    return trainer


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def weights(run: Prepared) -> bytes:
    return (run.workspace.checkpoints / f"step-{STEPS:08d}/weights.safetensors").read_bytes()


def history(run: Prepared) -> list[tuple[int, float | None, float | None]]:
    events = results.read(run.workspace.result).state.history
    return [(event.step, event.loss, event.eval_loss) for event in events]


def test_the_stage_needs_prepared_data(llama: Prepared, tmp_path: Path) -> None:
    """On an empty workspace it says which stage to run first."""
    with pytest.raises(Failure, match="run `prepare` first") as refused:
        dataclasses.replace(llama, workspace=Workspace(tmp_path / "empty")).train()
    assert refused.value.reason is Reason.INPUT_UNAVAILABLE
