"""Every objective with every method, on decoders, an encoder and an encoder-decoder: it learns, it moves what it
should, it can be interrupted, and what it publishes is what it trained.

Theory: objectives and methods know nothing of each other, so each test is written once and holds for all pairs.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.exits import ExitCode
from finetune_api.status import EvaluationResult
from finetune_trainer.artifacts import result as results
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.qalora import QuantizedLinear
from finetune_trainer.planning.memory import PlannedModel
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.stages.publish import publish
from finetune_trainer.training import checkpoints
from finetune_trainer.training.trainer import FineTuneTrainer
from tolerance import PASS, InDouble, assert_close, doubled
from training import PAIRS, STEPS, Pair, Prepared, StopAfter, cut, gradient_of, is_core, loss_of, prepared, some

LATEST = f"step-{STEPS:08d}"


@dataclass(frozen=True)
class Finished:
    """An uninterrupted run."""

    prepared: Prepared
    """As it was before: on a workspace of its own."""
    trained: Prepared
    evaluation: EvaluationResult


@pytest.fixture(
    scope="module",
    params=[pytest.param(pair, id=str(pair), marks=() if is_core(pair) else pytest.mark.matrix) for pair in PAIRS],
)
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.param


@pytest.fixture(scope="module")
def finished(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp(str(pair))
    before = prepared(folder, pair)
    trained = before.copy(folder / "trained")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Finished(before, trained, trained.train().evaluation)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_training_lowers_the_loss(finished: Finished) -> None:
    """The last weights explain the training data better than the first; kept are those that validation liked best."""
    history = results.read(finished.trained.workspace.result).state.history
    losses = [event.loss for event in history if event.loss is not None]
    assert len(losses) == STEPS
    rows = finished.trained.stage().rows("train")
    before, _ = finished.trained.trainer().assess(rows, lambda: None)
    trainer = tuned(finished)
    after, _ = trainer.assess(rows, lambda: None)
    assert after["loss"] < before["loss"]
    judged = {
        event.step: event.eval_loss
        for event in history
        if event.eval_loss is not None and trainer.method.can_be_kept(trainer.model, event.step)
    }
    assert finished.evaluation.best_step == min(judged, key=lambda step: judged[step])
    assert finished.evaluation.tuned != finished.evaluation.base


def test_the_artifact_is_the_model_that_was_measured(finished: Finished) -> None:
    """The files in the result, over a freshly loaded base, score exactly what the report says of the tuned model."""
    trained = finished.trained
    trainer = trained.trainer()
    with torch.no_grad():  # a fresh head must not survive by chance
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    trainer.model = reopened(trained, trainer)
    metrics, _ = trainer.assess(trained.stage().rows("test"), lambda: None)
    reported = finished.evaluation.tuned
    if trained.run.spec.method.ada_lora:  # ranks that were pruned are not in the file: sums of fewer terms
        assert_close(metrics["loss"], reported["loss"], PASS, computed_in=torch.float32)
    else:
        assert metrics == reported


def test_exactly_the_parameters_of_the_method_move(finished: Finished) -> None:
    """Whatever requires a gradient changes, everything else keeps every bit, and prepare has counted the same."""
    trainer = finished.prepared.trainer()
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    run = finished.prepared.run
    page = finished.prepared.stage().page
    planned = PlannedModel(Path(page.model_path), run.spec, page.labels)
    sizes = [(size(parameter), parameter.requires_grad) for parameter in trainer.model.parameters()]
    packed = sum(2 * layer.codes.numel() for layer in trainer.model.modules() if isinstance(layer, QuantizedLinear))
    assert planned.total == sum(count for count, _ in sizes) + packed
    assert planned.trainable == sum(count for count, moves in sizes if moves)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(finished: Finished, tmp_path: Path) -> None:
    """SIGTERM after three of eight steps, with dropout and accumulation: the same weights, moments and losses."""
    again = finished.prepared.copy(tmp_path / "workspace")
    with pytest.raises(Failure) as stopped:
        again.train(StopAfter(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stopped.value.code == ExitCode.STOPPED
    assert (again.workspace.checkpoints / "step-00000003").is_dir()
    progress = Progress("train")
    report = again.train(progress)
    assert progress.snapshot().resumed_from_step == 3
    assert report.evaluation == finished.evaluation
    assert states(again) == states(finished.trained)
    assert losses(again) == losses(finished.trained)


def test_an_evaluation_between_two_steps_changes_no_gradient(finished: Finished) -> None:
    """Train, evaluate, train: the second gradient, dropout included, is what it is without the evaluation."""
    trainer, rows = tuned(finished), some(finished.trained, 4)
    trainer.model.train()
    torch.manual_seed(7)
    expected = gradient_of(trainer, [rows])
    torch.manual_seed(7)
    trainer.assess(finished.trained.stage().rows("validation"), lambda: None)
    assert torch.equal(gradient_of(trainer, [rows]), expected)


def test_a_record_scores_the_same_alone_and_in_a_padded_batch(finished: Finished) -> None:
    """Padding is never seen: the loss of a batch is the sum of its records' losses, whatever their lengths."""
    trainer = tuned(finished)
    doubled(trainer.model).eval()
    rows = [[cut(record, length)] for length, (record,) in zip((9, 14, 6), some(finished.trained, 3), strict=True)]
    with torch.no_grad(), InDouble():
        together = loss_of(trainer.objective, trainer.model, rows).item()
        alone = sum(loss_of(trainer.objective, trainer.model, [row]).item() for row in rows)
    assert_close(together, alone, PASS)


def test_generation_with_a_cache_equals_whole_passes(pair: Pair, finished: Finished) -> None:
    """At each step the logits of a pass over all that was said so far."""
    trainer = tuned(finished)
    writes = trainer.objective.head(tuple(finished.trained.stage().page.labels)).generates
    assert writes == (pair.objective == "sft")
    if not writes:
        return
    model = doubled(trainer.model).eval()
    ids = torch.tensor([finished.trained.stage().rows("test")[0][0]["input_ids"][:6].tolist()])
    with torch.no_grad(), InDouble():
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5, do_sample=False,
            use_cache=True, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        for step, logits in enumerate(made.logits):
            said = made.sequences[:, : made.sequences.shape[1] - len(made.logits) + step]
            inputs = {"input_ids": ids, "decoder_input_ids": said} if pair.model == "t5" else {"input_ids": said}
            assert_close(logits, model(**inputs, use_cache=False).logits[:, -1], PASS)


def test_a_finished_run_is_not_trained_again(finished: Finished) -> None:
    """A retried train returns the same report at once and touches nothing."""
    page = finished.trained.workspace.result / results.PAGE
    written = page.stat().st_mtime_ns
    progress = Progress("train")
    assert finished.trained.train(progress).evaluation == finished.evaluation
    assert progress.snapshot().activity == "starting"
    assert page.stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def published(finished: Finished) -> Path:
    run, workspace = finished.trained.run, finished.trained.workspace
    publish(run, workspace, Progress("publish"))
    return run.locate(run.spec.output.uri)


@pytest.fixture(scope="module")
def readers() -> Iterator[dict[str, "FreshPython"]]:
    """Fresh interpreters by the library that they read artifacts with."""
    interpreters = {"upstream": FreshPython(), "ours": FreshPython()}
    yield interpreters
    for interpreter in interpreters.values():
        interpreter.close()


@pytest.mark.slow
def test_the_card_loads_the_artifact_in_a_fresh_process(
    finished: Finished, published: Path, readers: dict[str, "FreshPython"]
) -> None:
    """The README's code, in a fresh process, gives logits with no difference at all; where upstream libraries know the
    method, that process never sees our package."""
    code = (published / "README.md").read_text().split("```python\n")[1].split("```")[0]
    ours = METHODS[finished.trained.run.spec.method.kind].loader == "finetune_trainer"
    ids = finished.trained.stage().rows("test")[0][0]["input_ids"].tolist()
    theirs = readers["ours" if ours else "upstream"].logits(published, code, ids)
    assert theirs["imports"] is ours
    model = reopened(finished.trained, finished.trained.trainer()).eval()
    with torch.no_grad():
        logits = model(**dict.fromkeys(theirs["inputs"], torch.tensor([ids]))).logits
    assert torch.equal(torch.tensor(theirs["logits"]), logits)


class FreshPython:
    """One fresh interpreter for many artifacts, started when the first comes: to import torch anew for each takes
    minutes."""

    LOOP = (
        "import json, os, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "for line in sys.stdin:\n"
        "    task = json.loads(line); os.chdir(task['folder']); names = {}\n"
        "    exec(task['code'], names)\n"
        "    model, ids = names['model'].eval(), torch.tensor([task['ids']])\n"
        "    inputs = ['input_ids'] + ['decoder_input_ids'] * model.config.is_encoder_decoder\n"
        "    with torch.no_grad(): logits = model(**dict.fromkeys(inputs, ids)).logits\n"
        "    answer = {'logits': logits.tolist(), 'inputs': inputs, 'imports': 'finetune_trainer' in sys.modules}\n"
        "    print('ANSWER', json.dumps(answer), flush=True)\n"
    )

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def logits(self, folder: Path, code: str, ids: list[int]) -> dict[str, Any]:
        """Those of the model that `code` calls `model`, and whether our package is imported by now."""
        if self._process is None:
            command = [sys.executable, "-c", self.LOOP]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process.stdin.write(json.dumps({"folder": str(folder), "code": code, "ids": ids}) + "\n")
        self._process.stdin.flush()
        answer = next(line for line in self._process.stdout if line.startswith("ANSWER "))
        return json.loads(answer.removeprefix("ANSWER "))

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(timeout=60)


def tuned(finished: Finished) -> FineTuneTrainer:
    """With the weights of the last step."""
    trainer, stage = finished.trained.trainer(), finished.trained.stage()
    checkpoints.restore_weights(checkpoints.Store(stage.workspace.checkpoints, stage.identity, 2).latest(), trainer)
    return trainer


def size(parameter: torch.Tensor) -> int:
    """Its elements: two share a byte where they are held in 4 bits."""
    return (parameter.quant_state.shape if hasattr(parameter, "quant_state") else parameter.shape).numel()


def reopened(trained: Prepared, trainer: FineTuneTrainer) -> Any:
    """The artifact in the result folder, over the base model as it was while it learnt."""
    page, chosen = trained.stage().page, trained.run.spec.method
    method, head = METHODS[chosen.kind], trainer.objective.head(tuple(page.labels))
    base = method.load(Path(page.model_path), head, page.pad_token_id, chosen.options, trainer.objective.dtype)
    return method.reopen(base, trained.workspace.result / results.ARTIFACT)


def states(run: Prepared) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, weights and optimizer, as bytes."""
    folder = run.workspace.checkpoints / LATEST
    files = [
        load_file(folder / name) for name in ("weights.safetensors", "optimizer.safetensors", "random.safetensors")
    ]
    return {name: tensor.numpy().tobytes() for tensors in files for name, tensor in tensors.items()}


def losses(run: Prepared) -> list[tuple[int, float | None, float | None]]:
    history = results.read(run.workspace.result).state.history
    return [(event.step, event.loss, event.eval_loss) for event in history]
