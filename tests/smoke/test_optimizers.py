"""`training.optimizer`: each learns, holds what it says it holds, and comes back from a checkpoint bit for bit.

Theory: a checkpoint restores what an optimizer puts into its state, and each puts other things there: 8-bit codes, code
tables shared by all parameters, plain numbers. What is lost or cast shows in the weights of the next step.
"""

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetune_api.reasons import Reason
from finetune_trainer.artifacts import result as results
from finetune_trainer.planning.memory import moment_bytes
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.training import checkpoints
from training import STEPS, Pair, Prepared, StopAfter, prepared

SMALL = 4096
"""Elements below which 8-bit moments are held in fp32."""


@pytest.fixture(scope="module", params=["adamw8bit", "adafactor"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Every parameter moves: matrices, vectors and embeddings, large and small."""
    training = {"optimizer": request.param, "weightDecay": 0.1}
    return prepared(tmp_path_factory.mktemp(request.param), Pair("llama", "sft", "full"), training=training)


def finished(run: Prepared, folder: Path, *, interrupted: bool) -> Prepared:
    """The run, trained on a workspace of its own: in one go, or with a SIGTERM after three steps."""
    attempt = run.copy(folder)
    if interrupted:
        with pytest.raises(Failure):
            attempt.train(StopAfter(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    progress = Progress("train")
    attempt.train(progress)
    assert progress.snapshot().resumed_from_step == (3 if interrupted else 0)
    return attempt


def last(run: Prepared) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and numbers of the last checkpoint."""
    folder = run.workspace.checkpoints / f"step-{STEPS:08d}"
    tensors = [load_file(folder / name) for name in (checkpoints.WEIGHTS, checkpoints.OPTIMIZER)]
    return tensors[0] | tensors[1], json.loads((folder / checkpoints.NUMBERS).read_bytes())


def test_it_learns_and_resumes_bit_for_bit(run: Prepared, tmp_path: Path) -> None:
    """Stopped after three of eight steps and resumed: the same weights, moments, counts and losses; the loss falls."""
    whole, parts = (finished(run, tmp_path / str(cut), interrupted=cut) for cut in (False, True))
    (tensors, numbers), (others, other_numbers) = last(whole), last(parts)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {n: t.dtype for n, t in others.items()}
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert numbers == other_numbers
    history = [[event.loss for event in results.read(end.workspace.result).state.history] for end in (whole, parts)]
    assert history[0] == history[1]
    losses = [loss for loss in history[0] if loss is not None]
    assert losses[-1] < losses[0]


def test_8_bit_moments_are_8_bit_and_those_of_embeddings_and_small_tensors_are_not(tmp_path: Path) -> None:
    """Two bytes a parameter in matrices, and a scale for each 256 of a moment."""
    run = prepared(tmp_path, Pair("llama", "sft", "full"), training={"optimizer": "adamw8bit", "maxSteps": 1})
    trainer = run.trainer()
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        state = trainer.optimizer.state[parameter]
        if parameter.numel() < SMALL or "embed_tokens" in name:
            assert {state["state1"].dtype, state["state2"].dtype} == {torch.float32}, name
        else:
            assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}, name
            assert state["absmax1"].numel() == -(-parameter.numel() // 256)


def test_adafactor_holds_a_row_and_a_column_a_matrix(tmp_path: Path) -> None:
    """No first moment; of the second, height plus width numbers instead of height times width."""
    run = prepared(tmp_path, Pair("llama", "sft", "full"), training={"optimizer": "adafactor", "maxSteps": 1})
    trainer = run.trainer()
    trainer.train()
    for parameter in trainer.model.parameters():
        held = [
            value for value in trainer.optimizer.state[parameter].values() if torch.is_tensor(value) and value.dim()
        ]
        assert sum(value.numel() for value in held) == sum(parameter.shape)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor"])
def test_the_memory_plan_counts_what_is_held(tmp_path: Path, optimizer: str) -> None:
    """Byte for byte, but for steps, flags and the code tables that all parameters share."""
    run = prepared(tmp_path, Pair("llama", "sft", "full"), training={"optimizer": optimizer, "maxSteps": 1})
    trainer = run.trainer()
    trainer.train()
    embeddings = {id(module.weight) for module in trainer.model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in trainer.model.named_parameters():
        state = trainer.optimizer.state[parameter].items()
        held = [value for key, value in state if torch.is_tensor(value) and value.dim() and "qmap" not in key]
        planned = moment_bytes(optimizer, parameter, id(parameter) in embeddings)
        assert sum(value.nbytes for value in held) == planned, name


def test_paged_moments_without_a_gpu_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster's schema refuses gpus: 0; a run of one's own machine that asks for a GPU is told before it loads."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    spec = {"training": {"optimizer": "pagedAdamw8bit"}, "resources": {"gpus": 1}}
    run = prepared(tmp_path, Pair("llama", "sft", "lora"), **spec)
    with pytest.raises(Failure, match=r"spec\.training\.optimizer: .*choose adamw8bit") as refused:
        run.train()
    assert refused.value.reason is Reason.UNSUPPORTED


def test_paged_moments_go_back_into_pages(tmp_path: Path) -> None:
    """What is restored lies where the optimizer puts its own moments, and the next step is what it would have been."""
    first, second = nn.Linear(128, 64, bias=False), nn.Linear(128, 64, bias=False)
    second.load_state_dict(first.state_dict())
    pages: list[torch.Tensor] = []

    class Paged(bitsandbytes.optim.PagedAdamW8bit):
        """Remembers what it gave out: there are no real pages without a GPU."""

        def get_state_buffer(self, *arguments: Any, **named: Any) -> torch.Tensor:
            pages.append(super().get_state_buffer(*arguments, **named))
            return pages[-1]

    def step(layer: nn.Linear, optimizer: Paged) -> torch.Tensor:
        layer.weight.grad = torch.sin(torch.arange(layer.weight.numel(), dtype=torch.float32)).view_as(layer.weight)
        optimizer.step()
        return layer.weight.detach().clone()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is paged here
        optimizer, restored = (Paged(layer.parameters(), lr=1e-2) for layer in (first, second))
        second.load_state_dict({"weight": step(first, optimizer)})
        tensors, numbers = checkpoints._optimizer_fields(first, optimizer)
        pages.clear()
        state = {name.rpartition("/")[2]: value for name, value in {**tensors, **numbers}.items()}
        groups = optimizer.state_dict()["param_groups"]
        checkpoints._load_state(restored, {"state": {0: state}, "param_groups": groups})
        fields = restored.state[second.weight]
        assert [page.data_ptr() for page in pages] == [fields[name].data_ptr() for name in ("state1", "state2")]
        assert torch.equal(step(second, restored), step(first, optimizer))
