"""The base model as a folder: found where it lies or fetched once, checked without loading it, and pinned.

It decides whether a folder is a model that can be trained from. It reads no weights but to digest them; what
transformers makes of the model is `models`' business.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api import uris
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec.references import to_model
from finetune_trainer.pretrained.tokenizer import FILES
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import beside, megabytes, new_folder, write_file
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.storage.hub import HubFile
from finetune_trainer.storage.inputs import Input
from finetune_trainer.storage.json_file import read_json
from finetune_trainer.storage.safetensors_file import TensorFile

log = logging.getLogger(__name__)

FIELD = "spec.model"
ORIGIN = "origin.json"
"""In a downloaded model: where it came from. It is written last."""
CONFIGS = (*FILES, "config.json", "generation_config.json", "model.safetensors.index.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ENCODER_DECODERS = ("t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "m2m_100")
"""Model types that are encoder-decoders unless their config says otherwise; transformers writes no defaults down."""
RELATIVE = ("t5", "mt5", "umt5", "longt5")
"""Model types whose positions have no end, though old configs name the length that they were pretrained on."""


@dataclass(frozen=True)
class BaseModel:
    """A checked model folder. `name` is what its owner calls it."""

    folder: Path
    name: str
    revision: str
    """Commit of the hub, or sha256 of the weights."""
    stamp: str
    """What changes when a weight file does."""
    config: dict[str, Any]
    weights: list[Path]

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(path.stat().st_size for path in self.weights)

    @property
    def longest_input(self) -> int | None:
        """Tokens that its position embeddings reach; None where nothing limits them."""
        return longest_input(self.config)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether one half of it reads and the other writes."""
        return is_encoder_decoder(self.config)


def is_encoder_decoder(page: dict[str, Any]) -> bool:
    """The same of the content of a config.json."""
    return bool(page.get("is_encoder_decoder", page.get("model_type") in ENCODER_DECODERS))


def longest_input(page: dict[str, Any]) -> int | None:
    """The same of the content of a config.json."""
    config = text_part(page)
    if config.get("model_type") in RELATIVE:
        return None
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(positions, int):
        return None
    padding = config.get("pad_token_id")
    offset = (padding if isinstance(padding, int) else 0) + 1 if "roberta" in str(config.get("model_type")) else 0
    return positions - offset


def text_part(page: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of the part that reads text, where the model has others too."""
    part = page.get("text_config")
    return part if part and isinstance(part, dict) else page


def base_model(run: Run, workspace: Workspace, known: dict[str, str]) -> BaseModel:
    """The model of `spec.model`. `known` maps stamps of weights to their digests."""
    where, name = _input(run), run.spec.model.uri
    if where.is_remote:
        folder, revision = _fetched(where, workspace)
        config, weights = _checked(folder, name)
    else:
        folder, revision = _mounted(where), ""
        config, weights = _checked(folder, name, where.proven)
    stamp = _stamp(weights)
    return BaseModel(folder, name, revision or known.get(stamp) or _digest(weights), stamp, config, weights)


def check_unchanged(run: Run, folder: Path, stamp: str, revision: str) -> None:
    """Raise Failure unless the model in `folder` is still the one that prepare has checked: `revision`, by its `stamp`.

    A job can wait for days between two stages, and who may write to the volume can put links or other weights there.
    Weights are read only where their stamp has changed. A fetched model lies on the workspace, which is the run's own.
    """
    where = _input(run)
    if where.is_remote:
        return
    where.proven(folder)
    _check_files(where, folder)
    _, weights = _checked(folder, run.spec.model.uri, where.proven)
    if _stamp(weights) != stamp and _digest(weights) != revision:
        why = "holds other weights than when the run was prepared: put those back, or apply the job under a new name"
        raise where.named.failure(why, reason=Reason.CHECKPOINT_MISMATCH)


def _input(run: Run) -> Input:
    return Input(run, to_model(run.spec), "model")


def _mounted(where: Input) -> Path:
    """The folder; every file in it that anything may open lies in its volume and can be read."""
    folder = where.located()
    _check_files(where, folder)
    return folder


def _check_files(where: Input, folder: Path) -> None:
    uri = where.reference.uri
    if not folder.exists():
        raise Failure(Reason.MODEL_UNAVAILABLE, f"{FIELD}.uri: {uri} does not exist{beside(folder)}")
    if not folder.is_dir():
        raise Failure(Reason.MODEL_INVALID, f"{FIELD}.uri: {uri} is a file; name the folder that holds the model")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            where.proven(path)
            if path.name in CONFIGS or path.suffix == ".safetensors":
                path.open("rb").close()  # libraries tell a refusal as a broken file


def _fetched(where: Input, workspace: Workspace) -> tuple[Path, str]:
    """The folder on the workspace, and the commit."""
    wanted = {"uri": where.reference.uri, "revision": where.reference.revision}
    origin = read_json(workspace.model / ORIGIN, "the workspace")
    if {key: origin.get(key) for key in wanted} == wanted:
        log.info("model %s is on the workspace already", where.reference.uri)
        return workspace.model, str(origin["commit"])
    partial = workspace.root / "model.partial"
    fetched = where.fetched(partial, _needed)
    with new_folder(workspace.model) as draft:
        for name in fetched.names:
            (partial / name).rename(draft / name)
        write_file(draft / ORIGIN, json.dumps(wanted | {"commit": fetched.revision}))
    shutil.rmtree(partial, ignore_errors=True)
    return workspace.model, fetched.revision


def _needed(files: list[HubFile]) -> list[HubFile]:
    """Config, tokenizer and safetensors at the top of the repository; other forms of the weights are left there."""
    weights = [file for file in files if file.name.endswith(".safetensors") and "/" not in file.name]
    standard = [file for file in weights if file.name.startswith("model")]
    if not weights:
        pickles = [file.name for file in files if Path(file.name).match("*.bin")]
        raise Failure(Reason.MODEL_INVALID, f"{FIELD}.uri: no weights as *.safetensors{_instead(pickles)}")
    return [file for file in files if file.name in CONFIGS] + (standard or weights)


def _checked(
    folder: Path, name: str, prove: Callable[[Path], Path] = lambda path: path
) -> tuple[dict[str, Any], list[Path]]:
    """The model's config and weight files; raises ModelInvalid, naming what is missing. `prove` is shown each file
    that only the model itself names."""
    if not (folder / "config.json").is_file():
        why = "is an adapter, not a base model" if (folder / "adapter_config.json").is_file() else "has no config.json"
        raise Failure(Reason.MODEL_INVALID, f"{FIELD}.uri: {name} {why}{beside(folder / '-')}")
    config = read_json(folder / "config.json", name)
    if "transformers_weights" in config:
        told = "config.json names its weights by a path (transformers_weights): leave that out"
        raise Failure(Reason.MODEL_INVALID, f"{FIELD}.uri: {name}: {told}")
    weights = _weights(folder, name, prove)
    for path in weights:
        _check_weights(path, name)
    return config, weights


def _weights(folder: Path, name: str, prove: Callable[[Path], Path]) -> list[Path]:
    index = read_json(folder / "model.safetensors.index.json", name)
    if index:
        shards = _shards(index.get("weight_map"), name)
        missing = [shard for shard in shards if not prove(folder / shard).is_file()]
        if missing or not shards:
            raise Failure(
                Reason.MODEL_INVALID, f"{FIELD}.uri: {name} lacks {', '.join(missing[:5]) or 'its weight map'}"
            )
        return [folder / shard for shard in shards]
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not weights:
        others = sorted(path.name for pattern in (*PICKLES, "*.gguf") for path in folder.glob(pattern))
        raise Failure(Reason.MODEL_INVALID, f"{FIELD}.uri: {name} has no weights as *.safetensors{_instead(others)}")
    return weights


def _shards(weight_map: Any, name: str) -> list[str]:
    """The files of a sharded model, below its folder."""
    named = weight_map.values() if isinstance(weight_map, dict) else []
    shards = sorted({str(shard) for shard in named})
    outside = [shard for shard in shards if not uris.is_plain(shard)]
    if outside:
        told = f"its index names weights outside of the folder: {', '.join(outside[:5])}"
        raise Failure(Reason.MODEL_INVALID, f"{FIELD}.uri: {name}: {told}")
    return shards


def _instead(others: list[str]) -> str:
    if not others:
        return ""
    return f", only {', '.join(others[:3])}: pickled weights can run code and are refused; convert them to safetensors"


def _check_weights(path: Path, name: str) -> None:
    """A safetensors file says how long it is: a cut copy or a git-lfs pointer is found here, not in train."""
    try:
        TensorFile(path)
    except ValueError as error:
        raise Failure(Reason.MODEL_INVALID, f"{FIELD}.uri: {path.name} of {name} {error}") from None


def _stamp(weights: list[Path]) -> str:
    return " ".join(f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in weights)


def _digest(weights: list[Path]) -> str:
    total = sum(path.stat().st_size for path in weights)
    if total > 2_000_000_000:
        log.info("digesting %s of weights", megabytes(total))
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
