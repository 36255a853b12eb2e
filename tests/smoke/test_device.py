"""The machine under the trainer. Theory: a container's cores are what its cgroup grants, not what the host has."""

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from finetune_trainer import device
from finetune_trainer.device import compute_dtype, cpu_limit


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "180000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 65536),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 65536),
        ({}, 65536),
        ({"cpu.max": "garbage"}, 65536),
    ],
)
def test_the_cgroup_limits_the_threads(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    """Version 2 and version 1; a started core counts whole; no limit and no cgroup mean no limit."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_limit(tmp_path) == cores


def test_precision_can_be_fixed() -> None:
    """fp32 and bf16 are taken as asked, whatever the device would choose."""
    cpu = torch.device("cpu")
    assert compute_dtype("fp32", cpu) is torch.float32
    assert compute_dtype("bf16", cpu) is torch.bfloat16


@pytest.mark.parametrize(
    ("native", "bf16_seconds", "chosen"),
    [
        (True, 0.5, torch.bfloat16),
        (True, 1.05, torch.bfloat16),
        (True, 1.8, torch.float32),
        (False, 0.5, torch.float32),
    ],
)
def test_auto_takes_bf16_where_the_cpu_is_not_slower_with_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, bf16_seconds: float, chosen: torch.dtype
) -> None:
    """Instructions for bf16 are no promise of speed: both are tried, and a tie goes to the smaller one."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    monkeypatch.setattr(device, "product_seconds", lambda: {torch.float32: 1.0, torch.bfloat16: bf16_seconds})
    assert compute_dtype("auto", torch.device("cpu")) is chosen


def test_products_are_timed_in_both_precisions() -> None:
    """What `auto` compares are times of this machine."""
    assert all(seconds > 0 for seconds in device.product_seconds().values())


def test_waiting_for_a_core_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """While `prepare` reads data on the same cores, every product takes as long as its turn comes late."""
    product, wait = torch.nn.functional.linear, 0.2

    def late(*factors: torch.Tensor) -> torch.Tensor:
        time.sleep(wait)
        return product(*factors)

    monkeypatch.setattr(torch.nn.functional, "linear", late)
    monkeypatch.setattr(device, "TRIALS", 1)
    assert max(device.product_seconds.__wrapped__().values()) < wait


def test_what_a_thread_freed_goes_back_to_the_kernel() -> None:
    """A block that stays at the end of its heap would keep all those below it."""

    def leave_a_block() -> torch.Tensor:
        return [torch.ones(16_000) for _ in range(2_000)][-1]

    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(leave_a_block).result()
        before = resident_bytes()
        device.give_back_freed()
        assert before - resident_bytes() > 64 << 20
        assert kept.sum() == 16_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
