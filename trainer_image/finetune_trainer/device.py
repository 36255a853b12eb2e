"""What the machine under the trainer can do: its device, its share of the cores, the arithmetic in which it is fast.

It reads facts once, at the start of a stage. It knows nothing of models, specs or data.
"""

import ctypes
import os
import time
from functools import cache
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
PROBE = 512, 1024, 1024
"""Rows, inputs and outputs of the product that a CPU is tried with: a GFLOP."""
TRIALS = 5
BF16_IS_WORTH = 1.1
"""bf16 is taken up to this much slower than fp32: it holds half the activations."""


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(precision: str, on: torch.device) -> torch.dtype:
    """The dtype of matrix products for `spec.training.precision`: `auto` takes bf16 where it is fast."""
    if precision == "fp32" or (precision == "auto" and not prefers_bf16(on)):
        return torch.float32
    return torch.bfloat16


def prefers_bf16(on: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware, and a CPU as fast as fp32: some have the instructions and are
    twice as slow with them (docs/adr/0008)."""
    if on.type == "cuda":
        return torch.cuda.get_device_capability(on) >= (8, 0)
    facts = torch.cpu.get_capabilities()
    if not (facts.get("avx512_bf16") or facts.get("amx_bf16")):
        return False
    seconds = product_seconds()
    return seconds[torch.bfloat16] <= BF16_IS_WORTH * seconds[torch.float32]


@cache
def product_seconds() -> dict[torch.dtype, float]:
    """Processor time of one thread for one product of the size PROBE, the best of some trials in turns: other work on
    the same cores, of which `prepare` has plenty, counts for little."""
    rows, inputs, outputs = PROBE
    factors = {dtype: (torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype))
               for dtype in (torch.float32, torch.bfloat16)}  # fmt: skip
    best = dict.fromkeys(factors, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(1 + TRIALS):
        for dtype, (left, right) in factors.items():
            began = time.thread_time()
            torch.nn.functional.linear(left, right)
            best[dtype] = min(best[dtype], time.thread_time() - began)
    torch.set_num_threads(threads)
    return best


def use_cores() -> int:
    """Give torch as many threads as the container has cores, or fewer where OMP_NUM_THREADS says so.

    More threads than cores only wait for each other.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    limits = [len(os.sched_getaffinity(0)), cpu_limit(CGROUP), *([int(asked)] if asked.isdigit() else [])]
    threads = max(1, min(limits))
    torch.set_num_threads(threads)
    return threads


def cpu_limit(cgroup: Path) -> int:
    """Cores that the cgroup (v2, else v1) grants, a started one counted whole; a large number when it sets no limit."""
    unlimited = 1 << 16
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return unlimited
    if quota in ("max", "-1"):
        return unlimited
    return max(1, -(-int(quota) // int(period)))


def give_back_freed() -> None:
    """Return to the kernel what glibc's heaps hold of freed memory: what one thread freed, no other thread can use.

    Models are loaded by threads, and weights in 4 bits or in bf16 leave their full ones behind. Elsewhere it does
    nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
