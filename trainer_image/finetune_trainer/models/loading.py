"""From a folder of weights to a transformers model with the head that an objective asks for.

It decides which models are accepted: decoders, encoders and encoder-decoders that transformers itself knows, with
safetensors weights. No code from a model's folder is ever run and no pickle is ever opened. It knows no objective and
no method.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.volumes import REFUSING, UNREACHABLE, explained
from finetune_trainer.storage.json_file import read_json

log = logging.getLogger(__name__)


def quiet() -> None:
    """Leave the log to us: no progress bars, and no advice to people who write code."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Head:
    """What an objective asks of a base model."""

    auto_class: str
    """Name of the transformers class that loads it."""
    peft_task: str
    """PEFT's word for it; it stands in adapter_config.json."""
    architectures: Mapping[str, Any] = field(compare=False)
    """The model types that transformers can load so: one of its tables of names."""
    is_new: bool = False
    """Whether it is put on the model; else it is the pretrained output layer."""
    generates: bool = False
    """Whether the model answers prompts with it."""
    labels: tuple[str, ...] = ()
    """Classes of a new head, in the order of their ids."""

    @property
    def overrides(self) -> dict[str, Any]:
        """What the model's config has to say about the head."""
        if not self.labels:
            return {}
        names = dict(enumerate(self.labels))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
        }


@dataclass(frozen=True)
class LoadedModel:
    """A base model in memory, and which of its modules were not in its files."""

    model: PreTrainedModel
    fresh: tuple[str, ...]
    """Modules with new, random parameters: whatever the method, they have to learn and to be saved."""


def load(
    folder: Path, head: Head, pad_token_id: int, dtype: torch.dtype = torch.float32, quantization: Any = None
) -> LoadedModel:
    """Load the model of `folder` with `head`; its new parameters come from torch's global generator."""
    config = read_config(folder, head, pad_token_id)
    _check_weights(folder)
    with reading(folder, f"cannot load the model in {folder}"):
        model, info = getattr(transformers, head.auto_class).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True, quantization_config=quantization,
        )  # fmt: skip
    fresh = set(fresh_modules(model, head)) | {name.rpartition(".")[0] for name in info["missing_keys"]}
    return LoadedModel(model, tuple(sorted(fresh)))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what several processes wrap around it."""
    while isinstance(model, DistributedDataParallel):
        model = model.module
    return model


def blank(folder: Path, head: Head) -> PreTrainedModel:
    """The same model without memory for its parameters (meta device)."""
    config = read_config(folder, head, pad_token_id=0)
    with torch.device("meta"), reading(folder, f"spec.model.uri: {folder / 'config.json'} describes no model"):
        model = getattr(transformers, head.auto_class).from_config(config, dtype=torch.float32, trust_remote_code=False)
    if config.is_encoder_decoder and _has_own_outputs(folder, model):
        layer = model.get_output_embeddings()
        layer.weight = nn.Parameter(torch.empty_like(layer.weight))
    return model


def _has_own_outputs(folder: Path, model: PreTrainedModel) -> bool:
    """Whether the output layer is no copy of the embeddings, though the config of every T5 says so: `load` goes by the
    weights. Where there are none to look at, config.json as it was written tells."""
    outputs = model.get_output_embeddings()
    weights = [f"{name}.weight" for name, module in model.named_modules() if outputs is not None and module is outputs]
    files = list(folder.glob("*.safetensors"))
    if not weights or not files:
        told = read_json(folder / "config.json", f"spec.model.uri: {folder}")
        return bool(weights) and told.get("tie_word_embeddings") is False
    found = {key for path in files for key in _tensor_names(path)}
    return {weights[0], model.all_tied_weights_keys.get(weights[0])} <= found


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def _check_readable(folder: Path) -> None:
    """Libraries tell a file that they may not read as one that is missing."""
    try:
        for path in folder.iterdir():
            if path.suffix in (".json", ".safetensors") and path.is_file():
                path.open("rb").close()
    except OSError as error:
        if error.errno in REFUSING:
            raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> Failure:
    why = explained(error, Path(error.filename or folder))
    return Failure(Reason.MODEL_UNAVAILABLE, f"spec.model.uri: {why}", transient=error.errno in UNREACHABLE)


def config_of(folder: Path, **overrides: Any) -> PretrainedConfig:
    """The config of the model in `folder`; raises Failure where transformers cannot read it."""
    _check_readable(folder)
    _check_config(folder)
    with reading(folder, f"spec.model.uri: {folder / 'config.json'} cannot be read"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **overrides)


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer in `folder`, as transformers has it; raises Failure where that cannot read it."""
    with reading(folder, f"spec.model.uri: its tokenizer, as it is in {folder}, cannot be read"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def reading(folder: Path, told: str) -> Iterator[None]:
    """What transformers raises about the files of a model is the model's fault: it checks little of them, and trips
    over the rest with whatever error comes first."""
    try:
        yield
    except (Failure, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise Failure(Reason.UNSUPPORTED, f"{told}: {_in_short(error)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # transformers has OSErrors of its own
            raise _unreadable(folder, error) from error
        raise Failure(Reason.MODEL_INVALID, f"{told}: {_in_short(error)}") from error


def read_config(folder: Path, head: Head, pad_token_id: int) -> PretrainedConfig:
    """The model's config with the head's labels and padding token; raises Failure if it cannot carry the head."""
    config = config_of(folder, **head.overrides)
    _check_architecture(config, head)
    if head.is_new:  # a decoder's classifier looks for the last token that is not this one
        config.get_text_config().pad_token_id = pad_token_id
    elif config.is_encoder_decoder:
        config.decoder_start_token_id = _start_token(folder, config)
    return config


def _start_token(folder: Path, config: PretrainedConfig) -> int:
    """The token that answers start from. Generation would take what generation_config.json says before all else."""
    told = read_json(folder / "generation_config.json", f"spec.model.uri: {folder}")
    named = told.get("decoder_start_token_id")
    named = getattr(config, "decoder_start_token_id", None) if named is None else named
    if not isinstance(named, int):
        raise Failure(
            Reason.MODEL_INVALID,
            f"spec.model.uri: neither config.json nor generation_config.json of {folder} names one "
            "decoder_start_token_id, the token that answers start from",
        )
    return named


def fresh_modules(model: PreTrainedModel, head: Head) -> tuple[str, ...]:
    """The new head's modules: all that has parameters and is not the pretrained backbone."""
    if not head.is_new:
        return ()
    children = model.named_children()
    return tuple(
        name for name, child in children if name != model.base_model_prefix and any(True for _ in child.parameters())
    )


def narrow_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights of linear layers in `dtype`: the same products, because autocast would cast them anyway,
    at each step. A weight that serves as embedding too stays as it is."""
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in shared:
            for parameter in (module.weight, module.bias):
                if parameter is not None and parameter.is_floating_point() and not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def _check_architecture(config: PretrainedConfig, head: Head) -> None:
    kind, supported = config.model_type, head.architectures
    if getattr(config, "auto_map", None) and kind not in supported:
        raise Failure(
            Reason.UNSUPPORTED,
            "spec.model: the model brings its own code, which is never run; choose an architecture of transformers",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise Failure(
            Reason.UNSUPPORTED, "spec.model: quantized weights cannot be fine-tuned here; name the unquantized model"
        )
    if config.is_encoder_decoder and head.is_new:
        raise Failure(
            Reason.UNSUPPORTED,
            f"spec.objective: {kind} is an encoder-decoder, which says what it has to say in words; let it write the "
            "labels as completions, or choose an encoder (BERT, …)",
        )
    if head.generates and is_encoder(config):
        raise Failure(
            Reason.UNSUPPORTED,
            f"spec.objective: {kind} is an encoder and cannot write: choose classification, or a decoder",
        )
    if kind not in supported:
        raise Failure(Reason.UNSUPPORTED, f"spec.model: transformers has no {head.auto_class} for {kind!r} models")


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether the model reads in both directions: such a model can fill masks and was not made to be a decoder."""
    fills_masks = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return fills_masks and not getattr(config, "is_decoder", False) and not config.is_encoder_decoder


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    found = f"only {pickles[0]}, a pickle, which could run code" if pickles else "no weights"
    raise Failure(Reason.MODEL_INVALID, f"spec.model.uri: {folder} has {found}; weights have to be *.safetensors")


def _check_config(folder: Path) -> None:
    """Refuse a model of a kind that this version of transformers does not know; the rest shows when it is read."""
    if not (folder / "config.json").is_file():
        raise Failure(Reason.MODEL_INVALID, f"spec.model.uri: {folder} is not a model: it has no config.json")
    kind = read_json(folder / "config.json", f"spec.model.uri: {folder}").get("model_type")
    if not isinstance(kind, str):
        raise Failure(Reason.MODEL_INVALID, f"spec.model.uri: {folder / 'config.json'} names no model_type")
    if kind not in CONFIG_MAPPING:
        told = f"transformers {transformers.__version__} knows no {kind!r} models; choose an architecture that it has"
        raise Failure(Reason.UNSUPPORTED, f"spec.model: {told}")


def _in_short(error: Exception) -> str:
    """The first line of an error, and the next where that only announces it; of errors without a sentence their name
    too."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()] or [""]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return said if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {said}"
