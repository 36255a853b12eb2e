"""The number of steps: rows per pass, passes per step, and steps, of a pure function."""

from typing import Any

import pytest

from finetune_api.spec import Training
from finetune_trainer.prepare import schedule


@pytest.mark.parametrize(
    ("training", "records", "rows", "expected"),
    [
        ({"epochs": 3}, 90, 90, (8, 2, 18)),
        ({"epochs": 0.5}, 90, 90, (8, 2, 3)),
        ({"epochs": 1, "batch_size": 7}, 15, 15, (7, 1, 3)),
        ({"epochs": 1, "micro_batch_size": 4}, 33, 33, (4, 4, 3)),
        ({"max_steps": 5}, 1000, 1000, (8, 2, 5)),
        ({"epochs": 1}, 3, 3, (8, 2, 1)),
    ],
)
def test_steps(training: dict[str, Any], records: int, rows: int, expected: tuple[int, int, int]) -> None:
    assert schedule(Training(**training), records, rows) == expected


@pytest.mark.parametrize(("records", "rows"), [(2661, 297), (10_000, 5_000), (1000, 999), (64_000, 1_000)])
def test_packing_keeps_the_records_of_a_step(records: int, rows: int) -> None:
    """Packed or not, a step sees about batchSize records, so that packing changes no learning curve."""
    training = Training(epochs=1, batch_size=64)
    _, _, flat = schedule(training, records, records)
    micro, accumulation, steps = schedule(training, records, rows)
    assert 64 * 0.75 <= micro * accumulation * records / rows <= 64 * 1.25
    assert 0.75 <= steps / flat <= 1.25
    assert micro * records / rows <= max(2 * 8, records / rows)
