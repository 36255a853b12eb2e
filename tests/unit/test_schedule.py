"""The number of steps: rows per pass, passes per step, and steps, of a pure function."""

from typing import Any

import pytest

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.training import Training
from finetune_trainer.planning.batch_size import schedule


@pytest.mark.parametrize(
    ("training", "records", "rows", "expected"),
    [
        ({"epochs": 3}, 90, 90, (8, 2, 18)),
        ({"epochs": 0.5}, 90, 90, (8, 2, 3)),
        ({"epochs": 1, "batch_size": 7}, 15, 15, (7, 1, 3)),
        ({"epochs": 1, "micro_batch_size": 4}, 33, 33, (4, 4, 3)),
        ({"max_steps": 5}, 1000, 1000, (8, 2, 5)),
        ({"epochs": 1}, 3, 3, (8, 2, 1)),
        ({"epochs": 1, "batch_size": 8, "micro_batch_size": "auto"}, 33, 33, (8, 1, 5)),
        ({"epochs": 1, "batch_size": "auto"}, 640, 640, (8, 2, 40)),
    ],
)
def test_steps(training: dict[str, Any], records: int, rows: int, expected: tuple[int, int, int]) -> None:
    assert schedule(Training(**training), records, rows) == expected


@pytest.mark.parametrize("rows", [640, 80])
def test_a_batch_of_what_fits_is_one_pass(rows: int) -> None:
    """Memory decides how many rows there are, packed or not, and with them how many steps."""
    training = Training(epochs=1, batch_size="auto")
    assert schedule(training, 640, rows, fitting=16) == (16, 1, rows // 16)


@pytest.mark.parametrize(
    ("training", "resources", "expected"),
    [
        ({"batchSize": "auto"}, {"gpus": 1, "gpuMemory": "24Gi"}, "auto"),
        ({"batchSize": "auto", "microBatchSize": 4}, {"gpus": 1, "gpuMemory": "24Gi"}, 4),
        ({"batchSize": "auto"}, {"gpus": 1}, 16),
        ({"batchSize": "auto"}, {"gpus": 0}, 16),
        ({"batchSize": "auto", "microBatchSize": 4}, {"gpus": 0}, 4),
        ({}, {"gpus": 1, "gpuMemory": "24Gi"}, 16),
    ],
)
def test_an_automatic_batch_asks_only_a_gpu(
    training: dict[str, Any], resources: dict[str, Any], expected: int | str
) -> None:
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://org/model"},
            "dataset": {"train": [{"uri": "pvc://data/train.jsonl"}]},
            "method": {"lora": {}},
            "training": training,
            "resources": resources,
            "output": {"uri": "pvc://models/out"},
        }
    )
    assert spec.resolved().training.batch_size == expected


@pytest.mark.parametrize(("records", "rows"), [(2661, 297), (10_000, 5_000), (1000, 999), (64_000, 1_000)])
def test_packing_keeps_the_records_of_a_step(records: int, rows: int) -> None:
    """Packed or not, a step sees about batchSize records, so that packing changes no learning curve."""
    training = Training(epochs=1, batch_size=64)
    _, _, flat = schedule(training, records, records)
    micro, accumulation, steps = schedule(training, records, rows)
    assert 64 * 0.75 <= micro * accumulation * records / rows <= 64 * 1.25
    assert 0.75 <= steps / flat <= 1.25
    assert micro * records / rows <= max(2 * 8, records / rows)
