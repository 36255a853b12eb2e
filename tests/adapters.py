"""Stored LoRA adapters for tests, written without torch or PEFT: folders in PEFT's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model."
LAYER = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}


def factors(rank: int = 2, width: int = 6, seed: int = 0, layer: str = LAYER) -> dict[str, np.ndarray]:
    """A and B of one square layer, as PEFT names them."""
    random = np.random.default_rng(seed)
    return {
        f"{PREFIX}{layer}.lora_A.weight": random.normal(size=(rank, width)).astype(np.float32),
        f"{PREFIX}{layer}.lora_B.weight": random.normal(size=(width, rank)).astype(np.float32),
    }


def adapter(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """A folder with these tensors and CONFIG, changed by `config`."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(factors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder
