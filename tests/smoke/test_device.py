"""The machine under the trainer. Theory: a container's cores are what its cgroup grants, not what the host has; what
decides a run's arithmetic is what the processor is, not how busy it is."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.status import Plan
from finetune_trainer.models import device
from finetune_trainer.models.device import Arithmetic, arithmetic, cpu_limit


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


CPU = torch.device("cpu")


def test_precision_can_be_fixed() -> None:
    """fp32 and bf16 are taken as asked, whatever the device would choose."""
    assert arithmetic("fp32", CPU, {"amx_bf16": True}) == Arithmetic(torch.float32)
    assert arithmetic("bf16", CPU, {"amx_bf16": False}) == Arithmetic(torch.bfloat16)


@pytest.mark.parametrize(
    ("facts", "chosen", "basis"),
    [
        (
            {"cpu_name": "Intel Xeon 8488C", "avx512_bf16": True, "amx_bf16": True},
            torch.bfloat16,
            "Intel Xeon 8488C has amx_bf16",
        ),
        (
            {"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False},
            torch.float32,
            "AMD EPYC has no amx_bf16",
        ),
        ({"cpu_name": "AMD EPYC", "avx2": True}, torch.float32, "AMD EPYC has no amx_bf16"),
        ({"architecture": "aarch64", "bf16": True}, torch.float32, "the processor has no amx_bf16"),
    ],
    ids=["tiles", "vectors alone", "neither", "no x86"],
)
def test_auto_takes_bf16_where_the_processor_has_tiles_for_it(
    facts: dict[str, Any], chosen: torch.dtype, basis: str
) -> None:
    """A fact of the processor decides, and is told; one that is lent to many has the same facts when it is busy."""
    assert arithmetic("auto", CPU, facts) == Arithmetic(chosen, basis)


def test_the_facts_are_those_of_this_processor() -> None:
    """Unless others are given; a name of any length fits into a status."""
    assert arithmetic("auto", CPU) == arithmetic("auto", CPU, torch.cpu.get_capabilities())
    long = arithmetic("auto", CPU, {"cpu_name": "X" * 1000})
    assert Plan(precision_basis=long.basis).precision_basis == long.basis


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
