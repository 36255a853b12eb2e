"""Texts become token ids and a mask of the tokens that are learnt.

It decides where a record is cut and when nothing is left of it. It knows no file.

A token is learnt if all its characters are the assistant's (or the completion's, or plain text). A token that straddles
the border between a prompt and its answer belongs to the prompt: it was not the model's to write. The first token of a
record is never learnt, because nothing predicts it.

An encoder-decoder reads an input and writes an answer. They are tokenized apart, each with an end and each cut by
itself, and stand in a record one behind the other: the answer is what is learnt, from its first token on.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from finetune_trainer.data.rendering import Text
from finetune_trainer.pretrained.chat_template import Span
from finetune_trainer.pretrained.tokenizer import ModelTokenizer

Outcome = Literal["kept", "truncated", "dropped"]


class Example(NamedTuple):
    """A record as tokens."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    fate: Outcome


class Encoder:
    """Turns texts into examples of at most `max_length` tokens."""

    def __init__(self, tokenizer: ModelTokenizer, max_length: int) -> None:
        self._backend = tokenizer.backend
        self._eos = tokenizer.eos
        self._limit = max_length
        self._specials = frozenset(
            id for id, token in self._backend.get_added_tokens_decoder().items() if token.special
        )
        self._suffix = self._closing_tokens()
        self._added: int = self._backend.num_special_tokens_to_add(is_pair=False)

    def examples(self, texts: Sequence[Text]) -> list[Example]:
        """One example for each text; all of one kind."""
        if not texts:
            return []
        if texts[0].label is not None:
            encodings = self._backend.encode_batch_fast([text.text for text in texts])
            return [self._labelled(encoding) for encoding in encodings]
        if texts[0].answer is not None:
            return self._pairs(texts)
        specials = not texts[0].from_template
        encodings = self._backend.encode_batch([text.text for text in texts], add_special_tokens=specials)
        return [self._example(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def _labelled(self, encoding: Encoding) -> Example:
        """The text with the tokens that the tokenizer puts around it; a cut keeps those at the end."""
        ids = np.array(encoding.ids, dtype=np.int32)
        mask = np.zeros(len(ids), dtype=np.bool_)
        if len(ids) <= self._limit:
            return Example(ids, mask, "kept" if len(ids) > self._added else "dropped")
        head = ids[: self._limit - len(self._suffix)]
        return Example(np.concatenate([head, self._suffix]), mask[: self._limit], "truncated")

    def _example(self, text: Text, encoding: Encoding) -> Example:
        ids = np.array(encoding.ids, dtype=np.int32)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for span in text.loss_spans:
            first, end = _tokens_of(encoding, text.text, span)
            mask[first:end] = True
        if not text.from_template:
            ids, mask = self._without_closing(ids, mask)
        ids, mask = self._ended(ids, mask)
        return self._cut(ids, mask)

    def _pairs(self, texts: Sequence[Text]) -> list[Example]:
        specials = not texts[0].from_template
        inputs = self._backend.encode_batch_fast([text.text for text in texts], add_special_tokens=specials)
        answers = self._backend.encode_batch_fast([text.answer or "" for text in texts])
        return [self._pair(read.ids, written.ids) for read, written in zip(inputs, answers, strict=True)]

    def _pair(self, read: list[int], written: list[int]) -> Example:
        """A cut leaves an input its end, and takes an answer's away: it did not end there."""
        source, answer = self._with_end(read), self._with_end(written)
        is_long = max(len(source), len(answer)) > self._limit
        if len(source) > self._limit:
            end = source[-1:] if self._has_end(source) else []
            source = source[: self._limit - len(end)] + end
        ids = np.array([*source, *answer[: self._limit]], dtype=np.int32)
        fate: Outcome = "truncated" if is_long else "kept"
        is_empty = not source or len(written) <= self._added  # an end alone is no answer
        return Example(ids, np.arange(len(ids)) >= len(source), "dropped" if is_empty else fate)

    def _with_end(self, ids: list[int]) -> list[int]:
        if ids[-2:] == [self._eos, self._eos]:  # the text's own, and the tokenizer's
            return ids[:-1]
        return ids if self._eos is None or self._has_end(ids) else [*ids, self._eos]

    def _has_end(self, ids: list[int]) -> bool:
        return bool(ids) and (ids[-1] in self._specials or ids[-1] == self._eos)

    def _without_closing(self, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        count = len(self._suffix)
        return (ids[:-count], mask[:-count]) if count else (ids, mask)

    def _ended(self, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Without what follows the last learnt token, and with an end that is learnt, unless it has one."""
        learnt = np.flatnonzero(mask)
        if not len(learnt):
            return ids[:0], mask[:0]
        end = int(learnt[-1]) + 1
        ids, mask = ids[:end], mask[:end]
        if self._eos is None or int(ids[-1]) in self._specials or int(ids[-1]) == self._eos:
            return ids, mask
        return np.append(ids, np.int32(self._eos)), np.append(mask, True)

    def _cut(self, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> Example:
        fate: Outcome = "truncated" if len(ids) > self._limit else "kept"
        ids, mask = ids[: self._limit], mask[: self._limit]
        mask[:1] = False
        return Example(ids, mask, fate if mask.any() else "dropped")

    def _closing_tokens(self) -> NDArray[np.int32]:
        """The special tokens that the tokenizer puts after a text."""
        mask = self._backend.encode("a").special_tokens_mask
        count = next((index for index, special in enumerate(reversed(mask)) if not special), 0)
        ids = self._backend.encode("a").ids
        return np.array(ids[len(ids) - count :], dtype=np.int32)


def _tokens_of(encoding: Encoding, text: str, span: Span) -> tuple[int, int]:
    """The tokens that lie in a span of characters: the first, and the one after the last."""
    first = _token_at(encoding, text, span[0])
    if first < len(encoding.ids) and encoding.offsets[first][0] < span[0]:
        first += 1
    return first, _token_at(encoding, text, span[1])


def _token_at(encoding: Encoding, text: str, position: int) -> int:
    """The token that holds the character at `position`, or the next one that holds any."""
    for place in range(position, len(text)):
        token = encoding.char_to_token(place)
        if token is not None:
            return token
    mask = encoding.special_tokens_mask
    end = len(mask)
    while end and mask[end - 1]:  # those that the tokenizer put after the text
        end -= 1
    return end
