"""The kinds of records that there are, and which of them an objective learns from. It knows no record."""

from typing import Literal

Kind = Literal["chat", "prompt", "text", "labelled"]
PARTS: dict[Kind, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
    "labelled": ("text", "label"),
}
"""The parts of each kind of record, in the order in which kinds are looked for."""
OBJECTIVE_KINDS: dict[str, tuple[Kind, ...]] = {"sft": ("chat", "prompt", "text"), "classification": ("labelled",)}
"""The kinds of records that an objective learns from."""
