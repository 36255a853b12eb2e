"""What the machine under the trainer can do: its device, its share of the cores, the arithmetic it computes natively.

It reads facts once, at the start of a stage. It knows nothing of models, specs or data.
"""

import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(precision: str, on: torch.device) -> torch.dtype:
    """The dtype of matrix products for `spec.training.precision`: `auto` takes bf16 where it is native."""
    if precision == "fp32" or (precision == "auto" and not computes_bf16(on)):
        return torch.float32
    return torch.bfloat16


def computes_bf16(on: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; where it does not, bf16 is emulated and slower than fp32."""
    if on.type == "cuda":
        return torch.cuda.get_device_capability(on) >= (8, 0)
    facts = torch.cpu.get_capabilities()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


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
