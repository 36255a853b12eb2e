"""What the machine under the trainer can do: its device, its share of the cores, the arithmetic in which it is fast.

It reads facts once, at the start of a stage. It knows nothing of models, specs or data.
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

CGROUP = Path("/sys/fs/cgroup")
NAME_LENGTH = 100
"""Of a processor, in a status."""


class Arithmetic(NamedTuple):
    """The dtype of a run's matrix products."""

    dtype: torch.dtype
    basis: str | None = None
    """The fact that `precision: auto` took it by; None where the spec says it."""


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def arithmetic(precision: str, on: torch.device, processor: Mapping[str, Any] | None = None) -> Arithmetic:
    """For `spec.training.precision`: `auto` takes bf16 where the device has matrix units for it (docs/adr/0010).

    Nothing is timed, so the same hardware gives the same answer whatever else it does. `processor` is what
    `torch.cpu.get_capabilities` says, unless given.
    """
    if precision != "auto":
        return Arithmetic({"bf16": torch.bfloat16, "fp32": torch.float32}[precision])
    if on.type == "cuda":
        major, minor = torch.cuda.get_device_capability(on)
        dtype = torch.bfloat16 if (major, minor) >= (8, 0) else torch.float32
        return Arithmetic(dtype, f"the GPU has compute capability {major}.{minor}")
    facts = torch.cpu.get_capabilities() if processor is None else processor
    name = str(facts.get("cpu_name") or "the processor").strip()[:NAME_LENGTH]
    if facts.get("amx_bf16"):
        return Arithmetic(torch.bfloat16, f"{name} has amx_bf16")
    return Arithmetic(torch.float32, f"{name} has no amx_bf16")


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
