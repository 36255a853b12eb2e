"""A stored adapter is read from its two files alone: what it says of each layer, and what cannot be started from."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters import LAYER, PREFIX, adapter, factors
from finetune_api.reasons import Reason
from finetune_trainer.pretrained.stored_adapter import StoredAdapter
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.storage.safetensors_file import TensorFile

PLACE = "spec.method.lora.startFrom.adapters[0]"


def stored(folder: Path) -> StoredAdapter:
    return StoredAdapter(folder, PLACE, "pvc://models/a")


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2),
        ({"lora_alpha": 3}, 1.5),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 8}}, 4),
        ({"alpha_pattern": {"proj": 8}}, 2),
        ({"alpha_pattern": {r"layers\.[01]\.self_attn\.q_proj": 8, "q_proj": 16}}, 4),
    ],
)
def test_the_scaling_of_a_layer_is_that_of_peft(tmp_path: Path, config: dict[str, Any], scaling: float) -> None:
    """alpha over rank, or over its root; alphas by pattern match ends of names, the first one wins."""
    layer = stored(adapter(tmp_path / "a", **config)).layers[LAYER]
    assert layer.scaling == pytest.approx(scaling)
    assert (layer.rank, layer.width) == (2, (6, 6))


def test_numbers_of_half_the_size_are_read(tmp_path: Path) -> None:
    """bf16 is the upper half of a float32; numpy knows only f16."""
    half = np.array([[1.5, -2.0]], dtype=np.float16)
    upper = np.array([[0x3FC0, 0xC000]], dtype="<u2")
    header = {
        "half": {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]},
        "upper": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [4, 8]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + half.tobytes() + upper.tobytes())
    file = TensorFile(path)
    assert file.read("half").tolist() == file.read("upper").tolist() == [[1.5, -2.0]]


NAMES = tuple(factors())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3: only LoRA adapters"),
        ({"peft_type": None, "method": "uniPelt"}, "an adapter of the kind uniPelt"),
        ({"bias": "all"}, "has bias: only plain LoRA"),
        ({"use_qalora": True, "lora_bias": True}, "has lora_bias, use_qalora: only plain LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "was started by 'pissa_niter_4', which changes the base model"),
        ({"lora_alpha": None}, "has no usable lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "has no usable lora_alpha and alpha_pattern"),
    ],
)
def test_a_config_that_says_more_than_plain_lora_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """By its field, with the place in the spec and the adapter's own name."""
    with pytest.raises(Failure, match=r"^spec\.method\.lora\.startFrom\.adapters\[0\]: pvc://models/a ") as refused:
        stored(adapter(tmp_path / "a", **config))
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no LoRA weights"),
        ({NAMES[0]: factors()[NAMES[0]]}, f"lacks one of the two factors of {LAYER}"),
        (factors() | {NAMES[1]: np.ones((6, 3), np.float32)}, "no matrices of one rank: (2, 6) and (6, 3)"),
        (factors() | {f"{PREFIX}model.embed_tokens.weight": np.ones((2, 2), np.float32)}, "which is no part of a LoRA"),
    ],
    ids=["nothing", "no-b", "ranks", "more"],
)
def test_weights_that_are_no_lora_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    """From the header alone."""
    with pytest.raises(Failure) as refused:
        stored(adapter(tmp_path / "a", tensors))
    assert message in refused.value.message


def test_modules_that_are_stored_whole_are_known_by_name(tmp_path: Path) -> None:
    """Only those of which something is stored: PEFT writes down names that a model may have."""
    head = {f"{PREFIX}score.weight": np.ones((2, 6), np.float32)}
    found = stored(adapter(tmp_path / "a", factors() | head, modules_to_save=["classifier", "score"]))
    assert found.saved_modules == ["score"]
    assert list(found.layers) == [LAYER]


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    """A pickle, a model, a cut copy and nothing at all: each is told apart."""
    whole = adapter(tmp_path / "whole")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    pickled = adapter(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    cut = adapter(tmp_path / "cut")
    content = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(content[:-4])
    for folder, reason, message in (
        (tmp_path / "absent", Reason.INPUT_UNAVAILABLE, "does not exist"),
        (tmp_path / "model", Reason.BAD_SPEC, "is a whole model, not an adapter: name it in spec.model"),
        (pickled, Reason.BAD_SPEC, "only adapter_model.bin: pickled weights can run code"),
        (cut, Reason.BAD_SPEC, "copy it again"),
    ):
        with pytest.raises(Failure) as refused:
            stored(folder)
        assert refused.value.reason is reason
        assert message in refused.value.message
    assert stored(whole).layers
