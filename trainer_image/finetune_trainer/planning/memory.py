"""How much memory a training run needs, before a weight is loaded and a GPU is held.

Weights, gradients and the optimizer's moments are counted. What a pass needs beside them is rehearsed: the model, with
its method applied, computes the objective's own loss and its gradient on tensors without data, so that whatever
autograd keeps for a method, an architecture or gradient checkpointing is counted, and nothing is listed here for each.

It knows no method and no objective by name, and does not decide what fits.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.training import Training
from finetune_api.status import Memory
from finetune_trainer.methods import METHODS
from finetune_trainer.models import device, loading
from finetune_trainer.models.loading import Head, LoadedModel, blank, config_of, fresh_modules
from finetune_trainer.objectives import OBJECTIVES
from finetune_trainer.planning.simulation import Stage, imitate_quantized
from finetune_trainer.planning.workload import Shape

CPU_RUNTIME = 860 << 20
"""Resident memory of the stage with its libraries and no model (measured by benchmarks/memory_plan.py)."""
CPU_HEAP, CPU_HOLES = 0.6, 0.27
"""What the C library's heap takes beside what lives in it at the peak of a pass, as a share of that; with gradient
checkpointing, where little lives, as a share of what the forward pass freed between tensors that stay, if that is
more. Both are fits to the cases of the same benchmark."""
GPU_RUNTIME = 1 << 30
"""CUDA's context, cuBLAS' workspace and what the caching allocator cannot use (not measured here)."""
SMALL, BLOCK = 4096, 256
"""Elements below which bitsandbytes keeps moments in fp32, and of a block that shares a scale."""
EVALUATED = 2
"""Rows of an evaluation batch for each row of a micro-batch."""


class PlannedModel:
    """The model of a run, to be counted and rehearsed. Raises Failure for a spec that cannot be trained."""

    def __init__(self, folder: Path, spec: FineTuneJobSpec, labels: list[str]) -> None:
        self._on_gpu, self._trains = spec.resources.gpus > 0, spec.training.max_steps != 0
        self.arithmetic = arithmetic(spec)
        dtype = self.arithmetic.dtype
        base = blank_base(folder, spec, labels)
        method = METHODS[spec.method.kind]
        quantized = method.quantized_bytes(base, spec.method.options)
        pretrained = {id(parameter): parameter for parameter in base.model.parameters()}
        packed = {id(layer.weight) for layer in quantized}
        model: Any = applied(base, spec, labels)
        self.total = _count(({id(tensor): tensor for tensor in model.parameters()} | pretrained).values())
        self.trainable = _count(parameter for parameter in model.parameters() if parameter.requires_grad)
        if dtype is not torch.float32:
            loading.narrow_frozen(model, dtype)
        self._fixed = _fixed(model, {id(layer.weight): size for layer, size in quantized.items()}, spec.training)
        used = {id(parameter) for parameter in model.parameters()} - packed
        self._replaced = 4 * _count(parameter for key, parameter in pretrained.items() if key not in used)
        for layer in quantized:
            imitate_quantized(layer)
        self._recomputes = spec.training.gradient_checkpointing
        if self._recomputes:
            model.activation_checkpointing_enable()
        self._model, self._method = model, method
        self._objective = OBJECTIVES[spec.objective.kind].suited(model.config)(model, 0, dtype)
        self._stage = Stage(model, dtype, self._on_gpu)

    @property
    def least(self) -> int:
        """Bytes that no batch is small enough to go below."""
        return self._fixed.total + (GPU_RUNTIME if self._on_gpu else CPU_RUNTIME)

    def memory(self, shape: Shape) -> Memory:
        """The peak of the train stage, in bytes, where no micro-batch is larger than `shape`."""
        fixed, gradients = self._fixed, self._fixed.gradients_bytes
        kept = step = freed = 0
        if self._trains:
            kept, step, freed = self._stage.train(self._batch(shape, shape.rows), self._loss, shape.accumulates)
        evaluation = self._stage.evaluate(self._batch(shape, EVALUATED * shape.rows), self._loss)
        # In a single micro-batch gradients appear while activations go; at the optimizer's step only they are there.
        passing = max(gradients + step if shape.accumulates else step, gradients, evaluation)
        rest = passing - gradients
        if not self._on_gpu:
            holes = CPU_HOLES * freed if self._recomputes else 0
            # Of the full weights that others were built from, little goes back before the peak.
            rest += int(max(CPU_HEAP * passing, holes)) + self._replaced
        activations = min(kept, rest)
        runtime = GPU_RUNTIME if self._on_gpu else CPU_RUNTIME
        return fixed.model_copy(
            update={"activations_bytes": activations, "temporary_bytes": rest - activations, "runtime_bytes": runtime}
        )

    def _batch(self, shape: Shape, rows: int) -> Any:
        lengths = [shape.length // 2, shape.length - shape.length // 2] if shape.packed else [shape.length]
        row = [_record(length, shape.answer) for length in lengths]
        return self._objective.collate([row] * rows)

    def _loss(self, batch: Any) -> torch.Tensor:
        loss = self._objective.compute_loss(self._model, batch).loss
        penalty = self._method.penalty(self._model)
        return loss if penalty is None else loss + penalty


def arithmetic(spec: FineTuneJobSpec) -> device.Arithmetic:
    """That of the run's products: `auto` means bf16 on a GPU, and on the CPU what this machine would take."""
    if spec.resources.gpus:
        return device.Arithmetic(torch.float32 if spec.training.precision == "fp32" else torch.bfloat16)
    return device.arithmetic(spec.training.precision, torch.device("cpu"))


def _fixed(model: nn.Module, quantized: dict[int, int], training: Training) -> Memory:
    """The parts that do not depend on the data; `quantized` says by id what weights take that are held otherwise."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    moving = [tensor for tensor in tensors.values() if tensor.requires_grad]
    moved = sum(tensor.nbytes for tensor in moving)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    moments = sum(moment_bytes(training.optimizer, tensor, id(tensor) in embeddings) for tensor in moving)
    still = sum(quantized.get(key, tensor.nbytes) for key, tensor in tensors.items() if not tensor.requires_grad)
    return Memory(
        frozen_weights_bytes=still,
        trainable_weights_bytes=moved,
        gradients_bytes=0 if training.max_steps == 0 else moved,
        optimizer_bytes=0 if training.max_steps == 0 else moments,
    )


def moment_bytes(optimizer: str, parameter: torch.Tensor, is_embedding: bool) -> int:
    """What `spec.training.optimizer` keeps for a parameter; pages count, though they may be moved to the host."""
    count = parameter.numel()
    if optimizer == "adafactor" and parameter.dim() > 1:
        return 4 * (count // parameter.shape[-1] + count // parameter.shape[-2])
    if optimizer == "adafactor":
        return 4 * count
    if optimizer == "adamw" or is_embedding or count < SMALL:
        return 2 * 4 * count
    return 2 * (count + 4 * math.ceil(count / BLOCK))


def _record(length: int, answer: int) -> dict[str, Any]:
    """One that is learnt from beginning to end, or an input and its answer."""
    learnt = np.arange(length + answer) >= length if answer else np.ones(length, np.bool_)
    return {"input_ids": np.zeros(length + answer, np.int32), "loss_mask": learnt, "label": 0}


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def blank_base(folder: Path, spec: FineTuneJobSpec, labels: list[str]) -> LoadedModel:
    """The base model of a run, as `load` would give it, without memory for its parameters."""
    head = _head(spec, labels, config_of(folder))
    base = blank(folder, head)
    return LoadedModel(base, fresh_modules(base, head))


def applied(base: LoadedModel, spec: FineTuneJobSpec, labels: list[str]) -> nn.Module:
    """A blank base with the run's method applied; raises Failure where that cannot be."""
    steps = 0 if spec.training.max_steps == 0 else 1  # how many there are does not matter here, but that there are
    method, options = METHODS[spec.method.kind], spec.method.options
    if spec.output.merge:
        method.check_merge(base, options)
    with torch.device("meta"):
        return method.apply(base, options, _head(spec, labels, base.model.config), steps)


def _head(spec: FineTuneJobSpec, labels: list[str], config: PretrainedConfig) -> Head:
    return OBJECTIVES[spec.objective.kind].suited(config).head(tuple(labels))
