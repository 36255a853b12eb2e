"""Records become texts: through the chat template where there is one, with the characters that carry loss.

It decides where loss is. It knows no token and no file. Of a chat that an encoder-decoder reads the last answer is
trained, and the turns before it are read.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from finetune_api.reasons import Reason
from finetune_trainer.data.record_types import Kind
from finetune_trainer.data.records import Record
from finetune_trainer.pretrained.chat_template import ChatTemplate, Span
from finetune_trainer.pretrained.tokenizer import ModelTokenizer
from finetune_trainer.runtime.failures import BadRecordError, Failure


class Text(NamedTuple):
    """A record as text."""

    text: str
    loss_spans: tuple[Span, ...]
    """Characters that carry loss."""
    from_template: bool
    """The template wrote the special tokens."""
    label: str | None = None
    answer: str | None = None
    """What an encoder-decoder writes; `text` is what it reads."""

    @property
    def identity(self) -> int:
        """64 bits that equal records share."""
        told = (f"{self.text}\0{self.label}" + ("" if self.answer is None else f"\0{self.answer}")).encode()
        return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")


class Renderer:
    """Turns records of one kind into texts."""

    def __init__(self, kind: Kind, tokenizer: ModelTokenizer, loss_on_all: bool, in_pairs: bool = False) -> None:
        self._template = tokenizer.template
        self._all = loss_on_all
        if kind == "chat" and self._template is None:
            message = "the tokenizer has no chat template, and chat records need one: set spec.dataset.template (Jinja)"
            raise Failure(Reason.BAD_SPEC, message)
        self._render = partial((PAIR_RENDERERS if in_pairs else RENDERERS)[kind], self)

    def __call__(self, record: Record) -> Text:
        """The record as text; raises BadRecordError."""
        text = self._render(record)
        try:
            (text.text + (text.answer or "")).encode()
        except UnicodeEncodeError as error:
            raise BadRecordError(
                f"half of a surrogate pair, \\u{ord(error.object[error.start]):04x}, is not text"
            ) from None
        return text

    def chat(self, record: Record) -> Text:
        assert self._template is not None
        return self._conversation(self._template, record.messages or [])

    def prompt(self, record: Record) -> Text:
        assert record.prompt is not None
        if not record.text:  # an end alone is no answer
            return Text(record.prompt, (), from_template=self._template is not None)
        if self._template is None:
            start = 0 if self._all else len(record.prompt)
            text = record.prompt + record.text
            return Text(text, ((start, len(text)),), from_template=False)
        messages = [{"role": "user", "content": record.prompt}, {"role": "assistant", "content": record.text}]
        return self._conversation(self._template, messages)

    def plain(self, record: Record) -> Text:
        return Text(record.text, ((0, len(record.text)),), from_template=False)

    def labelled(self, record: Record) -> Text:
        return Text(record.text, (), from_template=False, label=record.label)

    def chat_pair(self, record: Record) -> Text:
        messages = record.messages or []
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            return Text("", (), from_template=True, answer="")
        return self._pair(messages[: turns[-1]], messages[turns[-1]]["content"] or "")

    def prompt_pair(self, record: Record) -> Text:
        assert record.prompt is not None
        if self._template is None:
            return Text(record.prompt, (), from_template=False, answer=record.text)
        return self._pair([{"role": "user", "content": record.prompt}], record.text)

    def _pair(self, messages: list[dict[str, Any]], answer: str) -> Text:
        assert self._template is not None
        return Text(self._template.text(messages, ask=True), (), from_template=True, answer=answer)

    def _conversation(self, template: ChatTemplate, messages: list[dict[str, Any]]) -> Text:
        if self._all:
            text = template.text(messages)
            return Text(text, ((0, len(text)),), from_template=True)
        text, spans = template.answers(messages)
        return Text(text, tuple(spans), from_template=True)


RENDERERS: dict[Kind, Callable[[Renderer, Record], Text]] = {
    "chat": Renderer.chat,
    "prompt": Renderer.prompt,
    "text": Renderer.plain,
    "labelled": Renderer.labelled,
}
PAIR_RENDERERS: dict[Kind, Callable[[Renderer, Record], Text]] = {
    "chat": Renderer.chat_pair,
    "prompt": Renderer.prompt_pair,
}
