"""What one record is: a chat, a prompt with its completion, plain text, or text with a label.

It decides which columns play which part and what is wrong with a record. It knows no file format and no token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune_api.reasons import Reason
from finetune_api.spec.dataset import Columns, Source
from finetune_trainer.data.formats import kind_of
from finetune_trainer.data.record_types import PARTS, RECORD_TYPES, Kind
from finetune_trainer.runtime.failures import BadRecordError, Failure


class Record(NamedTuple):
    """One record: `messages` of a chat, else texts; a label only where the objective has labels."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    text: str = ""
    label: str | None = None


@dataclass(frozen=True)
class Shape:
    """The kind of a source's records and the column that each part is in."""

    kind: Kind
    columns: dict[str, str]

    def record(self, row: Mapping[str, Any]) -> Record:
        """The record in `row`; raises BadRecordError."""
        return PARSERS[self.kind](row, self.columns)


def shape_of(row: Mapping[str, Any], source: Source, field: str, name: str, objective: str) -> Shape:
    """The shape of a file's records, by its first row.

    `field` is the source's place in the spec and `name` the file's name, for the message. Raises DatasetInvalid when
    the columns make no record.
    """
    mapped = _mapped(source.columns)
    kinds = [kind for kind in RECORD_TYPES[objective].kinds if mapped.keys() <= set(PARTS[kind]) | {"label"}]
    found = ", ".join(repr(column) for column in row) or "none"
    for kind in kinds:
        columns = {part: mapped.get(part, part) for part in PARTS[kind]}
        if all(column in row for column in columns.values()):
            return Shape(kind, columns)
    for part, column in mapped.items():
        if column not in row:
            message = f"{name}: no column {column!r} ({field}.columns.{part}); its columns are: {found}"
            raise Failure(Reason.DATASET_INVALID, message)
    wanted = "; or ".join(" and ".join(repr(mapped.get(part, part)) for part in PARTS[kind]) for kind in kinds)
    message = f"{name}: {objective} needs the columns {wanted}; its columns are: {found}. Map them in {field}.columns"
    raise Failure(Reason.DATASET_INVALID, message)


def _chat(row: Mapping[str, Any], columns: Mapping[str, str]) -> Record:
    column = columns["messages"]
    messages = _cell(row, column)
    if not isinstance(messages, list):
        raise BadRecordError(f"{column!r} is {kind_of(messages)}, expected a list of messages")
    if not messages:
        raise BadRecordError(f"{column!r} is an empty list")
    for index, message in enumerate(messages):
        _check_message(message, f"{column}[{index}]")
    return Record(messages=messages)


def _check_message(message: Any, place: str) -> None:
    if not isinstance(message, dict):
        raise BadRecordError(f"{place} is {kind_of(message)}, expected an object with role and content")
    for part in ("role", "content"):
        if part not in message:
            raise BadRecordError(f"{place} has no {part!r}")
    if not isinstance(message["role"], str):
        raise BadRecordError(f"{place}.role is {kind_of(message['role'])}, expected text")
    content = message["content"]
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise BadRecordError(f"{place}.content is {kind_of(content)}, expected text")


def _prompt(row: Mapping[str, Any], columns: Mapping[str, str]) -> Record:
    return Record(prompt=_text_cell(row, columns["prompt"]), text=_text_cell(row, columns["completion"]))


def _text(row: Mapping[str, Any], columns: Mapping[str, str]) -> Record:
    return Record(text=_text_cell(row, columns["text"]))


def _labelled(row: Mapping[str, Any], columns: Mapping[str, str]) -> Record:
    label = _cell(row, columns["label"])
    if isinstance(label, float) and label.is_integer():  # a column of integers with gaps, in parquet
        label = int(label)
    if not isinstance(label, str | int | bool) or label == "":
        found = "empty" if label == "" else kind_of(label)
        raise BadRecordError(f"{columns['label']!r} is {found}, expected a label")
    return Record(text=_text_cell(row, columns["text"]), label=str(label))


PARSERS: dict[Kind, Callable[[Mapping[str, Any], Mapping[str, str]], Record]] = {
    "chat": _chat,
    "prompt": _prompt,
    "text": _text,
    "labelled": _labelled,
}


def _cell(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise BadRecordError(f"no field {column!r}; the record has: {', '.join(map(repr, row)) or 'none'}")
    return row[column]


def _text_cell(row: Mapping[str, Any], column: str) -> str:
    value = _cell(row, column)
    if not isinstance(value, str):
        raise BadRecordError(f"{column!r} is {kind_of(value)}, expected text")
    return value


def _mapped(columns: Columns) -> dict[str, str]:
    return {part: column for part, column in columns if column is not None}
