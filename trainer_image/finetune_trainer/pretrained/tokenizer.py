"""The model's tokenizer: loaded without transformers, which would import torch; its special tokens and its template.

It decides which tokens end, begin and pad a text. It renders nothing.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer

from finetune_api.reasons import Reason
from finetune_trainer.pretrained.chat_template import ChatTemplate
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.storage.json_file import read_json

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""Files that can belong to a tokenizer."""
SOURCES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
"""Any one of these holds the vocabulary."""
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer and what its configuration says."""

    backend: Tokenizer
    tokens: dict[str, str]
    """bos_token, eos_token and so on, where it has them."""
    template: ChatTemplate | None
    template_source: str | None

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text."""
        return self._id("eos_token")

    @property
    def pad(self) -> int:
        """Id of the token that fills a batch: any will do, because it is masked."""
        for name in ("pad_token", "eos_token", "unk_token"):
            if (found := self._id(name)) is not None:
                return found
        return 0

    def _id(self, name: str) -> int | None:
        return self.backend.token_to_id(self.tokens[name]) if name in self.tokens else None


def load(folder: Path, name: str, override: str | None) -> ModelTokenizer:
    """The tokenizer in `folder`, which its owner calls `name`; `override` replaces its chat template."""
    backend = _backend(folder, name)
    backend.no_truncation()  # some are saved with the settings of their last use
    backend.no_padding()
    backend.encode_special_tokens = False
    config = read_json(folder / "tokenizer_config.json", name)
    special = read_json(folder / "special_tokens_map.json", name)
    tokens = {key: _content(value) for key in NAMES if (value := config.get(key) or special.get(key))}
    source = override or _template_source(folder, config, name)
    template = None
    if source is not None:
        place = "spec.dataset.template" if override else f"the chat template of {name}"
        template = ChatTemplate(source, place, Reason.BAD_SPEC if override else Reason.MODEL_INVALID, tokens)
    return ModelTokenizer(backend, tokens, template, source)


def save(folder: Path, tokenizer: ModelTokenizer, target: Path) -> None:
    """Copy the tokenizer's files to `target`, with the chat template that is in force."""
    target.mkdir()
    for name in FILES:
        if (folder / name).is_file() and not name.startswith("chat_template"):
            shutil.copyfile(folder / name, target / name)
    if not (target / "tokenizer.json").exists():
        tokenizer.backend.save(str(target / "tokenizer.json"))
    config = _without_paths(read_json(target / "tokenizer_config.json", str(folder)))
    config.pop("chat_template", None)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    if tokenizer.template_source is not None:
        (target / "chat_template.jinja").write_text(tokenizer.template_source, encoding="utf-8")


def _backend(folder: Path, name: str) -> Tokenizer:
    if not any((folder / file).is_file() for file in SOURCES):
        raise Failure(Reason.MODEL_INVALID, f"{name} has no tokenizer: one of {', '.join(SOURCES)} is needed")
    if not (folder / "tokenizer.json").is_file():
        return _converted(folder, name)
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except (Failure, MemoryError):  # a signal that came meanwhile
        raise
    except Exception as error:  # the library raises nothing narrower
        raise Failure(Reason.MODEL_INVALID, f"{name}: tokenizer.json cannot be read: {error}") from None


def _converted(folder: Path, name: str) -> Tokenizer:
    """A tokenizer in one of the older layouts; transformers knows them all, at the price of its import."""
    from transformers import AutoTokenizer

    config = _without_paths(read_json(folder / "tokenizer_config.json", name))
    try:
        with TemporaryDirectory() as draft:
            for path in folder.iterdir():
                if path.is_file() and path.name != "tokenizer_config.json":
                    Path(draft, path.name).symlink_to(path.absolute())
            Path(draft, "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
            converted = AutoTokenizer.from_pretrained(draft, trust_remote_code=False, local_files_only=True)
        return converted.backend_tokenizer
    except (Failure, MemoryError):
        raise
    except Exception as error:  # it raises whatever its parts raise
        raise Failure(Reason.MODEL_INVALID, f"{name}: its tokenizer cannot be read: {error}") from None


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's config whose files are those beside it: old ones name files of the machine that saved them."""
    return {key: value for key, value in config.items() if not key.endswith(("_file", "_files"))}


def _content(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token)


def _template_source(folder: Path, config: dict[str, Any], name: str) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = read_json(folder / "chat_template.json", name).get("chat_template") or config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
