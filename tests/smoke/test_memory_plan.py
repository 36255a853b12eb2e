"""The memory plan: counted parts equal closed formulas, rehearsed ones follow the shape, what cannot fit is refused.

Estimates are compared with measured peaks by benchmarks/memory_plan.py.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from finetune_api.quantities import bytes_of, gibibytes
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.qlora import four_bit_bytes
from finetune_trainer.planning.memory import CPU_HOLES, PlannedModel
from finetune_trainer.planning.micro_batch import fitted, largest
from finetune_trainer.planning.simulation import Stage
from finetune_trainer.planning.workload import Shape, Workload
from finetune_trainer.runtime.failures import Failure

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}  # fmt: skip
DEEP = LLAMA_8B | {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 64, "num_attention_heads": 4,
                   "num_key_value_heads": 4, "num_hidden_layers": 16}  # fmt: skip
LINEAR = 2 * sum(a * b for a, b in [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)])
"""Weights of the linear layers in the tiny Llama's two blocks."""
LORA = 2 * 4 * sum(a + b for a, b in [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)])
"""Parameters of rank 4 beside them."""
EMBEDDINGS, NORMS, ROTARY = 259 * 64, 5 * 64, 2 * 8
"""Words and output layer have as many each; frequencies of rotary positions are kept twice."""
SHAPE = Shape(rows=2, length=32)
ANSWERS = {"llama": 0, "gpt2": 0, "t5": 16}
"""Tokens of an answer beside an input, by model."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for make in (tiny.llama, tiny.gpt2, tiny.bert, tiny.t5):
        make(folder / make.__name__)
    for name, config in {"8b": LLAMA_8B, "deep": DEEP}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def spec_of(method: dict[str, Any], **stanzas: Any) -> FineTuneJobSpec:
    spec = {
        "model": {"uri": "file:///model"},
        "dataset": {"train": [{"uri": "file:///data.jsonl"}]},
        "output": {"uri": "file:///output"},
        "method": method,
        "training": {"precision": "fp32"} | stanzas.pop("training", {}),
        "resources": {"gpus": 1} | stanzas.pop("resources", {}),
    }
    return FineTuneJobSpec.model_validate(spec | stanzas)


def planned(folder: Path, method: dict[str, Any], **stanzas: Any) -> PlannedModel:
    return PlannedModel(folder, spec_of(method, **stanzas), [])


# --- what is counted ------------------------------------------------------------------------------------------------


def test_full_fine_tuning_takes_sixteen_bytes_a_parameter(models: Path) -> None:
    """fp32 weights, gradients and two moments: 4 + 4 + 8."""
    model = planned(models / "llama", {"full": {}})
    parameters = LINEAR + 2 * EMBEDDINGS + NORMS
    memory = model.memory(SHAPE)
    assert (model.total, model.trainable) == (parameters, parameters)
    assert (memory.trainable_weights_bytes, memory.gradients_bytes) == (4 * parameters, 4 * parameters)
    assert memory.optimizer_bytes == 8 * parameters
    assert memory.frozen_weights_bytes == 4 * ROTARY


def test_frozen_linear_layers_are_held_in_bf16(models: Path) -> None:
    """The output layer too; embeddings and norms stay in fp32, and so do adapters."""
    memory = planned(models / "llama", {"lora": {"rank": 4}}, training={"precision": "bf16"}).memory(SHAPE)
    assert memory.frozen_weights_bytes == 2 * (LINEAR + EMBEDDINGS) + 4 * (EMBEDDINGS + NORMS + ROTARY)
    assert memory.trainable_weights_bytes == memory.gradients_bytes == memory.optimizer_bytes // 2 == 4 * LORA


def test_qlora_holds_linear_layers_in_four_bits(models: Path) -> None:
    """Half a byte a weight, a byte a block of 64 and four a block of 256 scales; the output layer stays in bf16."""
    memory = planned(models / "llama", {"qlora": {"rank": 4}}, training={"precision": "bf16"}).memory(SHAPE)
    packed = 2 * sum(
        four_bit_bytes(a * b, scales_twice=True)
        for a, b in [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    )
    assert four_bit_bytes(64 * 256, scales_twice=True) == 64 * 256 // 2 + 256 + 4
    assert four_bit_bytes(64 * 256, scales_twice=False) == 64 * 256 // 2 + 4 * 256
    assert memory.frozen_weights_bytes == packed + 2 * EMBEDDINGS + 4 * (EMBEDDINGS + NORMS + ROTARY)


def test_parts_add_up_to_the_peak(models: Path) -> None:
    memory = planned(models / "gpt2", {"lora": {}}).memory(SHAPE)
    assert memory.total == sum(memory.to_wire().values())
    assert min(memory.to_wire().values()) >= 0


# --- what is rehearsed ----------------------------------------------------------------------------------------------


def test_a_pass_keeps_what_autograd_saves() -> None:
    """y = w · x² over n numbers: the square keeps x, the product its factors w and x²; then each gets a gradient."""
    import torch
    from torch import nn

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1000, device="meta"))

    model = Square()
    stage = Stage(model, torch.float32, on_gpu=False)
    kept, peak, freed = stage.train(torch.zeros(1000), lambda x: (model.weight * x.requires_grad_() ** 2).sum())
    one = 4 * 1000
    assert one <= kept <= one + 64  # x² (x and w are given), and a scalar
    assert peak >= kept + 2 * one
    assert freed == one  # the product, once it is summed


@pytest.mark.slow
def test_what_checkpointing_frees_lies_in_the_heap_of_a_cpu(models: Path) -> None:
    """What is no longer kept was freed between tensors that stay: a share of it is not used again."""
    shape = Shape(rows=1, length=256)

    def passes(checkpointing: bool, gpus: int) -> tuple[int, int]:
        training = {"gradientCheckpointing": checkpointing}
        memory = planned(models / "deep", {"lora": {}}, training=training, resources={"gpus": gpus}).memory(shape)
        return memory.activations_bytes, memory.activations_bytes + memory.temporary_bytes

    saving = passes(True, gpus=1)
    saved = passes(False, gpus=1)[0] - saving[0]
    heap = passes(True, gpus=0)[1] - saving[1]
    assert saved > 0
    assert heap >= CPU_HOLES * saved


@pytest.mark.parametrize("kind", list(METHODS))
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=() if name == "llama" else pytest.mark.slow) for name in ANSWERS]
)
def test_every_method_can_be_planned(models: Path, model: str, kind: str) -> None:
    """More rows and longer rows take more."""
    options = {"bitFit": {"addBiases": True}, "qaLora": {"groupSize": 16}}
    plan, answer = planned(models / model, {kind: options.get(kind, {})}), ANSWERS[model]
    small = plan.memory(Shape(2, 32, answer=answer))
    assert small.activations_bytes > 0
    assert plan.memory(Shape(4, 32, answer=answer)).total > small.total
    assert plan.memory(Shape(2, 64, answer=answer)).total > small.total


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_gradients_that_wait_take_no_less(models: Path, kind: str) -> None:
    """And the same question has the same answer."""
    plan = planned(models / "llama", {kind: {}})
    assert plan.memory(Shape(2, 32, accumulates=True)).total >= plan.memory(SHAPE).total
    assert plan.memory(SHAPE) == plan.memory(SHAPE)


def test_packed_rows_and_classifiers_can_be_planned(models: Path) -> None:
    assert planned(models / "llama", {"lora": {}}).memory(Shape(2, 64, packed=True)).activations_bytes > 0
    spec = spec_of({"lora": {}}, objective={"classification": {}})
    assert PlannedModel(models / "bert", spec, ["a", "b"]).memory(SHAPE).activations_bytes > 0


def test_gradient_checkpointing_keeps_less(models: Path) -> None:
    shape = Shape(4, 200)
    plain = planned(models / "llama", {"lora": {}}).memory(shape)
    saving = planned(models / "llama", {"lora": {}}, training={"gradientCheckpointing": True}).memory(shape)
    assert saving.activations_bytes < plain.activations_bytes / 2
    assert saving.total < plain.total


def test_a_model_of_eight_billion_takes_seconds(models: Path) -> None:
    """Of this process: the machine may be busy."""
    began = time.process_time()
    model = planned(models / "8b", {"lora": {}}, training={"precision": "bf16"})
    memory = model.memory(Shape(1, 1024))
    assert model.trainable == 32 * 16 * sum(
        a + b
        for a, b in [
            (4096, 4096),
            (4096, 1024),
            (4096, 1024),
            (4096, 4096),
            (4096, 14336),
            (4096, 14336),
            (14336, 4096),
        ]
    )
    assert 15 < memory.frozen_weights_bytes / (1 << 30) < 17
    assert time.process_time() - began < 60


# --- what fits ------------------------------------------------------------------------------------------------------


def test_the_largest_micro_batch_that_fits_is_chosen(models: Path) -> None:
    """All divisors of the batch are open to a GPU whose memory is known."""
    sizes = [planned(models / "llama", {"lora": {}}).memory(Shape(rows, 64, accumulates=True)).total for rows in (4, 8)]
    between = spec_of({"lora": {}}, resources={"gpuMemory": str(sum(sizes) // 2)})
    fit = largest(PlannedModel(models / "llama", between, []), Workload(64, False, 32, 8, False), between.resources)
    assert (fit.rows, fit.memory.total) == (4, sizes[0])
    roomy = between.resources.model_copy(update={"gpu_memory": "1Ti"})
    assert largest(PlannedModel(models / "llama", between, []), Workload(64, False, 32, 8, False), roomy).rows == 32
    unknown = between.resources.model_copy(update={"gpu_memory": None})
    assert largest(PlannedModel(models / "llama", between, []), Workload(64, False, 32, 8, False), unknown).rows == 8


def test_an_automatic_batch_is_one_pass_of_what_fits(models: Path) -> None:
    """A power of two, without a second set of gradients; the smallest where nothing fits."""
    size = planned(models / "llama", {"lora": {}}).memory(Shape(16, 64)).total
    spec = spec_of({"lora": {}}, resources={"gpuMemory": str(size)})
    load = Workload(64, False, 50, 50, False, in_one_pass=True)
    fit = largest(PlannedModel(models / "llama", spec, []), load, spec.resources)
    assert (fit.rows, fit.memory.total) == (16, size)
    tight = spec.resources.model_copy(update={"gpu_memory": "1Mi"})
    assert largest(PlannedModel(models / "llama", spec, []), load, tight).rows == 1


def test_a_job_that_cannot_fit_is_refused_with_what_would(models: Path) -> None:
    """Before a GPU is held, in the words of the spec."""
    needed = planned(models / "llama", {"full": {}}).memory(Shape(16, 200)).total
    less = planned(models / "llama", {"full": {}}).memory(Shape(4, 200, accumulates=True)).total
    spec = spec_of({"full": {}}, resources={"gpuMemory": str(less)})
    model = PlannedModel(models / "llama", spec, [])
    assert fitted(model, models / "llama", spec, [], Workload(200, False, 16, 8, False)).rows == 4
    assert (
        fitted(model, models / "llama", spec, [], Workload(200, False, 16, 16, True)).memory.total == needed
    )  # within the margin
    tight = spec_of({"full": {}}, resources={"gpuMemory": "500Mi"})
    with pytest.raises(
        Failure, match=r"^spec\.resources\.gpuMemory: full needs about 1\.0 GiB at microBatchSize 16"
    ) as told:
        fitted(
            PlannedModel(models / "llama", tight, []), models / "llama", tight, [], Workload(200, False, 16, 16, True)
        )
    assert "and there is 500Mi; nothing that was tried fits" in told.value.message


@pytest.mark.slow
def test_what_fits_is_offered(models: Path) -> None:
    """An 8B model on 24 GiB: not `full`, whatever the batch, but an adapter."""
    spec = spec_of({"full": {}}, training={"precision": "bf16"}, resources={"gpuMemory": "24Gi"})
    with pytest.raises(Failure) as told:
        fitted(PlannedModel(models / "8b", spec, []), models / "8b", spec, [], Workload(64, False, 2, 2, False))
    assert re.match(r"spec\.resources\.gpuMemory: full needs about 1[23]\d\.\d GiB at", told.value.message)
    assert "; lora needs about" in told.value.message


def test_without_a_gpu_the_pods_memory_counts(models: Path) -> None:
    spec = spec_of({"lora": {}}, resources={"gpus": 0, "memory": "300Mi"})
    with pytest.raises(Failure, match=r"^spec\.resources\.memory: lora needs about"):
        fitted(PlannedModel(models / "llama", spec, []), models / "llama", spec, [], Workload(64, False, 16, 8, False))


@pytest.mark.parametrize(
    ("quantity", "count"), [("24Gi", 24 << 30), ("1500M", 1_500_000_000), ("0.5Ti", 1 << 39), ("7", 7)]
)
def test_quantities_are_bytes(quantity: str, count: int) -> None:
    assert bytes_of(quantity) == count
    assert gibibytes(24 << 30) == "24.0 GiB"
