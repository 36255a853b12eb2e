"""The state of a run on disk: no half of it after a crash, verified before it is believed, restored bit for bit.

Tensors are safetensors, the rest is JSON: nothing that could run code is ever loaded. It decides what a checkpoint
holds and which are kept; when to write one is decided elsewhere.

`step-00000120/`  weights.safetensors (trainable parameters) · method.safetensors (what else the method remembers, where
                  it does) · optimizer.safetensors · random.safetensors · numbers.json (the optimizer's groups and
                  plain fields, schedule, generators) · state.json (RunState) · trainer_state.json (read by
                  transformers.Trainer) · manifest.json (sha256 of the others)
`best-00000100/`  weights.safetensors · manifest.json
"""

import json
import logging
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import new_folder, sha256
from finetune_trainer.training.state import Identity, RunState, check_identity

log = logging.getLogger(__name__)

WEIGHTS, OPTIMIZER, RANDOM = "weights.safetensors", "optimizer.safetensors", "random.safetensors"
METHOD = "method.safetensors"
NUMBERS, STATE, TRAINER_STATE, MANIFEST = "numbers.json", "state.json", "trainer_state.json", "manifest.json"
STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    folder: Path
    state: RunState


class Store:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, identity: Identity, keep: int) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; raises Failure if it belongs to another run."""
        for folder in reversed(self._steps()):
            fault = _fault(folder)
            if fault is None:
                self._check_identity(folder)
                return Checkpoint(folder, RunState.model_validate_json((folder / STATE).read_bytes()))
            log.warning("checkpoint %s is damaged (%s): falling back to the one before", folder.name, fault)
        return None

    def save(self, trainer: Any, state: RunState) -> Checkpoint:
        """Write the whole state of `trainer`, a FineTuneTrainer at a step boundary."""
        folder = self.folder / f"step-{state.step:08d}"
        with new_folder(folder) as draft:
            save_file(trainable_tensors(trainer.model), draft / WEIGHTS)
            if memory := trainer.method.memory(trainer.model):
                save_file({name: tensor.contiguous() for name, tensor in memory.items()}, draft / METHOD)
            tensors, fields = _optimizer_fields(trainer.model, trainer.optimizer)
            save_file(tensors, draft / OPTIMIZER)
            save_file(_torch_random(), draft / RANDOM)
            (draft / STATE).write_text(state.model_dump_json(by_alias=True))
            groups = trainer.optimizer.state_dict()["param_groups"]
            schedule = trainer.lr_scheduler.state_dict()
            extra = {"groups": groups, "fields": fields, "schedule": schedule, "random": _python_random()}
            (draft / NUMBERS).write_text(json.dumps(extra))
            trainer.state.save_to_json(str(draft / TRAINER_STATE))
            self._seal(draft)
        self._prune(state)
        return Checkpoint(folder, state)

    def save_best(self, model: nn.Module, step: int) -> None:
        """Write the weights alone, for later use as the result."""
        with new_folder(self._best(step)) as draft:
            save_file(trainable_tensors(model), draft / WEIGHTS)
            self._seal(draft)

    def load_best(self, model: nn.Module, step: int) -> None:
        fault = _fault(self._best(step))
        if fault is not None:
            raise Failure(Reason.INTERNAL_ERROR, f"the best weights, of step {step}, are damaged: {fault}")
        _copy_into(model, load_file(self._best(step) / WEIGHTS))

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:08d}"

    def _seal(self, draft: Path) -> None:
        paths = sorted(draft.iterdir())
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            files = {path.name: digest for path, digest in zip(paths, pool.map(sha256, paths), strict=True)}
        (draft / MANIFEST).write_text(json.dumps({"identity": self.identity.to_wire(), "files": files}, indent=1))

    def _steps(self) -> list[Path]:
        return sorted(
            (path for path in self.folder.glob("step-*") if STEP_FOLDER.fullmatch(path.name)),
            key=lambda path: path.name,
        )

    def _check_identity(self, folder: Path) -> None:
        theirs = json.loads((folder / MANIFEST).read_bytes())["identity"]
        check_identity(Identity.model_validate(theirs), self.identity, folder)

    def _prune(self, state: RunState) -> None:
        """Keep the newest, and every best that one of them would go back to."""
        steps = self._steps()
        for folder in steps[: -self.keep]:
            shutil.rmtree(folder, ignore_errors=True)
        wanted = {state.best_step} | {_best_step_of(folder) for folder in steps[-self.keep :]}
        for left in self.folder.glob("*.tmp-*"):  # of an attempt that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        for folder in self.folder.glob("best-*"):
            if folder not in {self._best(step) for step in wanted if step is not None}:
                shutil.rmtree(folder, ignore_errors=True)


def restore_weights(checkpoint: Checkpoint, trainer: Any) -> None:
    """Put the trainable parameters back, and what the method remembers."""
    _copy_into(trainer.model, load_file(checkpoint.folder / WEIGHTS))
    if (checkpoint.folder / METHOD).exists():
        trainer.method.remember(trainer.model, load_file(checkpoint.folder / METHOD))


def restore_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
    """Put back moments and step counts by the parameters' names, and the schedule."""
    numbers = json.loads((checkpoint.folder / NUMBERS).read_bytes())
    state: dict[int, dict[str, Any]] = {}
    order = {name: index for index, name in enumerate(_names_in_order(model, optimizer))}
    for key, value in (load_file(checkpoint.folder / OPTIMIZER) | numbers["fields"]).items():
        name, _, field = key.rpartition("/")
        state.setdefault(order[name], {})[field] = value
    _load_state(getattr(optimizer, "optimizer", optimizer), {"state": state, "param_groups": numbers["groups"]})
    scheduler.load_state_dict(numbers["schedule"])


def restore_random(checkpoint: Checkpoint) -> None:
    numbers = json.loads((checkpoint.folder / NUMBERS).read_bytes())["random"]
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = numbers["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    tensors = load_file(checkpoint.folder / RANDOM)
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def trainable_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters, by name; tied ones once."""
    return {
        name: parameter.detach().contiguous() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def _copy_into(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def _optimizer_fields(model: nn.Module, optimizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The optimizer's state by `<parameter>/<field>`: tensors, and what are plain numbers."""
    names = _names_in_order(model, optimizer)
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, float] = {}
    places: set[int] = set()
    for index, state in optimizer.state_dict()["state"].items():
        for field, value in _flat(state):
            if isinstance(value, torch.Tensor):
                # All 8-bit moments share their code tables; safetensors takes no tensor twice.
                tensors[f"{names[index]}/{field}"] = value.clone() if value.data_ptr() in places else value.contiguous()
                places.add(value.data_ptr())
            else:
                numbers[f"{names[index]}/{field}"] = value
    return tensors, numbers


def _flat(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields of one parameter. bitsandbytes hands out some in a dict of their own, and takes them back without it."""
    for field, value in state.items():
        yield from value.items() if isinstance(value, dict) else [(field, value)]


def _load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    # Paged moments may not fit the device at once: they go to new pages, and its first step moves the rest.
    paged: Any = optimizer
    paged.load_state_dict(state, move_to_device=False)
    for parameter, fields in paged.state.items():
        for field in ("state1", "state2"):
            page = paged.get_state_buffer(parameter, dtype=fields[field].dtype)
            fields[field] = page.copy_(fields[field])


def _names_in_order(model: nn.Module, optimizer: Any) -> list[str]:
    """Names of the optimizer's parameters as its state numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _torch_random() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _python_random() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def _fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder; None: nothing."""
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_bytes())["files"]
        return next(_mismatches(folder, files.items()), None)
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST}: {error}"


def _mismatches(folder: Path, files: Iterable[tuple[str, str]]) -> Any:
    for name, digest in files:
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif sha256(folder / name) != digest:
            yield f"{name} is not what was written"


def _best_step_of(folder: Path) -> int | None:
    try:
        best: int | None = json.loads((folder / STATE).read_bytes()).get("bestStep")
        return best
    except (OSError, ValueError):
        return None
