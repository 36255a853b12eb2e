"""A stored LoRA adapter in PEFT's layout, read without PEFT or torch: what it says of each layer, before it is loaded.

It decides which adapters can be started from at all: LoRA, safetensors, nothing in it that changes the model in a way
that A, B and a scaling do not say. Whether several fit together is `initial_adapter`'s business.

    adapter_config.json · adapter_model.safetensors · manifest.json (where this project published it)
"""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.volumes import explained
from finetune_trainer.storage.safetensors_file import Floats, TensorFile

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
"""PEFT's, in front of each tensor's name in the model."""
ORIGINS = "origins"
"""In the metadata of composed weights: which adapters gave each layer, as JSON."""
UNDERSTOOD_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base model's weights alone."""
FOREIGN = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "megatron_config",
    "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
"""Fields of PEFT's config that make a layer something else than W + scaling · B·A."""
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?:(?P<side>[AB])\.weight|embedding_(?P<of_embedding>[AB]))")
MAGNITUDE = re.compile(r".+\.lora_magnitude_vector(\.weight)?")


@dataclass(frozen=True)
class StoredLayer:
    """The update of one layer: names of its tensors in the file, and their shapes."""

    a: str
    b: str
    rank: int
    width: tuple[int, int]
    """Outputs and inputs of the layer (of an embedding: its width and its words)."""
    scaling: float


class StoredAdapter:
    """One folder. Raises Failure, in words that begin with `place`, for what cannot be started from."""

    def __init__(self, folder: Path, place: str, uri: str) -> None:
        """`place` is the field that names it, `uri` what its owner calls it."""
        self.folder, self.place, self.uri = folder, place, uri
        try:
            self.config = self._config()
            self._check_config()
            self.file = self._file()
            self.layers = self._layers()
        except OSError as error:
            path = Path(error.filename or folder)
            raise self.failure(f"cannot be read: {explained(error, path)}", Reason.INPUT_UNAVAILABLE) from None

    def failure(self, why: str, reason: Reason = Reason.BAD_SPEC) -> Failure:
        return Failure(reason, f"{self.place}: {self.uri} {why}")

    def factors(self, layer: StoredLayer) -> tuple[Floats, Floats]:
        """A [rank, in] and B [out, rank]."""
        try:
            return self.file.read(layer.a), self.file.read(layer.b)
        except ValueError as error:
            raise self.failure(f"cannot be read: {WEIGHTS} {error}") from None

    @property
    def is_dora(self) -> bool:
        return bool(self.config.get("use_dora"))

    @cached_property
    def saved_modules(self) -> list[str]:
        """Modules that are stored whole."""
        wanted = self.config.get("modules_to_save") or []
        return [name for name in wanted if any(_is_of(tensor, name) for tensor in self.file.shapes)]

    @property
    def published_from(self) -> dict[str, Any]:
        """`baseModel` of our manifest (uri, revision); {} for an adapter from elsewhere."""
        found = _json(self.folder / MANIFEST).get("baseModel")
        return found if isinstance(found, dict) else {}

    def _config(self) -> dict[str, Any]:
        if not self.folder.is_dir():
            raise self.failure("does not exist, or is no folder", Reason.INPUT_UNAVAILABLE)
        if not (self.folder / CONFIG).is_file():
            is_model = (self.folder / "config.json").is_file()
            why = "is a whole model, not an adapter: name it in spec.model" if is_model else f"has no {CONFIG}"
            raise self.failure(why, Reason.BAD_SPEC if is_model else Reason.INPUT_UNAVAILABLE)
        config = _json(self.folder / CONFIG)
        if not config:
            raise self.failure(f"cannot be read: {CONFIG} is no JSON object")
        return config

    def _check_config(self) -> None:
        config = self.config
        kind = config.get("peft_type") or config.get("method")
        if kind != "LORA":
            raise self.failure(f"is an adapter of the kind {kind}: only LoRA adapters can be started from")
        foreign = [name for name in FOREIGN if config.get(name)]
        if config.get("bias", "none") != "none":
            foreign.append("bias")
        if foreign:
            raise self.failure(f"has {', '.join(foreign)}: only plain LoRA can be started from", Reason.UNSUPPORTED)
        if config.get("init_lora_weights", True) not in UNDERSTOOD_INITS:
            started = config["init_lora_weights"]
            why = f"was started by {started!r}, which changes the base model: save it as a plain LoRA adapter first"
            raise self.failure(f"{why} (PEFT's path_initial_model_for_weight_conversion)", Reason.UNSUPPORTED)

    def _file(self) -> TensorFile:
        path = self.folder / WEIGHTS
        if not path.is_file():
            why = f", only {PICKLE}: pickled weights can run code; convert them" if self._has(PICKLE) else ""
            raise self.failure(f"has no {WEIGHTS}{why}", Reason.BAD_SPEC if why else Reason.INPUT_UNAVAILABLE)
        try:
            return TensorFile(path)
        except ValueError as error:
            raise self.failure(f"cannot be read: {WEIGHTS} {error}") from None

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _layers(self) -> dict[str, StoredLayer]:
        """By the layer's name in the model."""
        found: dict[str, dict[str, str]] = {}
        for name in self.file.shapes:
            match = FACTOR.fullmatch(name.removeprefix(PREFIX))
            if match:
                found.setdefault(match["layer"], {})[match["side"] or match["of_embedding"]] = name
            elif not MAGNITUDE.fullmatch(name) and not any(_is_of(name, saved) for saved in self.saved_modules):
                raise self.failure(f"holds {name}, which is no part of a LoRA adapter", Reason.UNSUPPORTED)
        if not found:
            raise self.failure("holds no LoRA weights")
        return {layer: self._layer(layer, names) for layer, names in sorted(found.items())}

    def _layer(self, layer: str, names: dict[str, str]) -> StoredLayer:
        if len(names) < 2:
            raise self.failure(f"lacks one of the two factors of {layer}")
        a, b = (self.file.shapes[names[side]] for side in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
            raise self.failure(f"has factors of {layer} that are no matrices of one rank: {a} and {b}")
        return StoredLayer(names["A"], names["B"], a[0], (b[0], a[1]), self._scaling(layer, a[0]))

    def _scaling(self, layer: str, rank: int) -> float:
        """As PEFT finds it: alphas by patterns come first."""
        try:
            patterns = (self.config.get("alpha_pattern") or {}).items()
            named = (alpha for pattern, alpha in patterns if re.fullmatch(rf"(.*\.)?({pattern})", layer))
            alpha = float(next(named, self.config["lora_alpha"]))
        except (re.error, KeyError, TypeError, ValueError, AttributeError):
            raise self.failure(f"has no usable lora_alpha and alpha_pattern in its {CONFIG}") from None
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _is_of(tensor: str, module: str) -> bool:
    """Whether a tensor belongs to a module that is named by its whole name or by its end."""
    return f".{module}." in f".{tensor.removeprefix(PREFIX)}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
