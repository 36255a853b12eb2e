"""An objective takes the loss of the model that it is given, with whatever is wrapped around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tolerance import PASS, assert_close
from training import Pair, loss_of, prepared, some

FAMILIES = [("llama", "sft"), ("t5", "sft"), ("llama", "classification"), ("bert", "classification")]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of processes of which there is only this one."""
    place = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(("family", "objective"), FAMILIES, ids="-".join)
def test_the_loss_is_that_of_the_wrapper_that_is_given(
    family: str, objective: str, one_process: None, tmp_path: Path
) -> None:
    """Its pass is the wrapper's, which shares gradients between processes; loss and gradient are the model's own."""
    run = prepared(tmp_path, Pair(family, objective, "lora"))
    trainer, rows = run.trainer(), some(run, 4)
    passes: list[nn.Module] = []
    wrapped = DistributedDataParallel(trainer.model.eval())
    wrapped.register_forward_pre_hook(lambda module, _: passes.append(module))
    results = {}
    for model in (trainer.model, wrapped):
        model.zero_grad()
        loss = loss_of(trainer.objective, model, rows)
        loss.backward()
        gradients = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
        results[model is wrapped] = [loss.detach(), *gradients]
    assert passes == [wrapped]
    assert len(results[True]) > 1
    for expected, found in zip(results[False], results[True], strict=True):
        assert_close(found, expected, PASS)
