"""Stored adapters become one in `prepare`, on numpy: which fit together, what is made of them, and when it is kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters import LAYER, PREFIX, adapter, factors
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_trainer.data.prepared import Prepared
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.workspace import Workspace
from preparing import jsonl, prepared, run_of
from tolerance import WEIGHT, assert_close

OTHER = "model.layers.1.self_attn.q_proj"


def run_from(folder: Path, *adapters: Path, weights: tuple[float, ...] = (), **start: Any) -> Run:
    """A run that starts from these folders and trains nothing."""
    data = folder / "data.jsonl"
    if not data.exists():
        jsonl(data, [{"prompt": f"{number} ", "completion": "x"} for number in range(40)])
    shares = weights or (1.0,) * len(adapters)
    named = [{"uri": f"file://{path}", "weight": share} for path, share in zip(adapters, shares, strict=True)]
    return run_of(
        folder,
        data,
        method={"lora": {"startFrom": {"adapters": named, **start}}},
        training={"maxSteps": 0},
    )


def composed(run: Run) -> tuple[Prepared, dict[str, np.ndarray], dict[str, Any]]:
    """The page of the stage, and tensors and config of what it composed."""
    _, page, workspace = prepared(run)
    config = json.loads((workspace.start / "adapter_config.json").read_text())
    return page, load_file(workspace.start / "adapter_model.safetensors"), config


def product(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """B·A of the layer that all adapters here have."""
    return tensors[f"{PREFIX}{LAYER}.lora_B.weight"] @ tensors[f"{PREFIX}{LAYER}.lora_A.weight"]


def test_one_adapter_with_weight_one_is_taken_as_it_is(tmp_path: Path) -> None:
    """Both files, byte for byte."""
    one = adapter(tmp_path / "one", use_rslora=True)
    _, _, workspace = prepared(run_from(tmp_path, one))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (workspace.start / name).read_bytes() == (one / name).read_bytes()


def test_layers_that_only_one_adapter_has_keep_their_rank(tmp_path: Path) -> None:
    """Two adapters of ranks 2 and 3 share one of two layers: ranks 5 and 3, scaling 1 in each, nothing padded."""
    first = adapter(tmp_path / "first")
    second = adapter(tmp_path / "second", factors(3, seed=1) | factors(3, seed=2, layer=OTHER), r=3)
    page, tensors, config = composed(run_from(tmp_path, first, second, weights=(0.5, 2)))
    shapes = {name.removeprefix(PREFIX): tensor.shape for name, tensor in tensors.items() if ".lora_A." in name}
    assert shapes == {f"{LAYER}.lora_A.weight": (5, 6), f"{OTHER}.lora_A.weight": (3, 6)}
    assert (config["r"], config["lora_alpha"]) == (5, 5)
    assert config["rank_pattern"] == config["alpha_pattern"] == {OTHER: 3}
    a, b = (tensors[f"{PREFIX}{LAYER}.lora_{side}.weight"] for side in "AB")
    parts = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    one, other = (
        tensors[f"{PREFIX}{LAYER}.lora_B.weight"] @ tensors[f"{PREFIX}{LAYER}.lora_A.weight"] for tensors in parts
    )
    assert_close(b @ a, 0.5 * 4 / 2 * one + 2 * 4 / 3 * other, WEIGHT)
    assert page.start is not None
    assert [origin.weight for origin in page.start.adapters] == [0.5, 2]
    assert page.plan.total_steps == 0


def test_a_composition_is_kept_until_something_changes(tmp_path: Path) -> None:
    """Prepared again it is the same file; with another weight or another adapter behind the name it is another."""
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", factors(seed=1))
    run = run_from(tmp_path, one, two, combination="dareTies")
    weights = Workspace(Path(run.workspace)).start / "adapter_model.safetensors"
    first, _, _ = composed(run)
    written = weights.stat().st_mtime_ns
    again, _, _ = composed(run)
    assert (again.start, weights.stat().st_mtime_ns) == (first.start, written)
    heavier, _, _ = composed(run_from(tmp_path, one, two, weights=(1, 2), combination="dareTies"))
    assert heavier.start.digest != first.start.digest
    (two / "adapter_model.safetensors").write_bytes((one / "adapter_model.safetensors").read_bytes())
    changed, _, _ = composed(run)
    assert changed.start.digest != first.start.digest


def test_chance_is_drawn_from_the_seed(tmp_path: Path) -> None:
    """Two workspaces compose the same adapter."""
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", factors(seed=1))
    digests = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        page, _, _ = composed(run_from(tmp_path / name, one, two, combination="dareLinear"))
        digests.append(page.start.digest)
    assert digests[0] == digests[1]


def test_a_smaller_adapter_of_one(tmp_path: Path) -> None:
    """svd of a single adapter lowers its rank: it is not taken as it is."""
    _, tensors, config = composed(run_from(tmp_path, adapter(tmp_path / "one"), combination="svd", rank=1))
    assert config["r"] == 1
    assert tensors[f"{PREFIX}{LAYER}.lora_A.weight"].shape == (1, 6)


def refusal(run: Run) -> Failure:
    with pytest.raises(Failure) as refused:
        prepared(run)
    return refused.value


@pytest.mark.parametrize("combination", ["linear", "ties", "dareLinear", "dareTies"])
def test_unequal_ranks_are_refused_where_they_matter(tmp_path: Path, combination: str) -> None:
    """With both ranks, the layer, and what would work."""
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second", factors(3))
    failure = refusal(run_from(tmp_path, first, second, combination=combination))
    assert failure.reason is Reason.BAD_SPEC
    assert failure.message.startswith("spec.method.lora.startFrom.adapters[1]: ")
    assert f"rank 3 and spec.method.lora.startFrom.adapters[0] rank 2 in {LAYER}" in failure.message
    assert "choose cat or svd" in failure.message


MAGNITUDE = {f"{PREFIX}{LAYER}.lora_magnitude_vector": np.ones(6, np.float32)}
HEAD = {f"{PREFIX}score.weight": np.ones((2, 6), np.float32)}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (factors(width=8), {}, "was made for another model: its update of"),
        (
            {**factors(), f"{PREFIX}{LAYER}.lora_magnitude_vector": np.ones(6, np.float32)},
            {"use_dora": True},
            "is a DoRA",
        ),
        (
            {**factors(), f"{PREFIX}score.weight": np.ones((2, 6), np.float32)},
            {"modules_to_save": ["score"]},
            "score whole",
        ),
    ],
    ids=["another-model", "dora", "head"],
)
def test_what_does_not_add_up_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], message: str
) -> None:
    """Other sizes, DoRA and modules that are stored whole; the second adapter is named."""
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second", tensors, **config)
    failure = refusal(run_from(tmp_path, first, second))
    assert failure.message.startswith(f"spec.method.lora.startFrom.adapters[1]: file://{second} ")
    assert message in failure.message


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    """Our manifest pins the base model by the digest of its weights; PEFT's config only names one."""
    one = adapter(tmp_path / "one", base_model_name_or_path="somebody/else")
    manifest = {"baseModel": {"uri": "pvc://models/other", "revision": "sha256:" + "0" * 64}}
    (one / "manifest.json").write_text(json.dumps(manifest))
    failure = refusal(run_from(tmp_path, one))
    assert "was trained on pvc://models/other (sha256:000000000000)" in failure.message
    (one / "manifest.json").unlink()
    prepared(run_from(tmp_path, one))


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    """What lies beside it is told; a job is known to a cluster alone."""
    adapter(tmp_path / "one")
    failure = refusal(run_from(tmp_path, tmp_path / "two"))
    assert failure.reason is Reason.INPUT_UNAVAILABLE
    assert "adapters[0].uri: " in failure.message
    assert "does not exist" in failure.message
    assert "one" in failure.message
