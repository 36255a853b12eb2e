"""The kinds of records that there are, and what each objective learns from. It knows no record.

No other module of the trainer, but an objective's own, tells objectives apart.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["chat", "prompt", "text", "labelled"]
PARTS: dict[Kind, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
    "labelled": ("text", "label"),
}
"""The parts of each kind of record, in the order in which kinds are looked for."""


@dataclass(frozen=True)
class RecordType:
    """What an objective learns from."""

    kinds: tuple[Kind, ...]
    """Those that it takes."""
    has_labels: bool = False
    """Whether each record has a class."""
    has_answers: bool = False
    """Whether a record is an input and its answer: an encoder-decoder reads the one and writes the other."""


RECORD_TYPES: dict[str, RecordType] = {
    "sft": RecordType(("chat", "prompt", "text"), has_answers=True),
    "classification": RecordType(("labelled",), has_labels=True),
}
